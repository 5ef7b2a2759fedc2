"""A cache on disk for the vectors of texts, so that each text is encoded once, and not again in every run.

Each recipe (the encoder and its settings) has a folder of its own, which holds shards. A shard is a file with the
vectors of up to some thousands of texts, and a hash of each text. While texts are encoded, a shard is written about
every half minute, or earlier if it is full. A written shard never changes. So a killed run loses about half a minute of
work at most, and an interrupted run a second or two. A later run with more texts encodes only the new ones.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..common.console import say
from ..common.progress import Progress
from ..naming_t5fusion import first_line
from ..processing_t5fusion import T5FusionProcessor
from ..saving_t5fusion import apply_umask

PIECE = 256  # texts that are encoded at once: two seconds' work with MiniLM on two CPU cores
SHARD, SHARD_SECONDS = 8192, 30.0  # A shard is written as soon as it has this many texts, or is this old.
REPORT_EVERY = 10**9  # bytes: a message says each time that the cache has grown by this much
FILE_ERRORS = (OSError, SafetensorError, ValueError, KeyError)  # raised for a damaged file or a full disk


def cache_folder() -> Path:
    """Return the folder of the cache: in `$T5FUSION_CACHE` if that is set, otherwise in the user's cache folder."""
    if folder := os.environ.get("T5FUSION_CACHE"):
        return Path(folder) / "vectors"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t5fusion" / "vectors"


def encode_distinct(texts: Sequence[str], processor: T5FusionProcessor) -> torch.Tensor:
    """Encode texts with `processor.encode`, each distinct text once. Return float32 (texts, lexical_dim)."""
    return _encode_once(texts, processor.encode)


def encode_cached(texts: Sequence[str], processor: T5FusionProcessor, progress: bool = True) -> torch.Tensor:
    """Encode texts as `encode_distinct` does, but read the vectors that the cache holds, and add the others to it.

    Texts that the cache lacks are encoded in pieces of `PIECE` texts, in their order. The last bits of a vector depend
    on the texts that are encoded with it. So a vector equals the result of `processor.encode` bit for bit if both
    encode the same piece, and up to rounding otherwise. Once a vector is in the cache, every run gets that vector.

    Args:
        texts: The texts.
        processor: The encoder and its settings.
        progress: Whether to show how far encoding has come. If the cache lacks more than `SHARD` texts, it is shown in
            any case.

    Returns:
        float32 (texts, lexical_dim).
    """
    return _encode_once(texts, lambda distinct: _read_or_encode(distinct, processor, progress))


def _encode_once(texts: Sequence[str], encode: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
    """Return a vector for each text, and call `encode` with the distinct texts only."""
    distinct = list(dict.fromkeys(texts))
    vectors = encode(distinct)
    index_of = {text: index for index, text in enumerate(distinct)}
    return vectors[[index_of[text] for text in texts]]


def _read_or_encode(texts: Sequence[str], processor: T5FusionProcessor, progress: bool) -> torch.Tensor:
    """Return the vectors of distinct texts, from the cache or the encoder: float32 (texts, lexical_dim)."""
    cache = _cache_in(cache_folder() / _recipe_hash(processor))
    with cache.locked():
        vectors = cache.read(texts)
        missing = [text for text in texts if text not in vectors]
        size = min(PIECE, SHARD)
        # One piece has the encoder's own bar, which shows the time left. Several pieces have one bar for all.
        has_own_bar = progress and len(missing) <= size and sys.stderr.isatty()
        has_bar = len(missing) > (size if progress else SHARD)
        with (
            Progress("Encoding", len(missing), "texts") if has_bar else nullcontext() as bar,
            _ShardWriter(cache) as writer,
        ):
            for start in range(0, len(missing), size):
                piece = missing[start : start + size]
                piece_vectors = processor.encode(piece, show_progress_bar=has_own_bar).numpy()
                writer.add(piece, piece_vectors)
                vectors |= zip(piece, piece_vectors, strict=True)
                if bar is not None:
                    bar.advance(len(piece))
    return torch.from_numpy(np.stack([vectors[text] for text in texts]))


def _recipe_hash(processor: T5FusionProcessor) -> str:
    """Return a hash of all that the vectors depend on, apart from the texts."""
    recipe: list[Any] = [processor.lexical_encoder, processor.lexical_encoder_revision, processor.normalize]
    recipe += [processor.lexical_dtype, processor.lexical_max_tokens, processor.lexical_dim]
    folder = Path(processor.lexical_encoder or "")
    if processor.lexical_encoder and folder.is_dir():  # A local folder may hold a different encoder tomorrow.
        stats = [(file, file.stat()) for file in sorted(folder.rglob("*"))]
        recipe += [[str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]


def _text_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


class VectorCache:
    """The shards of one recipe.

    Args:
        folder: The folder of the shards. It need not exist. If nothing can be written there, nothing is cached.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.locations: dict[bytes, tuple[Path, int]] = {}  # hash of a text -> its shard, and its row there
        self.shards: set[Path] = set()  # shards whose hashes are in `locations`
        self.writable = True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the recipe in this context. Another process waits, and then reads what this process has cached."""
        lock = FileLock(self.folder.with_suffix(".lock"))
        self.writable = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            self._stop_writing(error)
        try:
            yield
        finally:
            lock.release()

    def read(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the cached vectors of `texts`, float32 (lexical_dim,), by text. Texts without one are left out."""
        self._refresh()
        rows_by_shard: dict[Path, list[tuple[str, int]]] = {}
        for text in texts:
            if location := self.locations.get(_text_hash(text)):
                rows_by_shard.setdefault(location[0], []).append((text, location[1]))
        vectors: dict[str, np.ndarray] = {}
        for shard, rows in rows_by_shard.items():
            try:
                shard_vectors = _read_shard(shard)
            except FILE_ERRORS as error:
                self._delete_damaged(shard, error)
            else:
                vectors |= {text: shard_vectors[row] for text, row in rows}
        return vectors

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Write a shard, completely or not at all. If it cannot be written, the vectors are not cached."""
        if not self.writable:
            return
        hashes = np.frombuffer(b"".join(map(_text_hash, texts)), dtype=np.uint8).reshape(-1, 16)
        vectors = np.ascontiguousarray(vectors)
        shard = self.folder / f"{hashlib.sha256(hashes.tobytes()).hexdigest()[:32]}.safetensors"
        # The name is always the same, so that the next run overwrites what a killed one left.
        unfinished = self.folder / "unfinished"
        try:
            save_file({"hashes": hashes, "vectors": vectors}, unfinished, metadata={"sha256": _digest(hashes, vectors)})
            apply_umask(self.folder, unfinished.name)  # Other users can then read a shared cache.
            unfinished.replace(shard)
        except FILE_ERRORS as error:
            unfinished.unlink(missing_ok=True)
            self._stop_writing(error)
            return
        self._index(shard, hashes)
        size = sum(file.stat().st_size for file in cache_folder().rglob("*.safetensors"))
        if size // REPORT_EVERY > (size - shard.stat().st_size) // REPORT_EVERY:
            say(f"The cache in {cache_folder()} holds {size / 1e9:.1f} GB of vectors. You may empty it at any time.")

    def _refresh(self) -> None:
        """Index shards that were added since the last call, and forget those that were deleted."""
        shards = set(self.folder.glob("*.safetensors"))
        if self.shards - shards:
            self.locations, self.shards = {}, set()
        for shard in sorted(shards - self.shards):
            try:
                with safe_open(shard, "numpy") as file:
                    hashes = file.get_tensor("hashes")
                if hashes.ndim != 2 or hashes.shape[1] != 16:
                    raise ValueError(f"its hashes have the shape {hashes.shape}")
            except FILE_ERRORS as error:
                self._delete_damaged(shard, error)
            else:
                self._index(shard, hashes)

    def _index(self, shard: Path, hashes: np.ndarray) -> None:
        """Remember where the vectors of a shard are."""
        self.locations |= {row.tobytes(): (shard, index) for index, row in enumerate(hashes)}
        self.shards.add(shard)

    def _delete_damaged(self, shard: Path, error: Exception) -> None:
        """Delete a shard that cannot be read, and forget its vectors."""
        say(f"{shard} is damaged ({first_line(error)}). It is deleted, and its vectors are computed again.")
        self.locations = {text: location for text, location in self.locations.items() if location[0] != shard}
        self.shards.discard(shard)
        try:
            shard.unlink(missing_ok=True)
        except OSError as denied:
            self._stop_writing(denied)

    def _stop_writing(self, error: Exception) -> None:
        """Cache nothing more in this run, and tell the user why."""
        if self.writable:
            say(
                f"Vectors cannot be cached in {self.folder.parent} ({first_line(error)}). This run continues, and the "
                "next one encodes them again."
            )
        self.writable = False


class _ShardWriter:
    """Collects pieces of vectors, and writes them as shards.

    Use it as a context manager: it then writes the last shard at the end, even if encoding is interrupted.

    Args:
        cache: The cache to write to.
    """

    def __init__(self, cache: VectorCache):
        self.cache = cache
        self.texts: list[str] = []
        self.vectors: list[np.ndarray] = []
        self.written = time.monotonic()

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Take the vectors of some texts, and write a shard if it is large or old enough."""
        self.texts += texts
        self.vectors.append(vectors)
        if len(self.texts) >= SHARD or time.monotonic() - self.written >= SHARD_SECONDS:
            self._write()

    def _write(self) -> None:
        if self.texts:
            self.cache.add(self.texts, np.concatenate(self.vectors))
        self.texts, self.vectors, self.written = [], [], time.monotonic()


@lru_cache(maxsize=8)
def _cache_in(folder: Path) -> VectorCache:
    """Return the cache in a folder. It is kept, so that its index is read once."""
    return VectorCache(folder)


def _read_shard(shard: Path) -> np.ndarray:
    """Return the vectors of a shard, float32 (texts, lexical_dim).

    Raises:
        OSError, SafetensorError, ValueError, KeyError: The shard is damaged.
    """
    with safe_open(shard, "numpy") as file:
        hashes, vectors = file.get_tensor("hashes"), file.get_tensor("vectors")
        if (file.metadata() or {}).get("sha256") != _digest(hashes, vectors):
            raise ValueError("its checksum is wrong")
    return vectors


def _digest(hashes: np.ndarray, vectors: np.ndarray) -> str:
    return hashlib.sha256(hashes.tobytes() + vectors.tobytes()).hexdigest()

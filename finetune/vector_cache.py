"""Vectors of texts that are kept on disk between runs, shard by shard as they are made.

Each recipe (the encoder and its settings) has a folder of its own. A shard there holds the vectors of some thousands of
texts and a hash of each text; it is written once and never changed. So a run that is killed loses at most the shard it
was making, and a run with more texts encodes only the new ones.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..common.console import say
from ..processing_t5fusion import T5FusionProcessor

SHARD = 8192  # texts: with MiniLM on two CPU cores, about a minute's work
SAID_EVERY = 10**9  # bytes of kept vectors
UNUSABLE = (OSError, SafetensorError, ValueError, KeyError)  # what a damaged file or a full disk raises


def cache_folder() -> Path:
    """Where vectors are kept between runs: `$T5FUSION_CACHE`, else `t5fusion` in the user's cache folder."""
    if own := os.environ.get("T5FUSION_CACHE"):
        return Path(own) / "vectors"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t5fusion" / "vectors"


def encode_kept(texts: Sequence[str], processor: T5FusionProcessor, say: Callable[[str], None]) -> torch.Tensor:
    """`processor.encode` of distinct texts, float32 (texts, lexical_dim), in their order; and kept for the next run.

    What is not kept yet is encoded in shards of `SHARD` texts, in their order. The last bits of a vector depend on the
    texts that are encoded together with it. So a vector is that of `processor.encode` of its shard to the bit, and of
    any other call to rounding; once it is kept, every later run gets it to the bit.

    Args:
        say: is told, once for each, what cannot be read or kept, and when what is kept has grown by a GB.
    """
    kept = _kept_in(cache_folder() / _recipe_hash(processor))
    found: dict[str, np.ndarray] = {}
    with kept.locked(say):
        found |= kept.read(texts, say)
        missing = [text for text in texts if text not in found]
        for start in range(0, len(missing), SHARD):
            shard = missing[start : start + SHARD]
            vectors = processor.encode(shard, show_progress_bar=True).numpy()
            kept.add(shard, vectors, say)
            found |= zip(shard, vectors, strict=True)
    return torch.from_numpy(np.stack([found[text] for text in texts]))


def _recipe_hash(processor: T5FusionProcessor) -> str:
    recipe: list[Any] = [processor.lexical_encoder, processor.lexical_encoder_revision, processor.normalize]
    recipe += [processor.lexical_dtype, processor.lexical_max_tokens, processor.lexical_dim]
    folder = Path(processor.lexical_encoder or "")
    if processor.lexical_encoder and folder.is_dir():  # it may hold another encoder tomorrow
        stats = [(file, file.stat()) for file in sorted(folder.rglob("*"))]
        recipe += [[str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]


def _text_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


class KeptVectors:
    """The shards of one recipe.

    Args:
        folder: of the shards. It need not exist, and may be such that nothing can be written there: then nothing is
            kept.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.places: dict[bytes, tuple[Path, int]] = {}  # by a text's hash, its shard and the row there
        self.known: set[Path] = set()  # shards whose hashes are in `places`
        self.writable = True

    @contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[None]:
        """Of several processes one encodes; the others wait, and find it done."""
        lock = FileLock(self.folder.with_suffix(".lock"))
        self.writable = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            self._cannot_keep(error, say)
        try:
            yield
        finally:
            lock.release()

    def read(self, texts: Sequence[str], say: Callable[[str], None]) -> dict[str, np.ndarray]:
        """The vectors of those of `texts` that are kept."""
        self._refresh(say)
        wanted: dict[Path, list[tuple[str, int]]] = {}
        for text in texts:
            if place := self.places.get(_text_hash(text)):
                wanted.setdefault(place[0], []).append((text, place[1]))
        found: dict[str, np.ndarray] = {}
        for shard, rows in wanted.items():
            try:
                vectors = _read_shard(shard)
            except UNUSABLE as error:
                self._throw_away(shard, error, say)
            else:
                found |= {text: vectors[row] for text, row in rows}
        return found

    def add(self, texts: Sequence[str], vectors: np.ndarray, say: Callable[[str], None]) -> None:
        """Writes a shard, whole or not at all. What cannot be written is not kept."""
        if not self.writable:
            return
        hashes = np.frombuffer(b"".join(map(_text_hash, texts)), dtype=np.uint8).reshape(-1, 16)
        vectors = np.ascontiguousarray(vectors)
        shard = self.folder / f"{hashlib.sha256(hashes.tobytes()).hexdigest()[:32]}.safetensors"
        unfinished = self.folder / "unfinished"  # one at a time, and a killed process's is written over
        try:
            save_file({"hashes": hashes, "vectors": vectors}, unfinished, metadata={"sha256": _digest(hashes, vectors)})
            unfinished.replace(shard)
        except UNUSABLE as error:
            unfinished.unlink(missing_ok=True)
            self._cannot_keep(error, say)
            return
        self._know(shard, hashes)
        kept = sum(file.stat().st_size for file in cache_folder().rglob("*.safetensors"))
        if kept // SAID_EVERY > (kept - shard.stat().st_size) // SAID_EVERY:
            say(f"{kept / 1e9:.1f} GB of vectors are kept in {cache_folder()}; the folder may be emptied at any time.")

    def _refresh(self, say: Callable[[str], None]) -> None:
        """Looks for shards that were added, or deleted, since the last call."""
        shards = set(self.folder.glob("*.safetensors"))
        if self.known - shards:
            self.places, self.known = {}, set()
        for shard in sorted(shards - self.known):
            try:
                with safe_open(shard, "numpy") as file:
                    hashes = file.get_tensor("hashes")
                if hashes.ndim != 2 or hashes.shape[1] != 16:
                    raise ValueError(f"its hashes have the shape {hashes.shape}")
            except UNUSABLE as error:
                self._throw_away(shard, error, say)
            else:
                self._know(shard, hashes)

    def _know(self, shard: Path, hashes: np.ndarray) -> None:
        self.places |= {row.tobytes(): (shard, index) for index, row in enumerate(hashes)}
        self.known.add(shard)

    def _throw_away(self, shard: Path, error: Exception, say: Callable[[str], None]) -> None:
        say(f"{shard} is damaged ({_first_line(error)}): it is thrown away, and its vectors are made again.")
        self.places = {text: place for text, place in self.places.items() if place[0] != shard}
        self.known.discard(shard)
        try:
            shard.unlink(missing_ok=True)
        except OSError as denied:
            self._cannot_keep(denied, say)

    def _cannot_keep(self, error: Exception, say: Callable[[str], None]) -> None:
        if self.writable:
            say(f"vectors cannot be kept for the next run in {self.folder.parent} ({_first_line(error)}). Going on.")
        self.writable = False


@lru_cache(maxsize=8)
def _kept_in(folder: Path) -> KeptVectors:
    return KeptVectors(folder)


def _read_shard(shard: Path) -> np.ndarray:
    """The vectors of a shard, float32 (texts, dim).

    Raises:
        OSError, SafetensorError, ValueError, KeyError: it is damaged.
    """
    with safe_open(shard, "numpy") as file:
        hashes, vectors = file.get_tensor("hashes"), file.get_tensor("vectors")
        if (file.metadata() or {}).get("sha256") != _digest(hashes, vectors):
            raise ValueError("its bytes are not those that were written")
    return vectors


def _digest(hashes: np.ndarray, vectors: np.ndarray) -> str:
    return hashlib.sha256(hashes.tobytes() + vectors.tobytes()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def encode_distinct(texts: Sequence[str], processor: T5FusionProcessor) -> torch.Tensor:
    """`processor.encode`, float32 (texts, dim): each distinct text once."""
    return _each_once(texts, processor.encode)


def encode_cached(texts: Sequence[str], processor: T5FusionProcessor) -> torch.Tensor:
    """`encode_distinct`, and kept on disk for the next run, as `kept_vectors.encode_kept` says."""
    return _each_once(texts, lambda distinct: encode_kept(distinct, processor, say))


def _each_once(texts: Sequence[str], encode: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
    distinct = list(dict.fromkeys(texts))
    vectors = encode(distinct)
    place = {text: index for index, text in enumerate(distinct)}
    return vectors[[place[text] for text in texts]]

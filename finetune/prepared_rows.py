"""The model's inputs for a large set, in an Arrow file on disk. Memory holds only the rows that are read.

The file lies in a folder of its own in the cache, and is removed when the training ends. The folder of a killed process
is removed by the next training.
"""

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import portalocker
import pyarrow as pa

from ..blocks_t5fusion import RowArrays
from ..common.writing import temporary_folder, writing
from .vector_cache import cache_folder

IN_USE = "in_use"  # the file that a process locks as long as it uses its folder
NEW = 60.0  # seconds: the process that made a younger folder may not have locked it yet
FIELDS = {
    "input_ids": pa.list_(pa.int32()),
    "attention_mask": pa.list_(pa.int8()),
    "labels": pa.list_(pa.int32()),
}
VECTORS = "lexical_embeds"  # the column of the vectors; with several kinds, one column for each: lexical_embeds:NAME
VECTOR_TYPE = pa.list_(pa.list_(pa.float32()))


class PreparedRows(Sequence[dict[str, Any]]):
    """Rows of `inputs.prepare` in an Arrow file, memory-mapped.

    A row is a dict of NumPy arrays: `input_ids` and `labels`, int32 (length,); `attention_mask`, int8 (length,); and
    `lexical_embeds`, float32 (dim,) for one vector and (vectors, dim) for several, in the rows that have a vector. With
    several kinds of vectors, it is a dict of these by kind.

    Args:
        file: A file of `keep_rows`.
    """

    def __init__(self, file: Path):
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self.ends = np.cumsum([len(batch) for batch in batches], dtype=np.int64)
        self.parts = [_Part(batch) for batch in batches]

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        index = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= index < len(self):
            raise IndexError(f"there is no row {index}; the set has {len(self)} rows.")
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part].row(index - (int(self.ends[part - 1]) if part else 0))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        starts = [0, *self.ends.tolist()]
        for part, (start, end) in enumerate(pairwise(starts)):
            yield from map(self.parts[part].row, range(end - start))

    def row_arrays(self) -> Iterator[RowArrays]:
        """Yield the vectors and labels of consecutive rows, in arrays that share the file's memory."""
        return (part.arrays() for part in self.parts)


class _Part:
    """Some consecutive rows of the file."""

    def __init__(self, batch: pa.RecordBatch):
        self.lists = {name: _Lists(batch.column(name)) for name in batch.schema.names if name in FIELDS}
        names = [name for name in batch.schema.names if name not in FIELDS]
        self.has_kinds = names != [VECTORS]
        self.vectors = {name.partition(":")[2]: _Vectors(batch.column(name)) for name in names}

    def row(self, index: int) -> dict[str, Any]:
        """Return a row, by its index in this part."""
        fields = {name: lists.at(index) for name, lists in self.lists.items()}
        row: dict[str, Any] = {name: values for name, values in fields.items() if values is not None}
        of_kinds = {kind: vectors.at(index) for kind, vectors in self.vectors.items()}
        present = {kind: vectors for kind, vectors in of_kinds.items() if vectors is not None}
        if present:
            row[VECTORS] = present if self.has_kinds else present[""]
        return row

    def arrays(self) -> RowArrays:
        """Return the vectors and the labels of all rows."""
        labels = self.lists["labels"]
        vectors = {kind: of_kind.arrays() for kind, of_kind in self.vectors.items()}
        lengths = np.diff(labels.offsets)
        is_labelled = np.ones(len(lengths), dtype=bool) if labels.is_null is None else ~labels.is_null
        return RowArrays(vectors, labels.values[labels.offsets[0] : labels.offsets[-1]], lengths, is_labelled)


class _Lists:
    """A column of lists of numbers. Each list is read as a NumPy array that shares the column's memory."""

    def __init__(self, column: pa.ListArray):
        self.offsets, self.values = column.offsets.to_numpy(), column.values.to_numpy()
        self.is_null = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None

    def at(self, index: int) -> np.ndarray | None:
        """Return the list of a row; None if it has none."""
        if self.is_null is not None and self.is_null[index]:
            return None
        return self.values[self.offsets[index] : self.offsets[index + 1]]


class _Vectors:
    """A column of vectors: for each row a list of them. They are read as arrays that share the column's memory."""

    def __init__(self, column: pa.ListArray):
        vectors = column.values
        self.rows, self.offsets = column.offsets.to_numpy(), vectors.offsets.to_numpy()
        self.numbers = vectors.values.to_numpy()

    def at(self, index: int) -> np.ndarray | None:
        """Return the vector of a row, (dim,), or its vectors, (vectors, dim); None if it has none."""
        first, end = self.rows[index], self.rows[index + 1]
        if first == end:
            return None
        numbers = self.numbers[self.offsets[first] : self.offsets[end]]
        return numbers if end - first == 1 else numbers.reshape(end - first, -1)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all numbers, how many numbers each vector has, and how many vectors each row has."""
        offsets = self.offsets[self.rows[0] : self.rows[-1] + 1]
        return self.numbers[offsets[0] : offsets[-1]], np.diff(offsets), np.diff(self.rows)


def keep_rows(file: Path, parts: Iterable[list[dict]], kinds: Sequence[str] = ()) -> PreparedRows:
    """Write rows into an Arrow file, and return the rows in that file.

    Args:
        file: The file to write.
        parts: The rows of `inputs.prepare`, in parts that fit in memory.
        kinds: The names of the kinds of vectors, if there are several.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    vector_columns = [f"{VECTORS}:{kind}" for kind in kinds] if len(kinds) > 1 else [VECTORS]
    schema = pa.schema(FIELDS | dict.fromkeys(vector_columns, VECTOR_TYPE))
    with ExitStack() as stack:
        with writing(file):
            sink = stack.enter_context(pa.OSFile(str(file), "wb"))
            writer = stack.enter_context(pa.ipc.new_file(sink, schema))
        try:
            for rows in parts:
                with writing(file):
                    writer.write_batch(_batch(rows, schema))
        except BaseException:
            with suppress(OSError):  # After a full disk, closing fails as well, and that error would hide the first.
                stack.close()
            raise
        with writing(file):
            stack.close()
    return PreparedRows(file)


def _batch(rows: list[dict], schema: pa.Schema) -> pa.RecordBatch:
    """Return rows of `inputs.prepare` as an Arrow batch."""
    columns = [_column([row.get(name) for row in rows], type_) for name, type_ in FIELDS.items()]
    for name in schema.names[len(FIELDS) :]:
        _, has_kinds, kind = name.partition(":")
        given = [row.get(VECTORS) for row in rows]
        columns.append(_vector_column([(of_row or {}).get(kind) for of_row in given] if has_kinds else given))
    return pa.record_batch(columns, schema=schema)


def _vector_column(of_rows: Sequence[Any]) -> pa.Array:
    """Return the vectors of each row, (dim,), (vectors, dim) or None, as lists of lists of numbers."""
    given = [None if vectors is None else np.atleast_2d(np.asarray(vectors)) for vectors in of_rows]
    present = [vectors for vectors in given if vectors is not None]
    widths = [vectors.shape[1] for vectors in present for _ in vectors]
    numbers = np.concatenate([vectors.ravel() for vectors in present]) if present else np.zeros(0)
    ends = pa.array(np.cumsum([0, *widths], dtype=np.int32))
    vectors = pa.ListArray.from_arrays(ends, pa.array(numbers.astype(np.float32)))
    counts = [0 if vectors is None else len(vectors) for vectors in given]
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *counts], dtype=np.int32)), vectors)


def _column(lists: Sequence[Any], type_: pa.ListType) -> pa.Array:
    """Return lists, arrays or tensors of numbers as one Arrow array; None becomes null."""
    lengths = [0 if values is None else len(values) for values in lists]
    given = [np.asarray(values) for values in lists if values is not None]
    offsets = pa.array(np.cumsum([0, *lengths], dtype=np.int32))
    numbers = np.concatenate(given) if given else np.zeros(0)
    is_null = pa.array([values is None for values in lists])
    values = pa.array(numbers.astype(type_.value_type.to_pandas_dtype()))
    return pa.ListArray.from_arrays(offsets, values, type=type_, mask=is_null)


@contextmanager
def rows_folder() -> Iterator[Path]:
    """Yield a new folder for the files of `keep_rows`, in the cache, and remove it at the end.

    Folders of processes that were killed are removed. If nothing can be written in the cache, the folder is a temporary
    one.

    Raises:
        OSError: No folder can be made anywhere.
    """
    parent = cache_folder().parent / "rows"
    with ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(parent)
            folder = Path(tempfile.mkdtemp(dir=parent))
        except OSError:
            folder = stack.enter_context(temporary_folder("t5fusion-rows-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        lock = stack.enter_context((folder / IN_USE).open("w"))
        with suppress(portalocker.LockException):  # Where files cannot be locked, no process removes the folder.
            portalocker.lock(lock, portalocker.LOCK_EX | portalocker.LOCK_NB)
        yield folder


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders in `parent` whose process has ended."""
    for folder in parent.iterdir():
        lock = folder / IN_USE
        try:
            if time.time() - folder.stat().st_mtime < NEW:
                continue
            if lock.exists():
                with lock.open("r+") as file:
                    portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except (OSError, portalocker.LockException):  # It is in use, belongs to another user, or was just removed.
            continue
        shutil.rmtree(folder, ignore_errors=True)

"""Read large sets of rows in chunks, so that processes can share them, and an interrupted run can resume.

A chunk holds the same rows for any number of processes, and one process does all of its work. So the batches, and the
results down to the last bit, do not depend on the number of processes.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset

from .arrow_files import count_arrow_rows
from .file_names import INPUT_SUFFIXES, is_zipped, suffix_of
from .files import file_tables, lines_of, opened, reading
from .row_blocks import as_rows
from .vector_files import check_row_count, open_vectors, parts_with_vectors

FIRST = 10_000  # rows of a streamed set that are read before the training
CHUNK = 512  # rows: eight batches can be sorted by length, and a killed process loses little work


class Chunk(NamedTuple):
    """Consecutive rows of a file."""

    first: int  # number of the first row in the file, from 0
    rows: Dataset


def read_chunks(
    data: str,
    split: str = "train",
    text_column: str = "text",
    encoding: str | None = None,
    vector_files: Sequence[str] = (),
) -> Iterator[Chunk]:
    """Yield the rows that `files.load_rows` loads, in their order, or the rows of a .txt file with one text per line.

    At most a few thousand rows are in memory at a time, and nothing is stored on disk. (A .json file that holds one
    array is read whole.) An error in a row is raised when the row is reached.

    Args:
        data: The name of a file, or the id of a data set on the Hub.
        split: The split of the data set.
        text_column: The name of the only column that the rows of a .txt file get.
        encoding: The encoding of a .txt or CSV file; None for UTF-8.
        vector_files: NumPy files with a row for each row. They become columns, under their names.

    Raises:
        ValueError: The file has an unknown suffix, is damaged, or has a different encoding; or a NumPy file cannot be
            read, or has more or fewer rows.
        OSError: There is neither a file nor a data set of this name, or no such NumPy file.
    """
    parts = map(as_rows, _tables(data, split, text_column, encoding))
    return _numbered(parts_with_vectors(parts, vector_files, data))


def _tables(data: str, split: str, text_column: str, encoding: str | None) -> Iterator[pa.Table]:
    """Yield the rows that `read_chunks` yields, without NumPy files."""
    with reading(data, encoding, INPUT_SUFFIXES):
        if not Path(data).is_file():
            streamed = load_dataset(data, split=split, streaming=True)
            yield from streamed.with_format("arrow").iter(batch_size=CHUNK)
        elif suffix_of(data) == ".txt":
            with opened(data) as file:
                yield from _tables_of_texts(lines_of(file, encoding), text_column)
        else:
            yield from file_tables(data, CHUNK, encoding)


def check_vector_counts(data: str, encoding: str | None, vector_files: Sequence[str]) -> None:
    """Check that NumPy files have a row for each row of a file, if these can be counted quickly. See `read_chunks`."""
    arrays = {file: open_vectors(file) for file in vector_files}
    expected = count_rows(data, encoding=encoding) if arrays else None
    if expected is not None:
        for file, array in arrays.items():
            check_row_count(file, array, expected, data)


def load_first(
    data: str, split: str = "train", encoding: str | None = None, vector_files: Sequence[str] = ()
) -> Dataset:
    """Load the first `FIRST` rows of a file or of a data set on the Hub. Nothing is stored on disk.

    Args, Raises:
        As for `read_chunks`. A data set without rows is a ValueError.
    """
    check_vector_counts(data, encoding, vector_files)
    chunks = read_chunks(data, split, encoding=encoding, vector_files=vector_files)
    tables = [rows.data.table for _, rows in first_of(chunks, FIRST)]
    if not tables:
        raise ValueError(f"{data} has no rows.")
    return as_rows(pa.concat_tables(tables, promote_options="permissive"))


def chunks_of_texts(texts: Iterable[str], text_column: str, size: int | None = None) -> Iterator[Chunk]:
    """Yield texts as rows with one column. Texts are taken from the iterable only when their chunk is needed.

    Args:
        texts: The texts.
        text_column: The name of the column.
        size: Number of rows in a chunk; None for `CHUNK`.
    """
    return _numbered(map(as_rows, _tables_of_texts(texts, text_column, size)))


def _tables_of_texts(texts: Iterable[str], text_column: str, size: int | None = None) -> Iterator[pa.Table]:
    """Yield texts as tables with one column. See `chunks_of_texts`."""
    texts = iter(texts)
    parts = iter(lambda: list(islice(texts, size or CHUNK)), [])
    return (pa.table({text_column: pa.array(chunk, pa.string())}) for chunk in parts)


def count_rows(data: str, split: str = "train", encoding: str | None = None, limit: int | None = None) -> int | None:
    """Return how many rows `read_chunks` yields, at most `limit`; None if it takes long to find out.

    A Parquet or Arrow file holds the number. In a CSV file, records are counted, because a text in quotes may have
    several lines. In other files, lines are counted. A compressed file is not read for this.
    """
    path, suffix = Path(data), suffix_of(data)
    if not path.is_file() or is_zipped(data) or suffix == ".json":
        return limit if limit is not None and not path.is_file() else None
    try:
        if suffix == ".parquet":
            rows = pq.read_metadata(path).num_rows
        elif suffix in (".arrow", ".feather"):
            rows = count_arrow_rows(data)
        elif suffix == ".csv":
            rows = sum(map(len, file_tables(data, CHUNK, encoding)))
        else:
            with path.open("rb") as file:
                rows = sum(1 for line in file if suffix == ".txt" or line.strip())
    except (OSError, ValueError):  # `read_chunks` will say what is wrong, after the rows before it.
        return None
    return rows if limit is None else min(rows, limit)


def first_of(chunks: Iterable[Chunk], limit: int | None) -> Iterator[Chunk]:
    """Yield the chunks of the first `limit` rows; all chunks if it is None. No later chunk is read."""
    for first, rows in chunks:
        yield Chunk(first, rows if limit is None else rows.select(range(min(len(rows), limit - first))))
        if limit is not None and first + len(rows) >= limit:
            return


def _numbered(parts: Iterable[Dataset]) -> Iterator[Chunk]:
    """Yield consecutive rows as chunks."""
    first = 0
    for rows in parts:
        yield Chunk(first, rows)
        first += len(rows)


def spread(row_count: int, has_vector: np.ndarray | None = None) -> list[np.ndarray]:
    """Return random, sorted parts of all row numbers, of similar size: int64, at most CHUNK.

    If vectors are shuffled within such a part, a row gets the vector of a row from anywhere in the set, even if the set
    is sorted. No part has exactly one row with a vector, which could not be shuffled, unless the set has only one.

    Args:
        row_count: Number of rows in the set.
        has_vector: bool (rows,), which rows have a vector; None if all have one.
    """
    order, number = np.random.default_rng(0).permutation(row_count), -(-row_count // CHUNK)
    if has_vector is None or has_vector.all():
        return [np.sort(part) for part in np.array_split(order, number)]
    with_vector, without = order[has_vector[order]], order[~has_vector[order]]
    shares = max(1, min(number, len(with_vector) // 2))
    parts = [with_vector[share::shares] for share in range(shares)] + [order[:0]] * (number - shares)
    bounds = np.cumsum([-(-row_count // number) - len(part) for part in parts])[:-1]
    return [np.sort(np.concatenate(pair)) for pair in zip(parts, np.split(without, bounds), strict=True)]

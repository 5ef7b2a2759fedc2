"""Large sets: read chunk by chunk, shared among processes, and written so that an interrupted run can go on.

A chunk is the same rows whatever the number of processes, and the work of one of them, whole. So batches, and with them
the last bit of a number, are those of a single process.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, load_dataset

from .files import FILE_KINDS, file_tables, kind_of, lines_of, opened, reading

CHUNK = 512  # rows: eight batches to sort by length, and the work that a process loses when it is killed


class Chunk(NamedTuple):
    """Rows that follow each other, and the number of the first of them in their file."""

    first: int
    rows: Dataset


def read_chunks(
    data: str, split: str = "train", text_column: str = "text", encoding: str | None = None
) -> Iterator[Chunk]:
    """The rows of `files.load_rows`, in their order; or of a .txt file, a row a line, in column `text_column`.

    Only some thousands of rows are in memory at a time, and nothing is kept on disk. (A .json that is one array is read
    whole.) What is wrong with a row is found when it is reached.

    Args:
        encoding: of a .txt or CSV file; None for UTF-8.

    Raises:
        ValueError: the file is of another kind, or damaged, or in another encoding.
        OSError: there is neither such a file nor such a data set.
    """
    with reading(data, encoding, [*FILE_KINDS, ".txt"]):
        if not Path(data).is_file():
            streamed = load_dataset(data, split=split, streaming=True)
            yield from _numbered(map(Dataset, streamed.with_format("arrow").iter(batch_size=CHUNK)))
        elif kind_of(data) == ".txt":
            with opened(data) as file:
                yield from chunks_of_texts(lines_of(file, encoding), text_column)
        else:
            yield from _numbered(map(Dataset, file_tables(data, CHUNK, encoding)))


def chunks_of_texts(texts: Iterable[str], text_column: str) -> Iterator[Chunk]:
    """Texts as rows of one column; no more of them are taken than a chunk needs."""
    texts = iter(texts)
    rows = iter(lambda: list(islice(texts, CHUNK)), [])
    return _numbered(Dataset(pa.table({text_column: pa.array(chunk, pa.string())})) for chunk in rows)


def _numbered(parts: Iterable[Dataset]) -> Iterator[Chunk]:
    first = 0
    for rows in parts:
        yield Chunk(first, rows)
        first += len(rows)


def spread(rows: int, having: np.ndarray | None = None) -> list[np.ndarray]:
    """All row numbers, int64, in parts of like size and at most CHUNK, each drawn from everywhere and then sorted.

    Vectors that are shuffled within a part come from the whole set then, however it is sorted.

    Args:
        having: bool (rows,), which rows have a vector; None for all. No part has a single one of them then, unless
            there is but one: it could not be shuffled.
    """
    drawn, number = np.random.default_rng(0).permutation(rows), -(-rows // CHUNK)
    if having is None or having.all():
        return [np.sort(part) for part in np.array_split(drawn, number)]
    with_vector, without = drawn[having[drawn]], drawn[~having[drawn]]
    shares = max(1, min(number, len(with_vector) // 2))
    parts = [with_vector[share::shares] for share in range(shares)] + [drawn[:0]] * (number - shares)
    room = np.cumsum([-(-rows // number) - len(part) for part in parts])[:-1]
    return [np.sort(np.concatenate(pair)) for pair in zip(parts, np.split(without, room), strict=True)]

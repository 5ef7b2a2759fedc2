"""Read columns of a large set in blocks, so that it is never whole in memory."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
from datasets import Dataset

BLOCK = 8192  # rows of a large set that are in memory at a time
VECTOR_BLOCK = 512  # the same for rows with their vectors


def blocks(rows: Dataset, columns: Sequence[str], size: int = BLOCK) -> Iterator[pa.Table]:
    """Yield columns of the rows as Arrow tables of at most `size` rows, in the order of `columns`."""
    for table in rows.select_columns(list(columns)).with_format("arrow").iter(batch_size=size):
        yield table.select(list(columns))


def texts_of(rows: Dataset, column: str) -> Iterator[str]:
    """Yield the texts in a column, with only some thousands of them in memory at a time."""
    return (text for table in blocks(rows, [column]) for text in table.column(0).to_pylist())

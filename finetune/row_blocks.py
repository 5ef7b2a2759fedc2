"""Read columns of a large set in blocks, so that it is never whole in memory."""

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint

BLOCK = 8192  # rows of a large set that are in memory at a time
VECTOR_BLOCK = 512  # the same for rows with their vectors


def blocks(rows: Dataset, columns: Sequence[str], size: int = BLOCK) -> Iterator[pa.Table]:
    """Yield columns of the rows as Arrow tables of at most `size` rows, in the order of `columns`."""
    for table in rows.select_columns(list(columns)).with_format("arrow").iter(batch_size=size):
        yield table.select(list(columns))


def texts_of(rows: Dataset, column: str) -> Iterator[str]:
    """Yield the texts in a column, with only some thousands of them in memory at a time."""
    return (text for table in blocks(rows, [column]) for text in table.column(0).to_pylist())


def in_blocks(schema: pa.Schema, batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Yield the rows of batches in tables of `size` rows; the last one may have fewer. At least one table is yielded.

    Args:
        schema: The schema of the batches.
        batches: Consecutive rows.
        size: The rows of a table.
    """
    left, is_empty = schema.empty_table(), True
    for batch in batches:
        left = pa.concat_tables([left, pa.Table.from_batches([batch])])
        while len(left) >= size:
            yield left[:size]
            left, is_empty = left[size:], False
    if len(left) or is_empty:
        yield left


def as_rows(table: pa.Table) -> Dataset:
    """Return a table as rows."""
    # Without a fingerprint, datasets would hash all buffers of the table, of which its rows may be a small part.
    return Dataset(table, fingerprint=generate_random_fingerprint())


def check_text(rows: pa.Table | pa.RecordBatch) -> None:
    """Check that rows hold only text that is UTF-8.

    Raises:
        ValueError: They hold other text.
        pa.ArrowInvalid: They are damaged: the places of texts and lists may lie outside of memory.
    """
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        raise ValueError("it holds text that is not UTF-8. Convert it first") from None

"""Read Arrow files in blocks of rows: the IPC file format, which Feather files have too, and the IPC stream format."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from ..naming_t5fusion import first_line
from .row_blocks import check_text, in_blocks

FILE_MAGIC, OLD_FEATHER = b"ARROW1", b"FEA1"  # how a file of the IPC file format begins, and one of Feather version 1


def arrow_tables(file: str, rows: int) -> Iterator[pa.Table]:
    """Yield the rows of an Arrow file, `rows` at a time: at least one table, which may be empty.

    The file is mapped into memory. Only a record batch that is compressed is copied there whole.

    Raises:
        ValueError: The file is not an Arrow file, is damaged, or holds text that is not UTF-8.
    """
    with _opened(file) as (schema, batches):
        yield from in_blocks(schema, _checked(batches), rows)


def count_arrow_rows(file: str) -> int:
    """Return the number of rows in an Arrow file; ValueError if it cannot be read."""
    with _opened(file, pa.ipc.IpcReadOptions(included_fields=[0])) as (_, batches):  # One column is enough.
        return sum(batch.num_rows for batch in batches)


@contextmanager
def _opened(
    file: str, options: pa.ipc.IpcReadOptions | None = None
) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Open an Arrow file in either format, and yield its schema and its batches."""
    with pa.memory_map(file) as source:
        start = source.read(len(FILE_MAGIC))
        source.seek(0)
        if start.startswith(OLD_FEATHER):
            raise ValueError("it is a Feather file of version 1. Write it again with version 2")
        try:
            if start == FILE_MAGIC:
                reader = pa.ipc.open_file(source, options=options)
                yield reader.schema, map(reader.get_batch, range(reader.num_record_batches))
            else:
                stream = pa.ipc.open_stream(source, options=options)
                yield stream.schema, iter(stream)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"it is damaged, or is not an Arrow file ({first_line(error)})") from None


def _checked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the batches, after a check that nothing in them lies outside of memory."""
    for batch in batches:
        check_text(batch)
        yield batch

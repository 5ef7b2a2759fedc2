"""Read Parquet files in blocks of rows, whatever their row groups."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from .row_blocks import in_blocks

BUFFER = 2**20  # bytes of a column that pyarrow reads ahead


def parquet_tables(file: str, rows: int) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet file, `rows` at a time: at least one table, which may be empty."""
    # With `pre_buffer`, or without a `buffer_size`, pyarrow would read a whole row group into memory.
    with pa.OSFile(file) as source, pq.ParquetFile(source, pre_buffer=False, buffer_size=BUFFER) as parquet:
        # At the end of a row group, a batch may have fewer rows.
        yield from in_blocks(parquet.schema_arrow, parquet.iter_batches(rows), rows)

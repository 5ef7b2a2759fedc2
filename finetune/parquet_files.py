"""Read Parquet files in blocks of rows.

pandas writes up to a million rows into a row group, and the reader of datasets holds a row group in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ArrowBasedBuilder, BuilderConfig, Dataset, DatasetInfo, Features, Split, SplitGenerator

BLOCK = 2_000  # rows that `load_parquet` holds in memory at a time
BUFFER = 2**20  # bytes of a column that pyarrow reads ahead


def load_parquet(file: str) -> Dataset:
    """Return the rows of a Parquet file, copied into the cache of datasets.

    Raises:
        Exception: The file cannot be read, or the cache cannot be written. datasets and pyarrow raise many types.
    """
    state = Path(file).stat()
    builder = ParquetRows(file=str(Path(file).resolve()), size=state.st_size, changed=state.st_mtime_ns)
    builder.download_and_prepare()
    rows = builder.as_dataset(split=Split.TRAIN)
    assert isinstance(rows, Dataset)
    return rows


def parquet_tables(file: str, rows: int) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet file, `rows` at a time: at least one table, which may be empty."""
    # With `pre_buffer`, or without a `buffer_size`, pyarrow would read a whole row group into memory.
    with pa.OSFile(file) as source, pq.ParquetFile(source, pre_buffer=False, buffer_size=BUFFER) as parquet:
        left, is_empty = parquet.schema_arrow.empty_table(), True
        for batch in parquet.iter_batches(rows):  # At the end of a row group, a batch may have fewer rows.
            left = pa.concat_tables([left, pa.Table.from_batches([batch])])
            while len(left) >= rows:
                yield left[:rows]
                left, is_empty = left[rows:], False
    if len(left) or is_empty:
        yield left


@dataclass
class OneState(BuilderConfig):
    """A file in one state, by which datasets finds its copy in the cache."""

    file: str = ""
    size: int = 0  # bytes
    changed: int = 0  # nanoseconds since 1970


class ParquetRows(ArrowBasedBuilder):
    """The rows of one Parquet file, for the cache of datasets."""

    BUILDER_CONFIG_CLASS = OneState

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=Features.from_arrow_schema(pq.read_schema(self.config.file)))

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        return [SplitGenerator(name=Split.TRAIN, gen_kwargs={"file": self.config.file})]

    def _generate_tables(self, file: str) -> Iterator[tuple[int, pa.Table]]:
        yield from enumerate(parquet_tables(file, BLOCK))

"""Copy the rows of a Parquet or Arrow file into the cache of datasets, in blocks.

The reader of datasets holds a row group of a Parquet file in memory, and pandas writes up to a million rows into one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import ArrowBasedBuilder, BuilderConfig, Dataset, DatasetInfo, Features, Split, SplitGenerator

from .arrow_files import arrow_tables
from .file_names import suffix_of
from .parquet_files import parquet_tables

BLOCK = 2_000  # rows that are in memory at a time
TABLES = {".parquet": parquet_tables, ".arrow": arrow_tables, ".feather": arrow_tables}  # what reads a file, by suffix


def load_cached(file: str) -> Dataset:
    """Return the rows of a file, copied into the cache of datasets.

    Raises:
        Exception: The file cannot be read, or the cache cannot be written. datasets and pyarrow raise many types.
    """
    state = Path(file).stat()
    builder = FileRows(file=str(Path(file).resolve()), size=state.st_size, changed=state.st_mtime_ns)
    builder.download_and_prepare()
    rows = builder.as_dataset(split=Split.TRAIN)
    assert isinstance(rows, Dataset)
    return rows


def tables_of(file: str, rows: int) -> Iterator[pa.Table]:
    """Yield the rows of a file, `rows` at a time: at least one table, which may be empty."""
    return TABLES[suffix_of(file)](file, rows)


@dataclass
class OneState(BuilderConfig):
    """A file in one state, by which datasets finds its copy in the cache."""

    file: str = ""
    size: int = 0  # bytes
    changed: int = 0  # nanoseconds since 1970


class FileRows(ArrowBasedBuilder):
    """The rows of one file, for the cache of datasets."""

    BUILDER_CONFIG_CLASS = OneState

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=Features.from_arrow_schema(next(tables_of(self.config.file, 1)).schema))

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        return [SplitGenerator(name=Split.TRAIN, gen_kwargs={"file": self.config.file})]

    def _generate_tables(self, file: str) -> Iterator[tuple[int, pa.Table]]:
        yield from enumerate(tables_of(file, BLOCK))

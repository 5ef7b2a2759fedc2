"""Print the rows and texts of `t5fusion generate` on standard output."""

import sys
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa
from datasets import Dataset

from .data import Columns
from .output_columns import all_vector_columns, output_column, report_output_column, table_without
from .output_formats import json_line
from .streaming import Chunk


class StandardOutput:
    """Prints rows with their generated texts as JSON lines, without the vectors.

    It has the methods of `OutputFile`.

    Args:
        columns: The columns that are read from the rows.
    """

    def __init__(self, columns: Columns):
        self.columns = columns
        self.earlier_rows = self.new_rows = 0

    @property
    def rows(self) -> int:
        """The number of rows that are printed."""
        return self.new_rows

    def count_written(self, rows: Dataset) -> int:
        """Return 0: no earlier run is resumed."""
        return 0

    def append(self, rows: Dataset, outputs: Sequence[str | None]) -> None:
        """Print the lines of rows."""
        name = output_column(rows.column_names)
        if self.new_rows == 0:
            report_output_column(name)
        table = table_without(rows, all_vector_columns(rows, self.columns))
        table = table.append_column(name, pa.array(outputs, pa.string()))
        sys.stdout.buffer.write(b"".join(map(json_line, table.to_pylist())))
        sys.stdout.buffer.flush()
        self.new_rows += len(outputs)

    def finish(self, reread: Callable[[], Iterable[Chunk]] | None) -> None:
        """Do nothing: all lines are printed."""

    def close(self) -> None:
        """Do nothing."""

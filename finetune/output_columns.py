"""The columns in an output of `t5fusion generate`: the columns of the rows, and one for the generated texts."""

from collections.abc import Sequence
from itertools import chain, count

import pyarrow as pa
from datasets import Dataset

from ..common.console import say
from .column_vectors import is_list
from .data import Columns, vector_columns

OUTPUT_COLUMN = "output"


def output_column(names: Sequence[str]) -> str:
    """Return a name for the column of generated texts that no other column has: "output", "output_2" and so on."""
    candidates = chain([OUTPUT_COLUMN], (f"{OUTPUT_COLUMN}_{number}" for number in count(2)))
    return next(name for name in candidates if name not in names)


def report_output_column(name: str) -> None:
    """Print the name of the column of generated texts unless it is "output"."""
    if name != OUTPUT_COLUMN:
        say(f"The input has a column {OUTPUT_COLUMN!r}; the generated texts are in column {name!r}.")


def table_without(rows: Dataset, dropped: Sequence[str] = ()) -> pa.Table:
    """Return rows as a table, without the columns in `dropped`."""
    table = rows.with_format("arrow")[:]
    return table.select([name for name in table.column_names if name not in dropped])


def all_vector_columns(rows: Dataset, columns: Columns) -> list[str]:
    """Return the columns of vectors: those with a type of vectors (see `vector_columns`), and those that are named.

    Named columns of single numbers or of texts are left out, because every file can hold them.
    """
    types = {field.name: field.type for field in rows.features.arrow_schema}
    named = [name for name in columns.by_kind.values() if name in types and _is_list_or_null(types[name])]
    return list(dict.fromkeys([*vector_columns(rows), *named]))


def _is_list_or_null(type_: pa.DataType) -> bool:
    """Return whether a type is a type of lists, or null, the type of a column in which all of these rows are null."""
    return is_list(type_) or pa.types.is_null(type_)

"""The rows of a data set: their columns, which of them have text and vectors, which are held out."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from ..common.console import say

HELD_OUT_ONE_IN = 10


class Columns(NamedTuple):
    """The names of a data set's columns, each None where it is not used."""

    text: str  # the input text
    target: str | None = None  # the text to write
    lexical: str | None = None  # the text that the vector is made of
    vector: str | None = None  # the vector itself

    @property
    def texts(self) -> list[str]:
        """The columns that hold text."""
        return [name for name in self[:3] if name is not None]


def hub_data_set(data: str) -> str | None:
    """`data` if it is the id of a data set on the Hub; None for a file or folder."""
    return None if Path(data).exists() else data


def check_columns(rows: Dataset, columns: Sequence[str | None]) -> None:
    """ValueError, with the columns there are, unless all of `columns` (None aside) are among them."""
    for column in columns:
        if column is not None and column not in rows.column_names:
            raise ValueError(f"there is no column {column!r}; the columns are {', '.join(rows.column_names)}.")


def check_texts(rows: Dataset, columns: Sequence[str]) -> None:
    """ValueError if one of `columns` holds something else than text, numbers say."""
    for column in columns:
        kind = getattr(rows.features[column], "dtype", "list")
        if kind not in ("string", "large_string", "string_view", "null"):
            raise ValueError(f"column {column!r} holds values of type {kind}; expected text.")


def rows_with_text(rows: Dataset, columns: Sequence[str]) -> list[int]:
    """The numbers of the rows whose `columns` all hold text, which is not white space alone.

    Raises:
        ValueError: as `check_texts` says.
    """
    check_texts(rows, columns)
    held = zip(*(rows[column] for column in columns), strict=True)
    return [row for row, texts in enumerate(held) if all(text and text.strip() for text in texts)]


def without_empty(rows: Dataset, columns: Sequence[str]) -> tuple[Dataset, int]:
    """The rows whose `columns` all hold text, and the number of those left out; raises as `rows_with_text` does."""
    kept = rows_with_text(rows, columns)
    return rows.select(kept), len(rows) - len(kept)


def with_all_texts(rows: Dataset, columns: Columns) -> Dataset:
    """The rows that have text in every column of texts; a line says how many were left out.

    Raises:
        ValueError: a column is missing, or holds something else than text; or no row is left.
    """
    check_columns(rows, columns)
    rows, dropped = without_empty(rows, columns.texts)
    if dropped:
        say(f"{dropped} {'row' if dropped == 1 else 'rows'} with an empty text left out; {len(rows)} remain.")
    if len(rows) == 0:
        raise ValueError("no row has text in every column that is used.")
    return rows


def vector_columns(rows: Dataset) -> list[str]:
    """The columns that hold lists of floating point numbers, by their type; lists of integers may be anything."""

    def is_vector(kind: pa.DataType) -> bool:
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            return False
        return pa.types.is_floating(kind.value_type) or is_vector(kind.value_type)

    return [field.name for field in rows.features.arrow_schema if is_vector(field.type)]


def hold_out(rows: Dataset, columns: Columns) -> tuple[Dataset, Dataset]:
    """About nine tenths to train on and one to validate with; all rows of one text are on the same side.

    Where vectors come from a column of their own, texts may be prompts that many rows share. If there are more than
    twice as many pairs of a text and a vector (or the text that it is made of) as there are texts, a pair takes the
    place of the text: all rows of one pair are on the same side, and it is said. In all other cases the split depends
    on the texts alone, so that it is the same with and without vectors.

    Raises:
        ValueError: there are too few different texts or pairs; or a vector is none, as `given_vectors` says.
    """
    texts = [str(text).strip() for text in rows[columns.text]]
    keys, told_by = texts, "text"
    # where there are fewer rows than that, the pairs, for which all vectors are read, cannot be that many
    if (columns.lexical or columns.vector) and (len(rows) > 2 * _distinct(texts) or _distinct(texts) == 1):
        others = _vector_keys(rows, columns.vector) if columns.vector else rows[columns.lexical]
        pairs = [f"{text}\n{other}" for text, other in zip(texts, others, strict=True)]
        if _distinct(pairs) > 2 * _distinct(texts) or _distinct(pairs) == 1:
            keys, told_by = pairs, f"text and {repr(columns.lexical) if columns.lexical else 'vector'}"
    sides = {key: is_held_out(key, HELD_OUT_ONE_IN) for key in keys}
    if len(set(sides.values())) < 2 or _distinct(keys) < min(HELD_OUT_ONE_IN, len(rows) / 2):
        raise ValueError(f"{_why_not_split(keys, told_by)}. Name a file with --validation.")
    if keys is not texts:
        kinds, word = _distinct(texts), "text" if _distinct(texts) == 1 else "texts"
        say(f"{len(rows)} rows have {kinds} different {word}; those to validate with are chosen by {told_by}.")
    held_out = np.array([sides[key] for key in keys], dtype=bool)
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


def _vector_keys(rows: Dataset, column: str) -> list[str]:
    """For each row what is the same where its vector is the same."""
    vectors = read_vectors(rows, column)
    return ["" if vector is None else hashlib.md5(vector.numpy().tobytes()).hexdigest() for vector in vectors]


def _distinct(keys: Sequence[str]) -> int:
    return len({key.lower() for key in keys})  # `is_held_out` does not see case


def _why_not_split(keys: Sequence[str], told_by: str) -> str:
    if (kinds := _distinct(keys)) == len(keys):
        return f"{kinds} rows are too few to hold some out for validation"
    if kinds == 1:
        return f"all {len(keys)} rows have the same {told_by}: none can be held out to validate with"
    kind = "texts" if told_by == "text" else f"pairs of {told_by}"
    return f"{len(keys)} rows have {kinds} different {kind}, too few to hold some out for validation"


def given_vectors(
    rows: Dataset, column: str, called: Callable[[int], str] = "row {}".format
) -> list[torch.Tensor | None]:
    """The vector of each row in a column, float32 (dim,); None where it is null, missing or empty.

    Args:
        called: what the message calls a row, of its index in `rows`.

    Raises:
        ValueError: naming the first row that holds no vector of the width of those before it.
    """
    return list(read_vectors(rows, column, called))


def read_vectors(
    rows: Dataset, column: str, called: Callable[[int], str] = "row {}".format
) -> Iterator[torch.Tensor | None]:
    """`given_vectors` row by row; some hundreds are in memory at a time."""
    width = None
    values = (value for part in rows.select_columns([column]).iter(batch_size=512) for value in part[column])
    for index, value in enumerate(values):
        vector = _vector(value)
        if vector is None and value is not None and value != []:
            raise _no_vector(called(index), column, value, width)
        if vector is not None and vector.size != (width := width or vector.size):
            raise _no_vector(called(index), column, value, width)
        yield None if vector is None else torch.from_numpy(vector)


def _vector(value) -> np.ndarray | None:
    """`value` as finite numbers, float32 (dim,); None if it is not that."""
    if not isinstance(value, list) or not value or any(isinstance(item, Sequence) for item in value):
        return None
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        return None
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        array = array.astype(np.float32)
    return array if np.isfinite(array).all() else None


def _no_vector(row: str, column: str, value, width: int | None) -> ValueError:
    expected = f"{width} finite numbers, as in the first row with one" if width else "finite numbers"
    return ValueError(f"{row}, column {column!r}: {_found(value)}; expected one vector of {expected}.")


def _found(value) -> str:
    """What stands in the place of a vector."""
    kinds = {str: "a text", bytes: "binary data", bool: "a single truth value", int: "a single number"}
    if not isinstance(value, list):
        return {**kinds, float: "a single number"}.get(type(value), f"a {type(value).__name__}")
    if any(isinstance(item, list) for item in value):
        return f"{len(value)} vectors (several in a row go through the Python interface)"
    if not all(isinstance(item, (int, float)) for item in value):
        return f"{len(value)} values, not all of them numbers"
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(value, dtype=np.float64).astype(np.float32)).all()
    return f"{len(value)} numbers" + ("" if finite else ", not all of them finite in float32")


def is_held_out(name: str, one_in: int) -> bool:
    """Whether every row of this name belongs to the held-out part: a pure function of the name."""
    return int(hashlib.md5(name.lower().encode()).hexdigest(), 16) % one_in == 0


def vectors_by_text(rows: Dataset, columns: Columns) -> Iterator[torch.Tensor | None]:
    """`read_vectors` of the vector column; an error names a row by its text."""
    return read_vectors(rows, str(columns.vector), lambda index: f"the row of {rows[index][columns.text]!r}")


def vector_width(rows: Dataset, columns: Columns) -> int:
    """The width of the vectors in the vector column: that of the first row which has one."""
    width = next((len(each) for each in vectors_by_text(rows, columns) if each is not None), None)
    if width is None:
        raise ValueError(f"column {columns.vector!r} holds no vector in any of {len(rows)} rows.")
    return width


def rows_having_vector(rows: Dataset, columns: Columns) -> np.ndarray:
    """Which rows have a vector in the vector column, bool (rows,); ValueError if none has."""
    vector_width(rows, columns)
    return np.array([each is not None for each in vectors_by_text(rows, columns)])

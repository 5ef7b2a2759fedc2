"""Check and split the rows of a data set: their columns, texts and vectors, and the rows that are held out."""

import hashlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from ..common.console import say
from ..processing_t5fusion import MINILM
from ..rows_t5fusion import LARGEST_NORM, SMALLEST_NORM, has_readable_norm
from .files import load_rows

HELD_OUT_ONE_IN = 10  # One row in so many is held out.
TEXT_DTYPES = ("string", "large_string", "string_view", "null")


class Columns(NamedTuple):
    """The names of a data set's columns; None for a column that is not used."""

    text: str  # the input text
    target: str | None = None  # the text to generate
    lexical: str | None = None  # the text that the encoder makes the vector from; if None, the input text
    vector: str | None = None  # the vector itself, a list of numbers

    @property
    def texts(self) -> list[str]:
        """The columns that hold text."""
        return [name for name in self[:3] if name is not None]


def hub_data_set(data: str) -> str | None:
    """Return `data` if it is the id of a data set on the Hub; None if it is a file or folder."""
    return None if Path(data).exists() else data


def check_columns(rows: Dataset, columns: Sequence[str | None], trained: Columns | None = None) -> None:
    """Check that the rows have the columns.

    Args:
        columns: Names of columns; None for a column that is not used. With `trained`, in the order of `Columns`.
        trained: The columns that the model was trained with, for the error.

    Raises:
        ValueError: A column is missing. The message lists the columns that exist.
    """
    for index, column in enumerate(columns):
        if column is None or column in rows.column_names:
            continue
        existing = f"the columns are {', '.join(rows.column_names)}"
        if trained is None or trained[index] != column:
            raise ValueError(f"there is no column {column!r}; {existing}.")
        kind = Columns._fields[index]
        raise ValueError(
            f"there is no column {column!r}, which the model was trained with as its {kind} column; {existing}. Name "
            f"the right one with --{kind}-column."
        )


def check_texts(rows: Dataset, columns: Sequence[str]) -> None:
    """Raise ValueError if one of `columns` holds anything but text, such as numbers."""
    for column in columns:
        dtype = getattr(rows.features[column], "dtype", "list")
        if dtype not in TEXT_DTYPES:
            raise ValueError(f"column {column!r} holds values of type {dtype}; expected text.")


def rows_with_text(rows: Dataset, columns: Sequence[str]) -> list[int]:
    """Return the numbers of the rows that have text in each of `columns`. White space alone is no text.

    Raises:
        ValueError: A column holds anything but text.
    """
    check_texts(rows, columns)
    texts_by_row = zip(*(rows[column] for column in columns), strict=True)
    return [row for row, texts in enumerate(texts_by_row) if all(text and text.strip() for text in texts)]


def without_empty(rows: Dataset, columns: Sequence[str]) -> tuple[Dataset, int]:
    """Return the rows that have text in each of `columns`, and how many rows were left out.

    Raises:
        ValueError: A column holds anything but text.
    """
    kept = rows_with_text(rows, columns)
    return rows.select(kept), len(rows) - len(kept)


def with_all_texts(rows: Dataset, columns: Columns) -> Dataset:
    """Return the rows that have text in each column of texts, and print how many were left out.

    Raises:
        ValueError: A column is missing or holds anything but text, or no row is left.
    """
    check_columns(rows, columns)
    rows, dropped = without_empty(rows, columns.texts)
    if dropped:
        say(f"{dropped} {'row' if dropped == 1 else 'rows'} with an empty text left out; {len(rows)} remain.")
    if len(rows) == 0:
        raise ValueError("no row has text in every column that is used.")
    return rows


def first_rows(rows: Dataset, limit: int | None) -> Dataset:
    """Return the first `limit` rows; all of them if it is None."""
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def load_split(
    data: str, columns: Columns, validation: str | None = None, encoder: str | None = None, encoding: str | None = None
) -> tuple[Dataset, Dataset]:
    """Return the rows to train on, and those to validate with. Rows without text are left out.

    Args:
        data: A file, or the id of a data set on the Hub.
        validation: A file or data set to validate with; if None, `hold_out` splits `data`.
        encoder: The encoder that the user named. If there is one, columns of vectors may stay unread.
        encoding: Encoding of CSV files; None for UTF-8.

    Raises:
        ValueError: The rows cannot be used or split, or they hold vectors that no option reads.
        OSError: There is neither a file nor a data set of this name.
    """
    rows = with_all_texts(load_rows(data, encoding=encoding), columns)
    if not (columns.lexical or columns.vector or encoder):
        _check_no_vectors(rows, data)
    if validation is None:
        return hold_out(rows, columns)
    return rows, with_all_texts(load_rows(validation, "validation", encoding), columns)


def _check_no_vectors(rows: Dataset, data: str) -> None:
    """Raise ValueError if the rows have columns of vectors, because no option reads them."""
    unread = vector_columns(rows)
    if unread:
        raise ValueError(
            f"{data} holds vectors in {'column' if len(unread) == 1 else 'columns'} {', '.join(map(repr, unread))}, "
            f"which no option reads. Give --vector-column {shlex.quote(unread[0])}; or --encoder {MINILM} to make the "
            "vectors from the text."
        )


def vector_columns(rows: Dataset) -> list[str]:
    """Return the columns whose type is lists of floating point numbers. Lists of integers may mean something else."""

    def is_vector(kind: pa.DataType) -> bool:
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            return False
        return pa.types.is_floating(kind.value_type) or is_vector(kind.value_type)

    return [field.name for field in rows.features.arrow_schema if is_vector(field.type)]


def hold_out(rows: Dataset, columns: Columns) -> tuple[Dataset, Dataset]:
    """Split rows: about nine tenths to train on, one tenth to validate with. All rows of a text go to the same side.

    There is one exception. If vectors (or the texts that they are made from) have a column of their own, the input
    texts may be prompts that many rows share. If there are more than twice as many different pairs of text and vector
    as different texts, rows are split by pair: all rows of a pair go to the same side, and a message says so. In all
    other cases the split depends on the texts alone, so it is the same with and without vectors.

    Raises:
        ValueError: There are too few different texts or pairs, or a vector is invalid (see `given_vectors`).
    """
    texts = [str(text).strip() for text in rows[columns.text]]
    keys, key_name = texts, "text"
    # Reading all vectors takes time, so it is left out where the number of rows already excludes that many pairs.
    if (columns.lexical or columns.vector) and (len(rows) > 2 * _count_distinct(texts) or _count_distinct(texts) == 1):
        others = _vector_keys(rows, columns.vector) if columns.vector else rows[columns.lexical]
        pairs = [f"{text}\n{other}" for text, other in zip(texts, others, strict=True)]
        if _count_distinct(pairs) > 2 * _count_distinct(texts) or _count_distinct(pairs) == 1:
            keys, key_name = pairs, f"text and {repr(columns.lexical) if columns.lexical else 'vector'}"
    sides = {key: is_held_out(key, HELD_OUT_ONE_IN) for key in keys}
    if len(set(sides.values())) < 2 or _count_distinct(keys) < min(HELD_OUT_ONE_IN, len(rows) / 2):
        raise ValueError(f"{_why_not_split(keys, key_name)}. Name a file with --validation.")
    if keys is not texts:
        number, word = _count_distinct(texts), "text" if _count_distinct(texts) == 1 else "texts"
        say(f"{len(rows)} rows have {number} different {word}; those to validate with are chosen by {key_name}.")
    held_out = np.array([sides[key] for key in keys], dtype=bool)
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


def _vector_keys(rows: Dataset, column: str) -> list[str]:
    """Return a string for each row. Rows with equal vectors get equal strings."""
    vectors = read_vectors(rows, column)
    return ["" if vector is None else hashlib.md5(vector.numpy().tobytes()).hexdigest() for vector in vectors]


def _count_distinct(keys: Sequence[str]) -> int:
    """Return how many keys differ, without regard to case, which `is_held_out` ignores as well."""
    return len({key.lower() for key in keys})


def _why_not_split(keys: Sequence[str], key_name: str) -> str:
    """Return why no rows can be held out: there are too few rows, texts or pairs."""
    if (number := _count_distinct(keys)) == len(keys):
        return f"{number} rows are too few to hold some out for validation"
    if number == 1:
        return f"all {len(keys)} rows have the same {key_name}, so no row can be held out to validate with"
    word = "texts" if key_name == "text" else f"pairs of {key_name}"
    return f"{len(keys)} rows have {number} different {word}, too few to hold some out for validation"


def given_vectors(
    rows: Dataset, column: str, name_row: Callable[[int], str] = "row {}".format
) -> list[torch.Tensor | None]:
    """Return the vector of each row in a column, float32 (dim,); None if it is null, missing or empty.

    Args:
        rows: The rows.
        column: The column of vectors.
        name_row: Returns the name of a row for errors, by its index.

    Raises:
        ValueError: A value is no vector, or its width differs from that of earlier rows. The message names the row.
    """
    return list(read_vectors(rows, column, name_row))


def read_vectors(
    rows: Dataset, column: str, name_row: Callable[[int], str] = "row {}".format
) -> Iterator[torch.Tensor | None]:
    """Yield what `given_vectors` returns, with only some hundreds of rows in memory at a time."""
    width = None
    values = (value for part in rows.select_columns([column]).iter(batch_size=512) for value in part[column])
    for index, value in enumerate(values):
        vector = _vector(value)
        if vector is None and value is not None and value != []:
            raise _vector_error(name_row(index), column, value, width)
        if vector is not None and vector.size != (width := width or vector.size):
            raise _vector_error(name_row(index), column, value, width)
        yield None if vector is None else torch.from_numpy(vector)


def _vector(value) -> np.ndarray | None:
    """Return a value as float32 (dim,); None unless it is a list of finite numbers with a readable norm."""
    if not isinstance(value, list) or not value or any(isinstance(item, Sequence) for item in value):
        return None
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        return None
    return array.astype(np.float32) if has_readable_norm(array) else None


def _vector_error(row: str, column: str, value, width: int | None) -> ValueError:
    """Return the error for a value that is no vector, or not one of `width` numbers."""
    expected = f"{width} finite numbers, as in the first row with one" if width else "finite numbers"
    return ValueError(f"{row}, column {column!r}: {_describe(value)}; expected one vector of {expected}.")


def _describe(value) -> str:
    """Describe a value that is no vector, in a few words."""
    kinds = {str: "a text", bytes: "binary data", bool: "a single truth value", int: "a single number"}
    if not isinstance(value, list):
        return {**kinds, float: "a single number"}.get(type(value), f"a {type(value).__name__}")
    if any(isinstance(item, list) for item in value):
        return f"{len(value)} vectors (several vectors in a row need the Python interface)"
    if not all(isinstance(item, (int, float)) for item in value):
        return f"{len(value)} values, not all of them numbers"
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(np.asarray(value, dtype=np.float64).astype(np.float32)).all()
    if is_finite and not has_readable_norm(np.asarray(value)):
        norm = np.linalg.norm(np.asarray(value, dtype=np.float64))
        return f"{len(value)} numbers of Euclidean norm {norm:.3g}, outside {SMALLEST_NORM:g} to {LARGEST_NORM:g}"
    return f"{len(value)} numbers" + ("" if is_finite else ", not all of them finite in float32")


def is_held_out(name: str, one_in: int) -> bool:
    """Return whether the rows of a name are held out. This depends on the name alone, and ignores its case.

    Args:
        name: The name, or another text that the rows share.
        one_in: One name in so many is held out.
    """
    return int(hashlib.md5(name.lower().encode()).hexdigest(), 16) % one_in == 0


def _vectors_named_by_text(rows: Dataset, columns: Columns) -> Iterator[torch.Tensor | None]:
    """Yield the vectors in the vector column. Errors name a row by its text."""
    return read_vectors(rows, str(columns.vector), lambda index: f"the row of {rows[index][columns.text]!r}")


def vector_width(rows: Dataset, columns: Columns) -> int:
    """Return the width of the first vector in the vector column; ValueError if it holds no vector."""
    width = next((len(vector) for vector in _vectors_named_by_text(rows, columns) if vector is not None), None)
    if width is None:
        raise ValueError(f"column {columns.vector!r} holds no vector in any of {len(rows)} rows.")
    return width


def has_vector(rows: Dataset, columns: Columns) -> np.ndarray:
    """Return which rows have a vector in the vector column, bool (rows,); ValueError if no row has one."""
    vector_width(rows, columns)
    return np.array([vector is not None for vector in _vectors_named_by_text(rows, columns)])

"""Check and split the rows of a data set: their columns, texts and vectors, and the rows that are held out."""

import hashlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset

from ..common.console import say
from ..processing_t5fusion import MINILM
from ..rows_t5fusion import LARGEST_NORM, SMALLEST_NORM, has_readable_norm
from .files import load_rows

HELD_OUT_ONE_IN = 10  # One row in so many is held out.
BLOCK = 8192  # rows of a large set that are in memory at a time
VECTOR_BLOCK = 512  # the same for rows with their vectors
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


def blocks(rows: Dataset, columns: Sequence[str], size: int = BLOCK) -> Iterator[pa.Table]:
    """Yield columns of the rows as Arrow tables of at most `size` rows, in the order of `columns`."""
    for table in rows.select_columns(list(columns)).with_format("arrow").iter(batch_size=size):
        yield table.select(list(columns))


def texts_of(rows: Dataset, column: str) -> Iterator[str]:
    """Yield the texts in a column, with only some thousands of them in memory at a time."""
    return (text for table in blocks(rows, [column]) for text in table.column(0).to_pylist())


def rows_with_text(rows: Dataset, columns: Sequence[str]) -> list[int]:
    """Return the numbers of the rows that have text in each of `columns`. White space alone is no text.

    Raises:
        ValueError: A column holds anything but text.
    """
    return [int(row) for row in np.flatnonzero(_have_text(rows, columns))]


def _have_text(rows: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Return which rows have text in each of `columns`, bool (rows,); ValueError if a column holds anything else."""
    check_texts(rows, columns)
    texts_by_row = zip(*(texts_of(rows, column) for column in columns), strict=True)
    return np.fromiter((all(text and text.strip() for text in texts) for texts in texts_by_row), dtype=bool)


def without_empty(rows: Dataset, columns: Sequence[str]) -> tuple[Dataset, int]:
    """Return the rows that have text in each of `columns`, and how many rows were left out.

    Raises:
        ValueError: A column holds anything but text.
    """
    kept = _have_text(rows, columns)
    return (rows if kept.all() else rows.select(np.flatnonzero(kept))), int((~kept).sum())


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
    text_keys = _hashes(_stripped(rows, columns.text))
    keys, key_name, texts = text_keys, "text", _count_distinct(text_keys)
    # Reading all vectors takes time, so it is left out where the number of rows already excludes that many pairs.
    if (columns.lexical or columns.vector) and (len(rows) > 2 * texts or texts == 1):
        others = _vector_keys(rows, columns.vector) if columns.vector else texts_of(rows, str(columns.lexical))
        pairs = zip(_stripped(rows, columns.text), others, strict=True)
        pair_keys = _hashes(f"{text}\n{other}" for text, other in pairs)
        if _count_distinct(pair_keys) > 2 * texts or _count_distinct(pair_keys) == 1:
            keys, key_name = pair_keys, f"text and {repr(columns.lexical) if columns.lexical else 'vector'}"
    held_out = _held_out(keys)
    if held_out.all() or not held_out.any() or _count_distinct(keys) < min(HELD_OUT_ONE_IN, len(rows) / 2):
        raise ValueError(f"{_why_not_split(keys, key_name)}. Name a file with --validation.")
    if keys is not text_keys:
        word = "text" if texts == 1 else "texts"
        say(f"{len(rows)} rows have {texts} different {word}; those to validate with are chosen by {key_name}.")
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


def _stripped(rows: Dataset, column: str) -> Iterator[str]:
    """Yield the texts in a column without the white space around them."""
    return (str(text).strip() for text in texts_of(rows, column))


def _vector_keys(rows: Dataset, column: str) -> Iterator[str]:
    """Yield a string for each row. Rows with equal vectors get equal strings."""
    for vector in read_vectors(rows, column):
        yield "" if vector is None else hashlib.md5(vector.numpy().tobytes()).hexdigest()


def _hashes(names: Iterator[str]) -> np.ndarray:
    """Return the hash of each name, which ignores its case, as two numbers: uint64 (names, 2), high bits first.

    A large set has room for its hashes in memory, but not for its texts.
    """
    return np.frombuffer(b"".join(map(_hash, names)), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def _hash(name: str) -> bytes:
    return hashlib.md5(name.lower().encode()).digest()


def _count_distinct(keys: np.ndarray) -> int:
    """Return how many of the hashes of `_hashes` differ."""
    return len(np.unique(keys.view([("high", np.uint64), ("low", np.uint64)])))


def _held_out(keys: np.ndarray) -> np.ndarray:
    """Return which names are held out, one in `HELD_OUT_ONE_IN`: bool (names,), equal to `is_held_out` of each name.

    Args:
        keys: The hashes of the names, as `_hashes` returns them.
    """
    high, low = (keys % np.uint64(HELD_OUT_ONE_IN)).T
    return (high * np.uint64(2**64 % HELD_OUT_ONE_IN) + low) % np.uint64(HELD_OUT_ONE_IN) == 0


def _why_not_split(keys: np.ndarray, key_name: str) -> str:
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
    width, first, column_rows = None, 0, rows.select_columns([column])
    for table in blocks(rows, [column], VECTOR_BLOCK):
        vectors = _vectors_of_block(table.column(0), width)
        if vectors is None:  # Something is unusual, and maybe wrong: each value is looked at.
            values = column_rows[first : first + len(table)][column]
            vectors = list(_check_each(values, column, width, first, name_row))
        width = width or next((len(vector) for vector in vectors if vector is not None), None)
        first += len(table)
        yield from vectors


def _vectors_of_block(values: pa.ChunkedArray, width: int | None) -> list[torch.Tensor | None] | None:
    """Return what `read_vectors` yields for consecutive values of a column; None unless they are plainly valid.

    Args:
        values: The values.
        width: The width of earlier vectors; None if there are none.
    """
    kind = values.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return None
    if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        return None
    lists = values.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    numbers = lists.flatten()
    widths = set(lengths[lengths > 0].tolist()) | ({width} if width else set())
    if len(widths) != 1 or numbers.null_count:
        return None
    given = numbers.to_numpy(zero_copy_only=False).reshape(-1, widths.pop())
    exact = given.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    if not ((norms >= SMALLEST_NORM) & (norms <= LARGEST_NORM) | ~exact.any(axis=1)).all():
        return None
    vectors = iter(torch.from_numpy(given.astype(np.float32)))
    return [next(vectors) if length else None for length in lengths]


def _check_each(
    values: Sequence, column: str, width: int | None, first: int, name_row: Callable[[int], str]
) -> Iterator[torch.Tensor | None]:
    """Yield what `read_vectors` yields for some values of a column, and check one value after another.

    Args:
        values: The values.
        column: Name of the column, for errors.
        width: The width of earlier vectors; None if there are none.
        first: Index of the row of the first value.
        name_row: Returns the name of a row for errors, by its index.

    Raises:
        ValueError: A value is no vector, or has another width.
    """
    for index, value in enumerate(values, first):
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
    expected = f"{width} finite numbers, as in the first row that has a vector" if width else "finite numbers"
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

"""Read a column of vectors: lists of numbers, lists of such lists, single numbers, or any of these as JSON text."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset

from ..kinds_t5fusion import counted
from ..rows_t5fusion import LARGEST_NORM, SMALLEST_NORM, has_readable_norm
from .row_blocks import VECTOR_BLOCK, blocks

NameRow = Callable[[int], str]  # returns the name of a row for errors, by its index
MOST_SHOWN = 40  # the most characters of a text that an error quotes
NUMPY_TEXT = re.compile(r"\[+\s*[-+.\d][-+.\de]*\s+[-+.\d]")  # numbers without commas between them
OTHER_VALUES = {bytes: "binary data", bool: "a single truth value"}  # how errors call them


class NotFinite(ValueError):
    """A vector holds NaN, infinity, or null for a number that is missing."""


def read_vectors(
    rows: Dataset,
    column: str,
    name_row: NameRow = "row {}".format,
    is_scaled: bool = True,
    not_finite: list[int] | None = None,
    width: int | None = None,
) -> Iterator[torch.Tensor | None]:
    """Yield the vectors of each row in a column. Only some hundreds of rows are in memory at a time.

    The vectors are float32: (dim,) if a row has one, and (vectors, dim) if it has several. For a row without vectors
    (null, an empty list or an empty text), None is yielded.

    Args:
        rows: The rows.
        column: The column. It holds a list of numbers per row, a list of such lists, or a single number (a vector of
            one number); or any of these as JSON in a text, as in a CSV file.
        name_row: Returns the name of a row for errors, by its index.
        is_scaled: Whether the kind of the vectors has a scale. Without one, their norm must be 1e-6 to 1e18.
        not_finite: A list that gets the index of each row whose vectors hold NaN, infinity, or null for a number. For
            such a row, None is yielded. Without a list, it is an error.
        width: The expected width; None for that of the first vector here.

    Raises:
        NotFinite: Vectors hold NaN, infinity, or null for a number. It is a ValueError, and the message names the row.
        ValueError: A value holds no vectors, or their width is not the expected one. The message names the row.
    """
    first, column_rows = 0, rows.select_columns([column])
    for table in blocks(rows, [column], VECTOR_BLOCK):
        vectors = _vectors_of_block(table.column(0), width, is_scaled)
        if vectors is None:  # Something is unusual, and maybe wrong: each value is looked at.
            values = column_rows[first : first + len(table)][column]
            vectors = list(_read_each(values, column, width, first, name_row, is_scaled, not_finite))
        width = width or next((vector.shape[-1] for vector in vectors if vector is not None), None)
        first += len(table)
        yield from vectors


def is_list(type_: pa.DataType) -> bool:
    """Return whether an Arrow type is a type of lists."""
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _vectors_of_block(values: pa.ChunkedArray, width: int | None, is_scaled: bool) -> list[torch.Tensor | None] | None:
    """Return the vectors of consecutive rows, read all at once; None unless all of them are plainly valid.

    Args:
        values: The values.
        width: The width of earlier vectors; None if there are none.
        is_scaled: See `read_vectors`.
    """
    array, counts = values.combine_chunks(), None
    if is_list(array.type) and is_list(array.type.value_type):
        counts, array = _lengths(array), array.flatten()  # `counts`: the number of vectors in each row
    is_of_lists = is_list(array.type)
    number_type = array.type.value_type if is_of_lists else array.type
    if not (pa.types.is_floating(number_type) or pa.types.is_integer(number_type)):
        return None
    lengths = _lengths(array) if is_of_lists else array.is_valid().to_numpy(zero_copy_only=False).astype(int)
    numbers = array.flatten() if is_of_lists else array.drop_null()
    widths = set(lengths[lengths > 0].tolist()) | ({width} if width else set())
    if len(widths) != 1 or numbers.null_count or (counts is not None and not lengths.all()):
        return None
    given = numbers.to_numpy(zero_copy_only=False).reshape(-1, widths.pop())
    with np.errstate(over="ignore"):  # A number too large for float32 becomes infinite.
        vectors = torch.from_numpy(given.astype(np.float32))
    if not (vectors.isfinite().all() and (is_scaled or _have_readable_norms(given))):
        return None
    if counts is None:
        each = iter(vectors)
        return [next(each) if length else None for length in lengths]
    return [_one_or_several(part) for part in vectors.split(counts.tolist())]


def _lengths(lists: pa.Array) -> np.ndarray:
    """Return the length of each list, 0 for null: int (lists,)."""
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)


def _have_readable_norms(vectors: np.ndarray) -> bool:
    """Return whether all vectors, numbers (vectors, dim), have a norm that a model without a scale can read."""
    exact = vectors.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    return bool(((norms >= SMALLEST_NORM) & (norms <= LARGEST_NORM) | ~exact.any(axis=1)).all())


def _one_or_several(vectors: torch.Tensor) -> torch.Tensor | None:
    """Return the vectors of a row, (vectors, dim), or its only vector, (dim,); None if there are none."""
    return (vectors if len(vectors) > 1 else vectors[0]) if vectors.numel() else None


def _read_each(
    values: Sequence,
    column: str,
    width: int | None,
    first: int,
    name_row: NameRow,
    is_scaled: bool,
    not_finite: list[int] | None,
) -> Iterator[torch.Tensor | None]:
    """Read the vectors of values one by one, so that an error can name the row.

    Args:
        values: The values.
        column: Name of the column, for errors.
        width: The width of earlier vectors; None if there are none.
        first: Index of the row of the first value.
        name_row, is_scaled, not_finite: As for `read_vectors`.

    Raises:
        NotFinite, ValueError: As `read_vectors`.
    """
    for index, value in enumerate(values, first):
        try:
            numbers = _numbers_of(value)
            vectors = _readable(numbers, is_scaled)
            if vectors is not None and vectors.shape[-1] != (width := width or vectors.shape[-1]):
                raise ValueError(_describe(numbers))
        except ValueError as error:
            if not_finite is None or not isinstance(error, NotFinite):
                message = _vector_error(name_row(index), column, str(error), width, isinstance(value, str))
                error_type = NotFinite if isinstance(error, NotFinite) else ValueError
                raise error_type(message) from None
            not_finite.append(index)
            vectors = None
        yield vectors


def _numbers_of(value: Any) -> np.ndarray:
    """Return the numbers in a value of a column, float64 (dim,) or (vectors, dim); of size 0 for no vector.

    Raises:
        ValueError: It holds something else, which the message describes in a few words.
    """
    if isinstance(value, str):
        value = _read_text(value)
    if value is None:
        return np.zeros(0)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(OTHER_VALUES.get(type(value), f"a {type(value).__name__}"))
    is_several = any(isinstance(item, list) for item in value)
    for index, item in enumerate(value if is_several else ()):
        if not isinstance(item, list):
            raise ValueError(f"{_as_json(item)} at index {index}, between vectors")
    vectors = value if is_several else [value]
    others = {
        (row, place): number
        for row, vector in enumerate(vectors)
        for place, number in enumerate(vector)
        if not isinstance(number, (int, float, Decimal))
    }
    if others:
        # JSON has no NaN, and pandas writes null for it.
        error_type = NotFinite if all(number is None for number in others.values()) else ValueError
        (row, place), other = next(iter(others.items()))
        raise error_type(_misfit(_as_json(other), row, place, is_several))
    if len(set(map(len, vectors))) > 1:
        raise ValueError(f"{len(value)} vectors of unequal width")
    try:
        return np.asarray(value, dtype=np.float64)
    except OverflowError:  # an integer of hundreds of digits
        return np.asarray([[float(str(number)) for number in vector] for vector in vectors]).reshape(np.shape(value))


def _misfit(shown: str, row: int, place: int, is_several: bool) -> str:
    """Describe a value that is not a finite number, and say where in the vectors of its row it stands.

    Args:
        shown: The value, as the message shows it.
        row: The index of its vector in the row.
        place: Its index in the vector.
        is_several: Whether the row has a list of vectors.
    """
    return f"{shown} at index {place}" + (f" of vector {row}" if is_several else "")


def _as_json(value: Any) -> str:
    return _quoted(json.dumps(value, default=str))


def _quoted(text: str) -> str:
    """Return a text for an error, with at most `MOST_SHOWN` characters."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _read_text(text: str) -> Any:
    """Return the value of a JSON text, or None for an empty text. Also read a number such as .5, which JSON forbids.

    Raises:
        ValueError: It is something else.
    """
    text = text.strip()
    try:
        value = json.loads(text) if text else None
    except (ValueError, RecursionError):
        try:
            value = float(text)  # such as .5
        except ValueError:
            value = text
    if isinstance(value, str) and NUMPY_TEXT.match(value):
        raise ValueError(
            f"NumPy's text of an array, {_quoted(text)!r}, which may lack numbers: before `to_csv`, replace the column "
            "by `[json.dumps(vector.tolist()) for vector in column]`, or use `to_parquet`"
        )
    if isinstance(value, (str, dict)):
        raise ValueError(f"a text that is not a list of numbers, {_quoted(text)!r}")
    return value


def _readable(numbers: np.ndarray, is_scaled: bool) -> torch.Tensor | None:
    """Return the vectors of a row as `read_vectors` yields them.

    Raises:
        NotFinite: A number is not finite.
        ValueError: A vector has a norm that cannot be read. Either message describes the vectors.
    """
    if numbers.size == 0:
        return None
    with np.errstate(over="ignore"):
        vectors = torch.from_numpy(np.atleast_2d(numbers).astype(np.float32))
    if not vectors.isfinite().all():
        row, place = (~vectors.isfinite()).nonzero()[0].tolist()
        number = np.atleast_2d(numbers)[row, place]
        too_large = ", too large for float32," if np.isfinite(number) else ""
        raise NotFinite(_misfit(f"{number:g}{too_large}", row, place, numbers.ndim == 2))
    for vector in () if is_scaled else np.atleast_2d(numbers):
        if not has_readable_norm(vector):
            norm = np.linalg.norm(vector)
            numbers_of_vector = counted(len(vector), "number")
            raise ValueError(
                f"{numbers_of_vector} of Euclidean norm {norm:.3g}, outside {SMALLEST_NORM:g} to {LARGEST_NORM:g}"
            )
    return _one_or_several(vectors)


def _describe(numbers: np.ndarray) -> str:
    """Describe the numbers of a row, (dim,) or (vectors, dim), in a few words."""
    if numbers.ndim == 1:
        return counted(len(numbers), "number")
    return f"{counted(len(numbers), 'vector')} of {counted(numbers.shape[1], 'number')}"


def _vector_error(row: str, column: str, found: str, width: int | None, is_text: bool) -> str:
    """Return the message for a value that holds no vectors, or vectors of a wrong width."""
    as_first = ", as in the first row that has a vector"
    expected = f"{counted(width, 'finite number')}{as_first}" if width else "finite numbers"
    advice = " In a text, write them as JSON, such as [0.1, 2] or 3.5." if is_text else ""
    return f"{row}, column {column!r}: {found}; expected one vector of {expected}, or a list of such vectors.{advice}"

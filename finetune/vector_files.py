"""Vectors in NumPy files beside a table: row i of an array holds the vectors of row i of the table.

The arrays become columns of the rows, under the names of their files. No array is in memory as a whole.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..kinds_t5fusion import counted
from ..naming_t5fusion import first_line
from .row_blocks import BLOCK, as_rows

SAVE_AGAIN = "Save it with numpy.save, as float32, in the shape (rows, dim), (rows,) or (rows, vectors, dim)."


def open_vectors(file: str) -> np.ndarray:
    """Return the array in a NumPy file, mapped into memory: (rows, dim), (rows,) or (rows, vectors, dim).

    Raises:
        OSError: There is no such file.
        ValueError: The file is not a NumPy file, or its array holds no vectors.
    """
    if not Path(file).is_file():
        raise OSError(f"there is no file {file}; expected a NumPy file of vectors.")
    try:
        # numpy.load does the same, but takes a file without the mark of NumPy for a pickle.
        array = np.lib.format.open_memmap(file, mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as a NumPy file: {first_line(error)}. {SAVE_AGAIN}") from error
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise ValueError(f"{file} holds values of type {array.dtype}; expected numbers. {SAVE_AGAIN}")
    if array.ndim not in (1, 2, 3) or 0 in array.shape[1:]:
        raise ValueError(f"{file} holds an array of shape {array.shape}, which is no list of vectors. {SAVE_AGAIN}")
    return array


def with_vectors(rows: Dataset, files: Sequence[str], data: str) -> Dataset:
    """Return rows with a column for each NumPy file. The columns share the memory of the mapped files.

    Args:
        rows: All rows of `data`.
        files: The names of the NumPy files.
        data: The name of the file or data set of the rows, for errors.

    Raises:
        OSError: There is no such file.
        ValueError: A file cannot be read, or has more or fewer rows; or the rows have a column of its name.
    """
    arrays = {file: open_vectors(file) for file in files}
    for file, array in arrays.items():
        check_row_count(file, array, len(rows), data)
    columns = {file: _as_column(_in_row_order(array)) for file, array in arrays.items()}
    return _with_columns(rows, columns, data) if files else rows


def parts_with_vectors(parts: Iterable[Dataset], files: Sequence[str], data: str) -> Iterator[Dataset]:
    """Yield consecutive rows with a column for each NumPy file.

    Args:
        parts: All rows of `data`, in their order.
        files, data: As for `with_vectors`.

    Raises:
        OSError, ValueError: As `with_vectors`. An array with fewer rows is noticed when its last row is passed, and one
            with more rows at the end.
    """
    arrays, end = {file: open_vectors(file) for file in files}, 0
    for rows in parts:
        start, end = end, end + len(rows)
        for file, array in arrays.items():
            if len(array) < end:
                check_row_count(file, array, end, data, "at least ")
        # A copy, so that the chunk does not refer to the whole file.
        columns = {file: _as_column(_native(array[start:end])) for file, array in arrays.items()}
        yield _with_columns(rows, columns, data) if files else rows
    for file, array in arrays.items():
        check_row_count(file, array, end, data)


def check_row_count(file: str, array: np.ndarray, expected: int, data: str, at_least: str = "") -> None:
    """Raise ValueError if an array does not have a row for each row of `data`."""
    if len(array) != expected:
        raise ValueError(
            f"{file} holds {counted(len(array), 'row')}; expected {at_least}{expected}, one for each row of {data}. "
            "Save the vectors of all rows, in their order."
        )


def _with_columns(rows: Dataset, columns: dict[str, pa.Array], data: str) -> Dataset:
    """Return rows with further columns."""
    table = rows.data.table
    for name, values in columns.items():
        if name in table.column_names:
            raise ValueError(
                f"{data} has a column {name!r}, which is also the name of a NumPy file. Rename one of them."
            )
        table = table.append_column(name, values)
    return as_rows(table)


def _as_column(array: np.ndarray) -> pa.Array:
    """Return an array as a column of lists of numbers, or of lists of such lists. It shares the array's memory."""
    values = pa.array(array.reshape(-1))
    for size in reversed(array.shape[1:] or (1,)):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values


def _native(array: np.ndarray) -> np.ndarray:
    """Return a copy whose rows follow each other in memory, with numbers in this machine's byte order."""
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def _in_row_order(array: np.ndarray) -> np.ndarray:
    """Return an array as `_native` does, but mapped to a file: its own, or a temporary one without a name."""
    if array.flags.c_contiguous and array.dtype.isnative:
        return array
    with TemporaryFile() as file:
        ordered = np.memmap(file, array.dtype.newbyteorder("="), mode="w+", shape=array.shape)
    for start in range(0, len(array), BLOCK):
        ordered[start : start + BLOCK] = array[start : start + BLOCK]
    return ordered

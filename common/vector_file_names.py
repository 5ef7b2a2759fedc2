"""The names of NumPy files, which may stand where the name of a column of vectors is expected."""

from pathlib import Path


def is_vector_file(column: str) -> bool:
    """Return whether the name of a column is that of a NumPy file, which holds the vectors of each row."""
    return column.lower().endswith(".npy")


def without_folder(column: str) -> str:
    """Return the name of a NumPy file without its folder; the name of a column as it is."""
    return Path(column).name if is_vector_file(column) else column

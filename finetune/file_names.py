"""Tell the format of a file by its name. This module imports nothing slow, because the command line uses it."""

import csv
import gzip
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from ..common.errors import missing_column
from ..common.vector_file_names import is_vector_file

FILE_FORMATS = {  # by suffix
    ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "Arrow", ".feather": "Feather"
}  # fmt: skip
NEVER_ZIPPED = (".parquet", ".arrow", ".feather")  # the suffixes of files that are compressed inside, if at all
INPUT_SUFFIXES = (*FILE_FORMATS, ".txt")  # of the files that `generate` reads
TEXT_SUFFIXES = (".txt", ".csv")  # of the files that may have any encoding; JSON is always UTF-8
LOOKED_AT = 10_000  # rows of a JSONL file that `check_header` reads at most
OUTPUT_ENDINGS = (".jsonl", ".csv", ".parquet", ".jsonl.gz", ".csv.gz")


def suffix_of(data: str) -> str:
    """Return the suffix that decides how a file is read, in lower case and without .gz: "rows.CSV.gz" gives ".csv"."""
    path = Path(data)
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def is_zipped(data: str) -> bool:
    """Return whether a file's name ends in .gz."""
    return Path(data).suffix.lower() == ".gz"


def check_readable(data: str, encoding: str | None = None, suffixes: Iterable[str] = FILE_FORMATS) -> None:
    """Check that `data` is a file in a known format, or may be the id of a data set. Nothing is read.

    Args:
        data: The name of a file, or the id of a data set on the Hub.
        encoding: The encoding that the user named; None for none.
        suffixes: The suffixes of the files that can be read.

    Raises:
        ValueError: The file has a different suffix, is empty, or has no encoding to choose.
        OSError: There is no such file.
    """
    path, suffix = Path(data), suffix_of(data)
    is_file = path.is_file()
    if is_file and suffix in NEVER_ZIPPED and is_zipped(data):
        raise ValueError(f"{data} is a {suffix} file in a .gz file, which cannot be read. Decompress it.")
    if is_file and suffix not in suffixes:
        problem = f"is a {path.suffix} file" if path.suffix else "has no ending"
        raise ValueError(f"{data} {problem}; expected one of {', '.join(suffixes)}.")
    if not is_file and suffix in suffixes:
        raise OSError(f"there is no file {data}.")
    if is_file and path.stat().st_size == 0:
        raise ValueError(f"{data} is empty; expected rows.")
    if encoding and suffix not in TEXT_SUFFIXES:
        endings = " and ".join(TEXT_SUFFIXES)
        raise ValueError(
            f"an encoding was given for {data}; only {endings} files have one to choose. Leave the encoding out."
        )


def check_header(data: str, columns: Iterable[str | None], encoding: str | None = None) -> None:
    """Check that a CSV or JSONL file has these columns, if the beginning of the file shows it.

    A long JSONL file, a damaged file and a file in a different format pass. The code that later reads the whole file
    reports what is wrong with it.

    Args:
        data: The name of the file.
        columns: The names of the columns; None for a column that is not used. NumPy files are not looked for.
        encoding: The encoding of a CSV file; None for UTF-8.

    Raises:
        ValueError: A column is missing. The message lists the columns that exist.
    """
    names = _names_in_header(data, encoding)
    named = [column for column in columns if column is not None and not is_vector_file(column)]
    missing = next((column for column in named if column not in names), None)
    if names and missing is not None:
        raise missing_column(missing, names)


def _names_in_header(data: str, encoding: str | None) -> list[str]:
    """Return the names of the columns of a CSV or JSONL file; an empty list if its beginning does not show them."""
    suffix = suffix_of(data)
    if suffix not in (".csv", ".jsonl") or not Path(data).is_file():
        return []
    try:
        with (gzip.open if is_zipped(data) else open)(data, "rt", encoding=encoding or "utf-8-sig", newline="") as file:
            if suffix == ".csv":
                return next(filter(None, csv.reader(file, strict=True)), [])
            rows = [json.loads(line) for line in islice(file, LOOKED_AT + 1) if line.strip()]
        # A row of JSONL may lack a column that others have.
        return list(dict.fromkeys(name for row in rows for name in row)) if len(rows) <= LOOKED_AT else []
    except (OSError, ValueError, LookupError, TypeError, EOFError, csv.Error):
        return []


def check_ending(path: Path) -> None:
    """Raise ValueError unless a file's name ends in one of `OUTPUT_ENDINGS`."""
    ending = suffix_of(str(path)) + (".gz" if is_zipped(str(path)) else "")
    if ending not in OUTPUT_ENDINGS:
        problem = f"ends in {ending}" if ending else "has no ending"
        raise ValueError(f"{path} {problem}; expected one of {', '.join(OUTPUT_ENDINGS)}.")


def check_vector_files(columns: Iterable[str], data: str, validation: str | None = None) -> None:
    """Check that the NumPy files among the columns of vectors exist, and belong to the only file of rows.

    Args:
        columns: The names of columns of vectors.
        data: The file or data set to train on.
        validation: The file or data set to validate with; None if there is none.

    Raises:
        OSError: There is no such file.
        ValueError: There is a second file of rows.
    """
    for file in filter(is_vector_file, columns):
        if not Path(file).is_file():
            raise OSError(f"there is no file {file}; expected a NumPy file with a row for each row of {data}.")
        if validation is not None:
            raise ValueError(
                f"the vectors in {file} belong to the rows of {data}, so the rows of {validation} would have none. Put "
                "the vectors into a column of each file, or leave --validation out."
            )

"""Read the rows of a file or of a data set on the Hub. Errors say what is wrong with the file and what to do."""

import codecs
import csv
import gzip
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import pyarrow as pa
from datasets import Dataset, load_dataset

from ..kinds_t5fusion import counted
from ..naming_t5fusion import first_line
from .cached_rows import TABLES, load_cached, tables_of
from .file_names import FILE_FORMATS, check_readable, is_zipped, suffix_of
from .row_blocks import as_rows, check_text
from .vector_files import open_vectors, with_vectors

LONGEST_FIELD, MOST_COLUMNS = 10**7, 10_000  # If a CSV file has more, a quote or a line end is missing.
SPECIAL = set("$~%:")  # characters that have a meaning for fsspec and datasets in the name of a file


def load_rows(
    data: str, split: str = "train", encoding: str | None = None, vector_files: Sequence[str] = ()
) -> Dataset:
    """Load the rows of a JSONL, JSON, CSV, Parquet or Arrow file, or of a data set on the Hub.

    Args:
        data: The name of a file, or the id of a data set on the Hub.
        split: The split of the data set.
        encoding: The encoding of a CSV file; None for UTF-8.
        vector_files: NumPy files with a row for each row. They become columns, under their names.

    Raises:
        ValueError: The file has an unknown suffix, is damaged, or has a different encoding; or a NumPy file cannot be
            read, or has more or fewer rows.
        OSError: There is neither a file nor a data set of this name, or no such NumPy file.
    """
    for file in vector_files:  # They are checked first, because reading the rows may take minutes.
        open_vectors(file)
    with reading(data, encoding):
        rows = _load(data, split, encoding)
    return with_vectors(rows, vector_files, data)


def _load(data: str, split: str, encoding: str | None) -> Dataset:
    """Load the rows of a file or data set without NumPy files. Its errors do not name the file."""
    if not Path(data).is_file():
        return load_dataset(data, split=split)
    suffix = suffix_of(data)
    if suffix == ".csv" or (suffix not in TABLES and SPECIAL & set(data)):
        return _in_memory(data, encoding)
    try:
        if suffix in TABLES:
            rows = load_cached(data)
        else:
            rows = load_dataset(FILE_FORMATS[suffix], data_files=escape(data), split="train")
    except Exception as error:
        if not isinstance(error.__cause__ or error, OSError):
            raise
        return _in_memory(data, encoding)  # The cache of datasets cannot be written, but the file may be fine.
    check_text(rows.data.table)
    return rows


def _in_memory(data: str, encoding: str | None) -> Dataset:
    """Load the rows of a file without the cache of datasets."""
    return as_rows(pa.concat_tables(file_tables(data, 10_000, encoding), promote_options="permissive"))


def file_tables(data: str, size: int, encoding: str | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a file, `size` at a time: at least one table, which may be empty."""
    if suffix_of(data) == ".csv":
        yield from _csv_tables(data, size, encoding)
        return
    if suffix_of(data) in TABLES:
        for table in tables_of(data, size):
            check_text(table)
            yield table
        return
    with TemporaryDirectory() as folder:
        if SPECIAL & set(data):
            # The link has a name without special characters.
            link = Path(folder) / f"rows{suffix_of(data)}{'.gz' if is_zipped(data) else ''}"
            link.symlink_to(Path(data).absolute())
            data = str(link)
        options = {"data_files": escape(data), "split": "train", "cache_dir": folder}
        streamed = load_dataset(FILE_FORMATS[suffix_of(data)], streaming=True, **options)
        for table in streamed.with_format("arrow").iter(batch_size=size):
            check_text(table)
            yield table


@contextmanager
def reading(data: str, encoding: str | None = None, suffixes: Iterable[str] = FILE_FORMATS) -> Iterator[None]:
    """Check `data`, a file or the id of a data set, and name it in every error raised in this context.

    Args:
        suffixes: The suffixes of the files that can be read.

    Raises:
        ValueError: The file has a different suffix, is empty, or cannot be read.
        OSError: There is no such file, or the data set cannot be fetched.
    """
    check_readable(data, encoding, suffixes)
    is_file = Path(data).is_file()
    try:
        yield
    except Exception as error:  # pyarrow, csv, json, gzip, the network and the Hub raise many types.
        if is_file:
            raise ValueError(
                f"{data} cannot be read as {FILE_FORMATS.get(suffix_of(data), 'text')}: {_cause(error)}."
            ) from error
        raise OSError(f"{data} is neither a file nor a data set that could be fetched: {_cause(error)}.") from error


def _cause(error: BaseException) -> str:
    """Return the first line of an error's cause, with advice where the line alone does not help."""
    cause = first_line(error.__cause__ or error)
    if cause.startswith("Couldn't cast array of type") and cause.endswith("to null"):
        cause += (
            " (a column that is empty in the first 10 MB holds values later). Move a row with all columns to the top"
        )
    return cause


@contextmanager
def opened(data: str) -> Iterator[BinaryIO]:
    """Open a file to read bytes. The bytes of a .gz file are decompressed."""
    with gzip.open(data) if is_zipped(data) else open(data, "rb") as file:
        yield file  # type: ignore[misc]


def lines_of(file: BinaryIO, encoding: str | None = None, keep_ends: bool = False) -> Iterator[str]:
    """Yield the lines of text in a file. A line ends with LF, CR or both. A byte order mark is left out.

    Args:
        file: The file, opened to read bytes.
        encoding: Python's name for the encoding; None for UTF-8.
        keep_ends: Whether lines keep their ends.

    Raises:
        ValueError: The text has a different encoding, or Python has no encoding of that name.
    """
    try:
        name = codecs.lookup(encoding or "utf-8").name
        text = io.TextIOWrapper(file, "utf-8-sig" if name == "utf-8" else name, newline="" if keep_ends else None)
    except LookupError as error:
        raise ValueError(f"{error}. Name one that Python knows, such as utf-8, latin-1, cp1252 or utf-16") from None
    number = 0
    try:
        for number, line in enumerate(text, 1):
            if "\0" in line:
                raise ValueError(f"line {number} holds a NUL character. Is it UTF-16? Then pass --encoding utf-16-le")
            yield line if keep_ends else line.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(_wrong_encoding(error, number, name)) from None


def _wrong_encoding(error: UnicodeDecodeError, lines: int, name: str) -> str:
    """Describe a decoding error, and guess the encoding.

    Args:
        lines: Number of lines that were read before the error.
        name: Name of the encoding that failed.
    """
    if lines == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        guess = "It looks like utf-16"
    else:
        guess = "It looks like utf-16-le" if b"\0" in error.object else "It may be latin-1 or cp1252"
    # Python decodes blocks of several lines. The lines of this block before the error were not yielded yet.
    lines += error.object[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n")
    return f"line {lines + 1} is not {name}. {guess}: name its encoding with --encoding"


def _csv_tables(data: str, size: int, encoding: str | None) -> Iterator[pa.Table]:
    """Yield the rows of a CSV file as text, `size` at a time. A parser that guesses types would change "None" or "007".

    Raises:
        ValueError: A line has more or fewer fields than the header. The message gives its number.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with opened(data) as file:
        records = _records(csv.reader(lines_of(file, encoding, keep_ends=True), strict=True))
        _, header = next(records, (1, []))
        names = _checked_header(header)
        is_empty = True
        while part := list(islice(records, size)):
            for line, fields in part:
                if len(fields) != len(names):
                    too_many = "Put double quotes around a text that contains a comma"
                    remedy = too_many if len(fields) > len(names) else "Add the missing ones"
                    raise ValueError(
                        f"line {line} has {counted(len(fields), 'field')}; expected {len(names)}, as in the header. "
                        f"{remedy}"
                    )
                if fields == header and len(header) > 1:
                    raise ValueError(f"line {line} repeats the header. Delete it")
            columns = zip(*(fields for _, fields in part), strict=True)
            yield pa.table([pa.array(column, pa.large_string()) for column in columns], names)
            is_empty = False
        if is_empty:
            yield pa.table([pa.array([], pa.large_string()) for _ in names], names)


def _records(reader) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a CSV file, each with the number of its first line. Empty lines are skipped."""
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            quotes = "A double quote is missing, or there is one too many"
            raise ValueError(f"the record on line {line}: {error}. {quotes}") from None
        if fields:
            yield line, fields


def _checked_header(names: list[str]) -> list[str]:
    """Return the names of the columns. A column without a name, such as an index, gets pandas' name for it."""
    if not names:
        raise ValueError("there is no header")
    if len(names) > MOST_COLUMNS:
        raise ValueError(f"the header has {len(names)} columns; expected {MOST_COLUMNS} at most")
    repeated = next((name for index, name in enumerate(names) if name and name in names[:index]), None)
    if repeated is not None:
        raise ValueError(f"the header names the column {repeated!r} twice. Rename one of them")
    return [name or f"Unnamed: {index}" for index, name in enumerate(names)]

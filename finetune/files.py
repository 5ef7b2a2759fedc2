"""From a file, or a data set of the Hub, to its rows as they are there; what cannot be read is put into words."""

import codecs
import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import pyarrow as pa
from datasets import Dataset, load_dataset

from ..common.errors import first_line

FILE_KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
TEXT_KINDS = (".txt", ".csv")  # in any encoding; JSON is UTF-8 by its standard
LONGEST_FIELD, MOST_COLUMNS = 10**7, 10_000  # of a CSV file: beyond, a quote is missing, or a line end
EXPANDED = set("$~%:")  # what fsspec and datasets make something else of, in the name of a file


def kind_of(data: str) -> str:
    """The suffix that tells how a file is read, in lower case, without .gz: ".csv" of "rows.CSV.gz"."""
    path = Path(data)
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def is_zipped(data: str) -> bool:
    return Path(data).suffix.lower() == ".gz"


def load_rows(data: str, split: str = "train", encoding: str | None = None) -> Dataset:
    """The rows of a JSONL, JSON, CSV or Parquet file (but for Parquet also as .gz), or of a data set of the Hub.

    Args:
        encoding: of a CSV file; None for UTF-8.

    Raises:
        ValueError: the file is of another kind, or damaged, or in another encoding.
        OSError: there is neither such a file nor such a data set.
    """
    with reading(data, encoding):
        if not Path(data).is_file():
            return load_dataset(data, split=split)
        if kind_of(data) == ".csv" or EXPANDED & set(data):
            return _in_memory(data, encoding)
        try:
            rows = load_dataset(FILE_KINDS[kind_of(data)], data_files=escape(data), split="train")
        except Exception as error:
            if not isinstance(error.__cause__ or error, OSError):
                raise
            return _in_memory(data, encoding)  # the cache of data sets cannot be written; the file may be all right
        _check_text(rows.data.table)
        return rows


def _in_memory(data: str, encoding: str | None) -> Dataset:
    return Dataset(pa.concat_tables(file_tables(data, 10_000, encoding), promote_options="permissive"))


def file_tables(data: str, rows: int, encoding: str | None = None) -> Iterator[pa.Table]:
    """The rows of a file, `rows` at a time; at least one table, which may be empty."""
    if kind_of(data) == ".csv":
        yield from _csv_tables(data, rows, encoding)
        return
    with TemporaryDirectory() as folder:
        if EXPANDED & set(data):
            plain = Path(folder) / f"rows{kind_of(data)}{'.gz' if is_zipped(data) else ''}"
            plain.symlink_to(Path(data).absolute())
            data = str(plain)
        options = {"data_files": escape(data), "split": "train", "cache_dir": folder}
        streamed = load_dataset(FILE_KINDS[kind_of(data)], streaming=True, **options)
        for table in streamed.with_format("arrow").iter(batch_size=rows):
            _check_text(table)
            yield table


def _check_text(table: pa.Table) -> None:
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        raise ValueError("it holds text that is not UTF-8. Convert it first") from None


@contextmanager
def reading(data: str, encoding: str | None = None, kinds: Iterable[str] = FILE_KINDS) -> Iterator[None]:
    """Puts into words what is wrong with `data`, a file or the id of a data set: raises as `load_rows` says."""
    path, kind = Path(data), kind_of(data)
    is_file = path.is_file()
    if is_file and (kind not in kinds or (kind == ".parquet" and is_zipped(data))):
        raise ValueError(f"{data} is a {path.suffix or 'nameless'} file; expected one of {', '.join(kinds)}.")
    if not is_file and kind in kinds:
        raise OSError(f"there is no file {data}.")
    if is_file and path.stat().st_size == 0:
        raise ValueError(f"{data} is empty; expected rows.")
    if encoding and kind not in TEXT_KINDS:
        raise ValueError(f"an encoding was given for {data}; only {' and '.join(TEXT_KINDS)} files have one to choose.")
    try:
        yield
    except Exception as error:  # of many kinds: of pyarrow, csv, json, gzip; of the network, the Hub
        if is_file:
            raise ValueError(f"{data} cannot be read as {FILE_KINDS.get(kind, 'text')}: {_cause(error)}.") from error
        raise OSError(f"{data} is no file, and no data set that could be fetched: {_cause(error)}.") from error


def _cause(error: BaseException) -> str:
    cause = first_line(error.__cause__ or error)
    if cause.startswith("Couldn't cast array of type") and cause.endswith("to null"):
        cause += (
            " (a column that is empty in the first 10 MB holds values later). Move a row with all columns to the top"
        )
    return cause


@contextmanager
def opened(data: str) -> Iterator[BinaryIO]:
    """The bytes of a file; of a .gz those that are in it."""
    with gzip.open(data) if is_zipped(data) else open(data, "rb") as file:
        yield file  # type: ignore[misc]


def lines_of(file: BinaryIO, encoding: str | None = None, keep_ends: bool = False) -> Iterator[str]:
    """The lines of text in a file, as they come; a line ends with LF, CR or both. A byte order mark is left out.

    Args:
        encoding: as Python names it; None for UTF-8.
        keep_ends: as they are; else lines come without their end.

    Raises:
        ValueError: the text is in another encoding, or there is no encoding of that name.
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
                raise ValueError(f"line {number} holds a NUL character. Is it UTF-16? Then give --encoding utf-16-le")
            yield line if keep_ends else line.removesuffix("\n")
    except UnicodeDecodeError as error:
        if number == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            guess = "It looks like utf-16"
        else:
            guess = "It looks like utf-16-le" if b"\0" in error.object else "It may be latin-1 or cp1252"
        before = error.object[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n")  # of this block
        raise ValueError(
            f"line {number + before + 1} is not {name}. {guess}: name its encoding with --encoding"
        ) from None


def _csv_tables(data: str, rows: int, encoding: str | None) -> Iterator[pa.Table]:
    """All of it text: else a name such as "None", "NA" or "007" is another, or lost.

    Raises:
        ValueError: with the line's number, if a line has not the fields of the header.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with opened(data) as file:
        records = _records(csv.reader(lines_of(file, encoding, keep_ends=True), strict=True))
        _, header = next(records, (1, []))
        names = _checked_header(header)
        empty = True
        while part := list(islice(records, rows)):
            for line, fields in part:
                if len(fields) != len(names):
                    found = f"line {line} has {len(fields)} fields; expected {len(names)}, as in the header"
                    raise ValueError(f"{found}. A text with a comma in it takes double quotes around it")
                if fields == header and len(header) > 1:
                    raise ValueError(f"line {line} is the header once more. Delete it")
            columns = zip(*(fields for _, fields in part), strict=True)
            yield pa.table([pa.array(column, pa.large_string()) for column in columns], names)
            empty = False
        if empty:
            yield pa.table([pa.array([], pa.large_string()) for _ in names], names)


def _records(reader) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file, and the number of the line on which each begins; empty lines are passed over."""
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"the record on line {line}: {error}. Is a double quote missing or too many") from None
        if fields:
            yield line, fields


def _checked_header(names: list[str]) -> list[str]:
    """The names of the columns; one without a name, such as that of an index, gets the one that pandas gives it."""
    if not names:
        raise ValueError("there is no header")
    if len(names) > MOST_COLUMNS:
        raise ValueError(f"the header has {len(names)} columns; expected {MOST_COLUMNS} at most")
    twice = next((name for index, name in enumerate(names) if name and name in names[:index]), None)
    if twice is not None:
        raise ValueError(f"the header names the column {twice!r} twice. Rename one of them")
    return [name or f"Unnamed: {index}" for index, name in enumerate(names)]

"""Read the texts that an earlier run of `t5fusion generate` wrote, and tell to which rows they belong.

A row is known by its input text. A row without text is known by a digest of its vectors, or of the text that they are
made from.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from datasets import Dataset

from .data import Columns, check_columns, numbered, vector_keys
from .file_names import suffix_of
from .files import opened
from .row_blocks import texts_of
from .streaming import read_chunks

UNKNOWN = False  # the key of a row that may be any row. (JSON can hold it, and it differs from every text.)


class EarlierText(NamedTuple):
    """The text of a row, and what an earlier run generated for it."""

    key: Any  # the text of the row, or a digest of its vectors
    output: str | None

    def belongs_to(self, key: str | None) -> bool:
        """Return whether the output was generated for the row with this key. Null equals "": CSV has no null."""
        return self.key is UNKNOWN or (self.key or None) == (key or None)


def row_keys(rows: Dataset, columns: Columns, first: int = 0) -> Iterator[Any]:
    """Yield the key of each row, by which a later run knows it again.

    Args:
        rows: The rows. In a format that cannot hold vectors, rows without text have the key `UNKNOWN`.
        columns: The columns to read.
        first: Number of the first row in its file, for errors.
    """
    if columns.text is not None:
        yield from rows[columns.text]
    elif not set(columns.by_use.values()) <= set(rows.column_names):
        yield from repeat(UNKNOWN, len(rows))
    else:
        name_row = numbered(range(first, first + len(rows)))
        keys = [vector_keys(rows, column, name_row) for column in columns.by_kind.values()]
        texts = [texts_of(rows, columns.lexical)] if columns.lexical else []
        for parts in zip(*texts, *keys, strict=True):
            yield hashlib.md5("\n".join(part or "" for part in parts).encode()).hexdigest()


def key_column(columns: Columns) -> str:
    """Return the name that NAME.partial gives the keys of rows."""
    return "vectors" if columns.text is None else columns.text


def texts_in_partial(file: BinaryIO, columns: Columns) -> Iterator[EarlierText]:
    """Yield the texts in the open file NAME.partial. If its last line is incomplete, cut that line off."""
    file.seek(0)
    while line := file.readline():
        if not line.endswith(b"\n"):
            file.truncate(file.tell() - len(line))
            return
        yield _earlier_text(line, key_column(columns))


def _earlier_text(line: bytes, key_column: str) -> EarlierText:
    """Return the key and the text in a line of JSON. The generated text is its last value."""
    try:
        row = json.loads(line)
        return EarlierText(row[key_column], list(row.values())[-1])
    except (ValueError, LookupError, TypeError, AttributeError):  # A damaged line belongs to no row.
        return EarlierText(line, None)


def texts_in_output(path: Path, columns: Columns) -> Iterator[EarlierText]:
    """Yield the texts in an output; none if it does not exist.

    Raises:
        ValueError: The file cannot be read, or has no column of the input text.
    """
    if not path.exists():
        return
    if suffix_of(str(path)) == ".jsonl" and columns.text is not None:
        with opened(str(path)) as file:
            for line in file:
                if line.endswith(b"\n"):  # Earlier releases appended to the output, and may have been killed.
                    yield _earlier_text(line, columns.text)
        return
    is_csv = suffix_of(str(path)) == ".csv"  # CSV has an empty text instead of null.
    for chunk in read_chunks(str(path)):
        check_columns(chunk.rows, [] if columns.text is None else [columns.text])
        keys, outputs = row_keys(chunk.rows, columns), chunk.rows[chunk.rows.column_names[-1]]
        for key, output in zip(keys, outputs, strict=True):
            # A row without text gets null if it has no vector. The model may also have written an empty text.
            is_null = not output if columns.text is None else not (key or "").strip()
            yield EarlierText(key, None if is_csv and is_null else output)

"""Read the texts that an earlier run of `t5fusion generate` wrote."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .data import check_columns
from .file_names import kind_of
from .files import opened
from .streaming import read_chunks


class EarlierText(NamedTuple):
    """The text of a row, and what an earlier run generated for it."""

    text: Any
    output: str | None

    @classmethod
    def from_line(cls, line: bytes, text_column: str) -> "EarlierText":
        """Return the texts in a line of JSON. The generated text is its last value."""
        try:
            row = json.loads(line)
            return cls(row[text_column], list(row.values())[-1])
        except (ValueError, LookupError, TypeError, AttributeError):  # A damaged line equals no row's text.
            return cls(line, None)

    def belongs_to(self, text: str | None) -> bool:
        """Return whether the output was generated for a row with this text. Null equals "", because CSV has no null."""
        return (self.text or None) == (text or None)


def texts_in_partial(file: BinaryIO, text_column: str) -> Iterator[EarlierText]:
    """Yield the texts in the open file NAME.partial. If its last line is incomplete, cut that line off."""
    file.seek(0)
    while line := file.readline():
        if not line.endswith(b"\n"):
            file.truncate(file.tell() - len(line))
            return
        yield EarlierText.from_line(line, text_column)


def texts_in_output(path: Path, text_column: str) -> Iterator[EarlierText]:
    """Yield the texts in an output; none if it does not exist.

    Raises:
        ValueError: The file cannot be read, or has no such column.
    """
    if not path.exists():
        return
    if kind_of(str(path)) == ".jsonl":
        with opened(str(path)) as file:
            for line in file:
                if line.endswith(b"\n"):  # Earlier releases appended to the output, and may have been killed.
                    yield EarlierText.from_line(line, text_column)
        return
    is_csv = kind_of(str(path)) == ".csv"  # CSV has an empty text instead of null.
    for chunk in read_chunks(str(path)):
        check_columns(chunk.rows, [text_column])
        texts, outputs = chunk.rows[text_column], chunk.rows[chunk.rows.column_names[-1]]
        for text, output in zip(texts, outputs, strict=True):
            yield EarlierText(text, None if is_csv and not (text or "").strip() else output)

"""A file of JSON lines, one for each row, that an interrupted run resumes."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import portalocker
from accelerate.utils import broadcast_object_list

from .data import Columns, check_columns, check_texts
from .streaming import Chunk

MADE_WITH = ".made-with"  # ends the name of the file beside an output that tells what its lines depend on


class Output:
    """A file of JSON lines, one for each row, in the order of rows; or standard output.

    What is there is what an earlier run wrote, which may have been killed at any moment: its last line may be torn.
    Nothing of it is changed before it is known to be of these rows.

    Args:
        path: None for standard output.
        text_column: what a line calls the text of its row.
        begun_with: what the lines depend on beside the rows; kept beside the file.
        overwrite: start anew.

    Raises:
        ValueError: the file was begun with something else, or another process is writing it.
    """

    def __init__(self, path: Path | None, text_column: str, begun_with: dict, overwrite: bool = False):
        self.path, self.text_column = path, text_column
        self.found = self.made = 0  # lines
        self.at_end = path is None
        if path is None:
            self.file = sys.stdout.buffer
            return
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no regular file. Name another --output, or none for standard output.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a+b")
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror}). Name another --output.") from error
        try:  # the processes of a run whose launcher was killed may be at work still
            portalocker.lock(self.file, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.LockException as error:
            raise ValueError(f"{path} is being written by another process. Wait for it, or end it.") from error
        self.begun_with, self.marker = begun_with, path.with_name(path.name + MADE_WITH)
        if overwrite:
            self.file.truncate(0)
        if path.stat().st_size == 0:
            self.marker.unlink(missing_ok=True)
        elif not self.marker.exists():
            raise ValueError(
                f"{path} is there, and nothing beside it tells what its lines were made with. Name another --output, "
                "or give --overwrite."
            )
        else:
            self._check_begun()
        self.file.seek(0)

    def _check_begun(self) -> None:
        begun = json.loads(self.marker.read_text(encoding="utf-8"))
        pairs = [(name, begun.get(name), value) for name, value in self.begun_with.items()]
        other = "; ".join(f"{name} was {then}, now {now}" for name, then, now in pairs if then != now)
        if other:
            raise ValueError(f"{self.path} was begun otherwise: {other}. Give the same, or --overwrite.")

    def _mark(self) -> None:
        if not self.marker.exists():
            unfinished = self.marker.with_name(self.marker.name + "~")
            unfinished.write_text(json.dumps(self.begun_with) + "\n", encoding="utf-8")
            unfinished.replace(self.marker)

    def already(self, texts: Iterable[str | None]) -> int:
        """How many of the next rows, of these texts, have their line; after the last line a torn one is cut off.

        Raises:
            ValueError: a line is not of its row.
        """
        there = 0
        for text in () if self.at_end else texts:
            line, begins = self.file.readline(), _line(self.text_column, text, None)[: -len(b"null}\n")]
            if line[: len(begins)] != begins[: len(line)]:
                row = self.found + there
                raise ValueError(
                    f"line {row + 1} of {self.path} is not of row {row} of the input, whose text is {text!r}. Name "
                    "another --output, or give --overwrite."
                )
            if not line.endswith(b"\n"):
                self.file.truncate(self.file.tell() - len(line))
                self.at_end = True
                break
            there += 1
        self.found += there
        return there

    def append(self, texts: Sequence[str | None], made: Sequence[str | None]) -> None:
        """Writes the lines of rows, for good: a machine that fails now does not lose them.

        Raises:
            OSError: they cannot be written; the disk is full, say. A part of them may be there, as after a kill.
        """
        lines = b"".join(_line(self.text_column, *row) for row in zip(texts, made, strict=True))
        if self.path is None:
            self.file.write(lines)
            self.file.flush()
            self.made += len(made)
            return
        try:
            self._mark()
            self.file.write(lines)
            self.file.flush()
            self.made += len(made)  # before the wait for the disk, in which Ctrl-C may come
            os.fsync(self.file.fileno())
        except OSError as error:
            # with what is left in the buffer, which else would be tried again at the end
            self.file.raw.close()  # type: ignore[union-attr]
            rows = f"{self.found + self.made} rows are in it"
            raise OSError(
                f"{self.path} cannot be written ({error.strerror}): {rows}. To go on, make room and give the same "
                "command."
            ) from error

    def finish(self) -> None:
        """All rows have their line.

        Raises:
            ValueError: there are lines of other rows after them.
        """
        if self.path is None:
            return
        if not self.at_end and self.file.readline():
            rows = f"{self.found} rows, and {self.path} has more lines"
            raise ValueError(f"the input has {rows}. Name another --output, or give --overwrite.")
        self.file.close()


def _line(text_column: str, text: str | None, made: str | None) -> bytes:
    return (json.dumps({text_column: text, "output": made}, ensure_ascii=False) + "\n").encode()


def unfinished(chunks: Iterable[Chunk], columns: Columns, output: Output | None) -> Iterator[tuple[Chunk, int]]:
    """The chunks that have not all of their lines in the output, and how many they have.

    Args:
        columns: the columns that the rows must have.
        output: of the first process; None in all others, which it tells.

    Raises:
        ValueError: a column is missing or holds no text, or a line of the output is not of its row.
    """
    for chunk in chunks:
        check_columns(chunk.rows, columns)
        check_texts(chunk.rows, columns.texts)
        there = [output.already(chunk.rows[output.text_column]) if output else 0]
        broadcast_object_list(there)
        if there[0] < len(chunk.rows):
            yield chunk, there[0]

"""The output file of `t5fusion generate`: a JSON line for each row. An interrupted run resumes from it."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import portalocker
from accelerate.utils import broadcast_object_list

from .data import Columns, check_columns, check_texts
from .streaming import Chunk

MADE_WITH = ".made-with"  # ends the name of the file that records, beside an output, what its lines depend on


class Output:
    """A file of JSON lines, one for each row and in the order of the rows; or standard output.

    The file may hold lines of an earlier run, and the last of them may be incomplete if that run was killed. Nothing in
    the file is changed before its lines were compared with the rows.

    Args:
        path: The file, or None for standard output.
        text_column: The name that a line gives to the text of its row.
        begun_with: What the lines depend on, apart from the rows. It is recorded beside the file.
        overwrite: Whether to delete the lines of an earlier run.

    Raises:
        ValueError: the earlier run recorded another `begun_with`, or another process is writing the file.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path | None, text_column: str, begun_with: dict, overwrite: bool = False):
        self.path, self.text_column, self.begun_with = path, text_column, begun_with
        self.old = self.new = 0  # lines of earlier runs, and lines that this run wrote
        self.at_end = path is None  # whether all lines of earlier runs have been read
        if path is None:
            self.file = sys.stdout.buffer
            return
        self.marker = path.with_name(path.name + MADE_WITH)
        self.file = self._open_locked(path)
        if overwrite:
            self.file.truncate(0)
        if path.stat().st_size == 0:
            self.marker.unlink(missing_ok=True)
        elif not self.marker.exists():
            raise ValueError(
                f"{path} exists, and no file beside it records what its lines were made with. Name another --output, "
                "or give --overwrite."
            )
        else:
            self._check_begun_with()
        self.file.seek(0)

    @staticmethod
    def _open_locked(path: Path):
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no regular file. Name another --output, or leave it out to print the lines.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror}). Name another --output.") from error
        try:  # if the launcher of an earlier run was killed, its processes may still be writing
            portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.LockException as error:
            raise ValueError(f"{path} is being written by another process. Wait for it, or end it.") from error
        return file

    def _check_begun_with(self) -> None:
        recorded = json.loads(self.marker.read_text(encoding="utf-8"))
        pairs = [(name, recorded.get(name), value) for name, value in self.begun_with.items()]
        changes = "; ".join(f"{name} was {then}, now {now}" for name, then, now in pairs if then != now)
        if changes:
            raise ValueError(
                f"{self.path} was started with other settings: {changes}. Give the same ones, or --overwrite."
            )

    def _record_begun_with(self) -> None:
        if not self.marker.exists():
            unfinished = self.marker.with_name(self.marker.name + "~")
            unfinished.write_text(json.dumps(self.begun_with) + "\n", encoding="utf-8")
            unfinished.replace(self.marker)

    def count_written(self, texts: Iterable[str | None]) -> int:
        """Return how many of the next rows have their line already. An incomplete last line is cut off.

        Args:
            texts: The texts of the next rows.

        Raises:
            ValueError: a line belongs to another row.
        """
        count = 0
        for text in () if self.at_end else texts:
            line, expected_start = self.file.readline(), _line(self.text_column, text, None)[: -len(b"null}\n")]
            if line[: len(expected_start)] != expected_start[: len(line)]:
                row = self.old + count
                raise ValueError(
                    f"line {row + 1} of {self.path} is not of row {row} of the input, whose text is {text!r}. Name "
                    "another --output, or give --overwrite."
                )
            if not line.endswith(b"\n"):
                self.file.truncate(self.file.tell() - len(line))
                self.at_end = True
                break
            count += 1
        self.old += count
        return count

    def append(self, texts: Sequence[str | None], outputs: Sequence[str | None]) -> None:
        """Write the lines of rows, and wait until they are on the disk.

        Args:
            texts: The texts of the rows.
            outputs: What the model wrote for each of them.

        Raises:
            OSError: they cannot be written, for example because the disk is full. Some of them may be in the file.
        """
        lines = b"".join(_line(self.text_column, *row) for row in zip(texts, outputs, strict=True))
        if self.path is None:
            self.file.write(lines)
            self.file.flush()
            self.new += len(outputs)
            return
        try:
            self._record_begun_with()
            self.file.write(lines)
            self.file.flush()
            self.new += len(outputs)  # before the wait for the disk, during which Ctrl-C may come
            os.fsync(self.file.fileno())
        except OSError as error:
            # The raw file, because closing the buffered one would try to write the rest again.
            self.file.raw.close()  # type: ignore[union-attr]
            raise OSError(
                f"{self.path} cannot be written ({error.strerror}): it holds {self.old + self.new} rows. Free some "
                "space, and give the same command to resume."
            ) from error

    def finish(self) -> None:
        """Close the file, after all rows have their line.

        Raises:
            ValueError: more lines follow, which belong to other rows.
        """
        if self.path is None:
            return
        if not self.at_end and self.file.readline():
            raise ValueError(
                f"the input has {self.old} rows, and {self.path} has more lines. Name another --output, or give "
                "--overwrite."
            )
        self.file.close()


def _line(text_column: str, text: str | None, output: str | None) -> bytes:
    return (json.dumps({text_column: text, "output": output}, ensure_ascii=False) + "\n").encode()


def unfinished(chunks: Iterable[Chunk], columns: Columns, output: Output | None) -> Iterator[tuple[Chunk, int]]:
    """Yield the chunks that lack some of their lines in the output, with the number of lines that they have.

    Args:
        columns: The columns that the rows must have.
        output: The output in the first process, which tells the others. None in all others.

    Raises:
        ValueError: a column is missing or holds no text, or a line of the output belongs to another row.
    """
    for chunk in chunks:
        check_columns(chunk.rows, columns)
        check_texts(chunk.rows, columns.texts)
        lines = [output.count_written(chunk.rows[output.text_column]) if output else 0]
        broadcast_object_list(lines)
        if lines[0] < len(chunk.rows):
            yield chunk, lines[0]

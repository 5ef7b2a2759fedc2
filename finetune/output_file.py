"""The output of `t5fusion generate`: a file with all rows and their generated texts, or lines on standard output.

While texts are generated, they are appended to a file beside the output, NAME.partial, as JSON lines: the row's text
and what was generated for it. An interrupted run resumes from it. When all rows have their line, the rows are read
again, the output is written with all their columns, and NAME.partial is removed. So the output is whole as soon as it
exists.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import portalocker
import pyarrow as pa
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from ..common.console import say
from .data import Columns, check_columns, check_texts, vector_columns
from .file_names import check_ending, kind_of
from .files import opened
from .output_formats import UNFINISHED, can_hold_vectors, json_line, write_whole
from .streaming import CHUNK, Chunk, read_chunks

PARTIAL = ".partial"  # ends the name of the file with the texts that are generated so far
MADE_WITH = ".made-with"  # ends the name of the file that records, beside an output, what its texts depend on
OUTPUT_COLUMN = "output"


def output_column(names: Sequence[str]) -> str:
    """Return the name of the column of generated texts beside columns of these names: "output", or else "output_2"."""
    candidates = chain([OUTPUT_COLUMN], (f"{OUTPUT_COLUMN}_{number}" for number in count(2)))
    return next(name for name in candidates if name not in names)


def _table(rows: Dataset, dropped: Sequence[str] = ()) -> pa.Table:
    """Return rows without some of their columns."""
    table = rows.with_format("arrow")[:]
    return table.select([name for name in table.column_names if name not in dropped])


def _vectors_in(rows: Dataset, columns: Columns) -> list[str]:
    """Return the columns of vectors: by their type, and the one that the user named."""
    named = [columns.vector] if columns.vector in rows.column_names else []
    return list(dict.fromkeys([*vector_columns(rows), *filter(None, named)]))


def _report_name(name: str) -> None:
    if name != OUTPUT_COLUMN:
        say(f"The input has a column {OUTPUT_COLUMN!r}; the generated texts are in column {name!r}.")


def check_output_name(path: Path) -> None:
    """Check that a file of generated texts can have this name.

    Raises:
        ValueError: its ending is not in `OUTPUT_ENDINGS`, it is no regular file, or it holds JSON lines of earlier code
            under an ending that means another format now.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file. Name another --output, or leave it out to print the lines.")
    marker = path.with_name(path.name + MADE_WITH)
    if marker.exists() and path.exists() and kind_of(str(path)) != ".jsonl":
        with path.open("rb") as file:
            if file.read(2) == b'{"':  # no CSV and no Parquet file begins so
                renamed = path.with_suffix(".jsonl")
                raise ValueError(
                    f"{path} holds JSON lines, which an earlier release wrote. To go on, rename it to {renamed}, and "
                    f"{marker} to {renamed}{MADE_WITH}, and give --output {renamed}."
                )
    check_ending(path)


class _Written(NamedTuple):
    """What an earlier run wrote of a row."""

    text: Any
    output: str | None

    @classmethod
    def from_line(cls, line: bytes, text_column: str) -> "_Written":
        """Return what a line of JSON holds. The generated text is its last value."""
        try:
            row = json.loads(line)
            return cls(row[text_column], list(row.values())[-1])
        except (ValueError, LookupError, TypeError, AttributeError):  # damaged: the line of no row
            return cls(line, None)

    def is_of(self, text: str | None) -> bool:
        """Return whether it is of a row with this text. CSV cannot tell null from an empty text."""
        return (self.text or None) == (text or None)


class StandardOutput:
    """Prints rows with their generated texts as JSON lines, without the vectors."""

    def __init__(self, columns: Columns):
        self.columns = columns
        self.old = self.new = 0

    def count_written(self, rows: Dataset) -> int:
        """Return 0: nothing of an earlier run is there."""
        return 0

    def append(self, rows: Dataset, outputs: Sequence[str | None]) -> None:
        """Print the lines of rows."""
        name = output_column(rows.column_names)
        if self.new == 0:
            _report_name(name)
        table = _table(rows, _vectors_in(rows, self.columns)).append_column(name, pa.array(outputs, pa.string()))
        sys.stdout.buffer.write(b"".join(map(json_line, table.to_pylist())))
        sys.stdout.buffer.flush()
        self.new += len(outputs)

    def finish(self, reread: Callable[[], Iterable[Chunk]] | None) -> None:
        """Do nothing: all lines are printed."""

    def close(self) -> None:
        """Do nothing."""


class OutputFile:
    """A file of all rows and their generated texts, and NAME.partial beside it until it is whole.

    Either file may come from an earlier run, and the last line of NAME.partial may be incomplete if that run was
    killed. Nothing is changed before the texts in it were compared with the rows.

    Args:
        path: The file. Its ending chooses the format (see `output_formats`).
        columns: The columns that are read from the rows.
        begun_with: What the texts depend on, apart from the rows. It is recorded beside the file.
        overwrite: Whether to delete what an earlier run wrote.

    Raises:
        ValueError: the name has another ending; the earlier run recorded another `begun_with`; or another process is
            writing the file.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, columns: Columns, begun_with: dict, overwrite: bool = False):
        self.path, self.columns, self.begun_with = path, columns, begun_with
        self.partial, self.marker = (path.with_name(path.name + end) for end in (PARTIAL, MADE_WITH))
        self.old = self.new = 0  # rows of earlier runs, and rows that this run wrote
        self.schemas: list[pa.Schema] = []  # of the chunks as the output holds them, each distinct one once
        self.names: dict[str, None] = {}  # all columns of the input, as keys
        check_output_name(path)
        self.file = _open_locked(self.partial)
        if overwrite:
            self.file.truncate(0)
            for file in (self.path, self.marker):
                file.unlink(missing_ok=True)
        self.is_resumed = self.partial.stat().st_size > 0
        if self.is_resumed or path.exists():
            self._check_begun_with()
        else:
            self.marker.unlink(missing_ok=True)
        self.file.seek(0)
        # The earlier rows, until all of them have been compared.
        self.earlier: Iterator[_Written] | None = self._lines() if self.is_resumed else self._rows_of_output()

    def _check_begun_with(self) -> None:
        there = self.partial if self.is_resumed else self.path
        if not self.marker.exists():
            self.close()
            raise ValueError(
                f"{there} exists, and no file beside it records what its texts were made with. Name another --output, "
                "or give --overwrite."
            )
        recorded = json.loads(self.marker.read_text(encoding="utf-8"))
        names = dict.fromkeys([*self.begun_with, *recorded])
        pairs = [(name, recorded.get(name), self.begun_with.get(name)) for name in names]
        changes = "; ".join(f"{name} was {then}, now {now}" for name, then, now in pairs if then != now)
        if changes:
            self.close()
            raise ValueError(f"{there} was started with other settings: {changes}. Give the same ones, or --overwrite.")

    def close(self) -> None:
        """Release the file, and remove NAME.partial if it holds nothing."""
        if self.file.closed or self.file.raw.closed:  # type: ignore[attr-defined]
            return
        self.file.close()
        if self.partial.stat().st_size == 0:
            self.partial.unlink()

    def count_written(self, rows: Dataset) -> int:
        """Return how many of the next rows have their text already. An incomplete last line is cut off.

        Raises:
            ValueError: a text belongs to another row.
        """
        self._remember_columns(rows)
        if self.earlier is None:
            return 0
        count = 0
        for text in rows[self.columns.text]:
            written = next(self.earlier, None)
            if written is None:
                self._begin_appending(self.old + count)
                break
            if not written.is_of(text):
                row, source = self.old + count, self.partial if self.is_resumed else self.path
                raise ValueError(
                    f"row {row} of {source} is not row {row} of the input, whose text is {text!r}. Name another "
                    "--output, or give --overwrite."
                )
            count += 1
        self.old += count
        return count

    def append(self, rows: Dataset, outputs: Sequence[str | None]) -> None:
        """Write the texts of rows to NAME.partial, and wait until they are on the disk.

        Raises:
            OSError: they cannot be written, for example because the disk is full. Some of them may be in the file.
        """
        texts = rows[self.columns.text]
        lines = b"".join(self._line(*pair) for pair in zip(texts, outputs, strict=True))
        try:
            self._record_begun_with()
            self.file.write(lines)
            self.file.flush()
            self.new += len(outputs)  # before the wait for the disk, during which Ctrl-C may come
            os.fsync(self.file.fileno())
        except OSError as error:
            # The raw file, because closing the buffered one would try to write the rest again.
            self.file.raw.close()  # type: ignore[attr-defined]
            raise self._no_space(self.partial, error) from error

    def finish(self, reread: Callable[[], Iterable[Chunk]] | None) -> None:
        """Write the output, after all rows have their text, and remove NAME.partial.

        Args:
            reread: Returns the chunks of the input once more. None if the rows have no other column than their text.

        Raises:
            ValueError: there are texts of more rows, or the input has changed meanwhile.
            OSError: the output cannot be written. NAME.partial stays.
        """
        if self.earlier is not None and next(self.earlier, None) is not None:
            there = self.partial if self.is_resumed else self.path
            raise ValueError(
                f"the input has {self.old} rows, and {there} has more. Name another --output, or give --overwrite."
            )
        is_whole = self.path.exists() and not self.is_resumed and not self.new
        if is_whole or not self.old + self.new:
            return
        name = output_column(list(self.names))
        _report_name(name)
        schemas = [*self.schemas, pa.schema([(name, pa.string())])]  # the generated texts become the last column
        try:
            write_whole(self.path, schemas, self._tables(name, reread))
        except OSError as error:
            raise self._no_space(self.path, error) from error
        self.file.close()
        self.partial.unlink(missing_ok=True)

    def _no_space(self, path: Path, error: OSError) -> OSError:
        return OSError(
            f"{path} cannot be written ({error.strerror}): {self.partial} holds {self.old + self.new} rows. Free some "
            "space, and give the same command to resume."
        )

    def _remember_columns(self, rows: Dataset) -> None:
        dropped = self._dropped(rows)
        schema = _table(rows, dropped).schema.remove_metadata()
        if not self.schemas:
            for column in dropped:
                say(f"Column {column!r} holds vectors, which a CSV file cannot; it is left out of {self.path}.")
        if schema not in self.schemas:
            self.schemas.append(schema)
        self.names |= dict.fromkeys(rows.column_names)

    def _dropped(self, rows: Dataset) -> list[str]:
        return [] if can_hold_vectors(self.path) else _vectors_in(rows, self.columns)

    def _line(self, text: str | None, output: str | None) -> bytes:
        return json_line({self.columns.text: text, output_column([self.columns.text]): output})

    def _lines(self) -> Iterator["_Written"]:
        """Yield what the lines of NAME.partial hold, and cut off an incomplete last one."""
        self.file.seek(0)
        while line := self.file.readline():
            if not line.endswith(b"\n"):
                self.file.truncate(self.file.tell() - len(line))
                return
            yield _Written.from_line(line, self.columns.text)

    def _rows_of_output(self) -> Iterator["_Written"]:
        """Yield what the rows of the output of an earlier run hold."""
        if not self.path.exists():
            return
        if kind_of(str(self.path)) == ".jsonl":
            with opened(str(self.path)) as file:
                for line in file:
                    if line.endswith(b"\n"):  # earlier releases appended to it, so that the last one may be incomplete
                        yield _Written.from_line(line, self.columns.text)
            return
        for chunk in read_chunks(str(self.path)):
            check_columns(chunk.rows, [self.columns.text])
            texts, outputs = chunk.rows[self.columns.text], chunk.rows[chunk.rows.column_names[-1]]
            is_csv = kind_of(str(self.path)) == ".csv"  # where null is an empty text
            for text, output in zip(texts, outputs, strict=True):
                yield _Written(text, None if is_csv and not (text or "").strip() else output)

    def _begin_appending(self, rows: int) -> None:
        """Prepare NAME.partial for more rows. If the output of an earlier run is whole, copy its texts first."""
        self.earlier = None
        if self.is_resumed or rows == 0:
            self.file.seek(0, os.SEEK_END)
            return
        unfinished = _open_locked(self.partial.with_name(self.partial.name + UNFINISHED))
        unfinished.truncate(0)
        for written in islice(self._rows_of_output(), rows):
            unfinished.write(self._line(written.text, written.output))
        unfinished.flush()
        os.fsync(unfinished.fileno())
        unfinished.close()
        self.file.close()
        Path(unfinished.name).replace(self.partial)
        self.file = _open_locked(self.partial)

    def _tables(self, name: str, reread: Callable[[], Iterable[Chunk]] | None) -> Iterator[pa.Table]:
        """Yield the rows of the output, with the generated texts in the column of this name, chunk by chunk."""
        lines = self._lines()
        if reread is None:
            while written := list(islice(lines, CHUNK)):
                texts, outputs = zip(*written, strict=True)
                columns = {self.columns.text: texts, name: outputs}
                yield pa.table({column: pa.array(values, pa.string()) for column, values in columns.items()})
            return
        for _, rows in reread():
            texts, written = rows[self.columns.text][:], list(islice(lines, len(rows)))
            if len(written) < len(texts) or not all(w.is_of(text) for w, text in zip(written, texts, strict=True)):
                raise ValueError(f"the input changed while {self.partial} was made. Give --overwrite to start over.")
            outputs = pa.array([each.output for each in written], pa.string())
            yield _table(rows, self._dropped(rows)).append_column(name, outputs)

    def _record_begun_with(self) -> None:
        if not self.marker.exists():
            unfinished = self.marker.with_name(self.marker.name + UNFINISHED)
            unfinished.write_text(json.dumps(self.begun_with) + "\n", encoding="utf-8")
            unfinished.replace(self.marker)


def _open_locked(path: Path) -> BinaryIO:
    """Open a file to read and append, and lock it."""
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


Output = StandardOutput | OutputFile


def unfinished(chunks: Iterable[Chunk], columns: Columns, output: Output | None) -> Iterator[tuple[Chunk, int]]:
    """Yield the chunks that lack some of their texts in the output, with the number of texts that they have.

    Args:
        columns: The columns that the rows must have.
        output: The output in the first process, which tells the others. None in all others.

    Raises:
        ValueError: a column is missing or holds no text, or a text of the output belongs to another row.
    """
    for chunk in chunks:
        check_columns(chunk.rows, columns)
        check_texts(chunk.rows, columns.texts)
        counts = [output.count_written(chunk.rows) if output else 0]
        broadcast_object_list(counts)
        if counts[0] < len(chunk.rows):
            yield chunk, counts[0]

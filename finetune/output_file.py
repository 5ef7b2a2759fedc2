"""The output file of `t5fusion generate`, with all rows and their generated texts.

While texts are generated, they are appended to a file beside the output, NAME.partial. Each of its lines is JSON: the
text of a row (or a digest of its vectors, if it has no text), and the text that was generated for it. An interrupted
run resumes from that file. When all rows have their line, the rows are read once more, the output is written with all
their columns, and NAME.partial is removed. So the output is whole as soon as it exists.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import portalocker
import pyarrow as pa
from datasets import Dataset

from ..common.console import say
from ..common.run_files import read_json
from ..engines.names import REFERENCE
from ..kinds_t5fusion import counted
from .data import Columns
from .earlier_texts import EarlierText, key_column, row_keys, texts_in_output, texts_in_partial
from .file_names import check_ending, suffix_of
from .output_columns import all_vector_columns, output_column, report_output_column, table_without
from .output_formats import UNFINISHED, can_hold_vectors, json_line, write_whole
from .streaming import CHUNK, Chunk

NOT_RECORDED = {"engine": REFERENCE}  # what earlier releases did not record, because there was no choice
PARTIAL = ".partial"  # ends the name of the file with the texts that have been generated so far
MADE_WITH = ".made-with"  # ends the name of the file that records what the texts of an output depend on


def check_output_name(path: Path) -> None:
    """Check that a file of generated texts can have this name.

    Raises:
        ValueError: Its ending is not in `OUTPUT_ENDINGS`; it is not a regular file; or it holds the JSON lines that
            earlier releases wrote under any name, but its ending now stands for a different format.
    """
    if path.exists() and not path.is_file():
        raise ValueError(
            f"{path} is not a regular file. Choose a different --output, or leave it out to print the lines."
        )
    made_with_file = path.with_name(path.name + MADE_WITH)
    if made_with_file.exists() and path.exists() and suffix_of(str(path)) != ".jsonl":
        with path.open("rb") as file:
            if file.read(2) == b'{"':  # A CSV or Parquet file does not begin with these characters.
                renamed = path.with_suffix(".jsonl")
                raise ValueError(
                    f"{path} holds JSON lines, which an earlier release wrote. To go on, rename it to {renamed}, and "
                    f"{made_with_file} to {renamed}{MADE_WITH}, and pass --output {renamed}."
                )
    check_ending(path)


class OutputFile:
    """A file of all rows and their generated texts, and NAME.partial beside it until it is whole.

    Either file may come from an earlier run. If that run was killed, the last line of NAME.partial may be incomplete.
    Both files stay as they are until their texts have been compared with the rows.

    Args:
        path: The file. Its ending chooses the format (see `output_formats`).
        columns: The columns that are read from the rows.
        made_with: What the texts depend on, apart from the rows. It is recorded beside the file.
        overwrite: Whether to replace what an earlier run wrote. NAME.partial is emptied at once. The output stays
            until the new one is whole.

    Raises:
        ValueError: The name cannot be used (see `check_output_name`); the earlier run recorded a different `made_with`;
            or another process is writing the file.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, columns: Columns, made_with: dict, overwrite: bool = False):
        self.path, self.columns, self.made_with = path, columns, made_with
        self.partial, self.made_with_file = (path.with_name(path.name + end) for end in (PARTIAL, MADE_WITH))
        self.earlier_rows = self.new_rows = 0  # rows that have their text from earlier runs, and from this run
        self.schemas: list[pa.Schema] = []  # the schemas of the chunks in the output, each once
        self.input_columns: dict[str, None] = {}  # an ordered set of names
        self.unreported_columns: list[str] = []  # columns that the file cannot hold, until the user is told
        check_output_name(path)
        self.partial_file = _open_locked(self.partial)
        self.is_replacing = overwrite and path.exists()  # whether an output exists whose texts do not count
        self.is_resumed = not overwrite and self.partial.stat().st_size > 0
        if self.is_resumed or (path.exists() and not overwrite):
            self._check_made_with()
        elif not path.exists() or self.partial.stat().st_size > 0:  # The record is not about an output that stays.
            self.made_with_file.unlink(missing_ok=True)
        if overwrite:
            self.partial_file.truncate(0)
        self.partial_file.seek(0)
        # It becomes None when all earlier texts have been compared with the rows.
        self.earlier_texts: Iterator[EarlierText] | None = (
            iter(()) if overwrite
            else texts_in_partial(self.partial_file, columns) if self.is_resumed
            else texts_in_output(path, columns)
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """The number of rows that have their text."""
        return self.earlier_rows + self.new_rows

    @property
    def _earlier_file(self) -> Path:
        """The file that holds the texts of an earlier run."""
        return self.partial if self.is_resumed else self.path

    def _check_made_with(self) -> None:
        """Raise ValueError if the earlier run recorded a different `made_with`, or its record is missing or damaged."""
        if not self.made_with_file.exists():
            self.close()
            raise ValueError(
                f"{self._earlier_file} exists, and no file beside it records what its texts were made with. Choose "
                "a different --output, or pass --overwrite."
            )
        try:
            recorded = NOT_RECORDED | read_json(self.made_with_file)
        except ValueError as error:
            self.close()
            raise ValueError(
                f"{self.made_with_file} is damaged, and no other file records what the texts of {self._earlier_file} "
                "were made with. Choose a different --output, or pass --overwrite."
            ) from error
        made_with = NOT_RECORDED | self.made_with
        names = dict.fromkeys([*made_with, *recorded])
        then_and_now = [(name, recorded.get(name), made_with.get(name)) for name in names]
        changes = "; ".join(f"{name} was {then}, now {now}" for name, then, now in then_and_now if then != now)
        if changes:
            self.close()
            raise ValueError(
                f"{self._earlier_file} was started with other settings: {changes}. Pass the same ones, or --overwrite."
            )

    def close(self) -> None:
        """Close and unlock NAME.partial, and remove it if it is empty. Later calls do nothing."""
        if self.partial_file.closed or self.partial_file.raw.closed:  # type: ignore[attr-defined]
            return
        self.partial_file.close()
        if self.partial.stat().st_size == 0:
            self.partial.unlink()

    def count_written(self, rows: Dataset) -> int:
        """Return how many of the next rows of the input have their text from an earlier run.

        After the last earlier text, NAME.partial is prepared for more. An incomplete last line is cut off.

        Args:
            rows: The rows of the input that follow the rows of the last call.

        Raises:
            ValueError: An earlier text belongs to a different row.
        """
        self._remember_columns(rows)
        if self.earlier_texts is None:
            return 0
        keys = row_keys(rows, self.columns, self.earlier_rows)
        for count in range(len(rows)):
            earlier = next(self.earlier_texts, None)
            if earlier is None:
                self._begin_appending(self.earlier_rows + count)
                break
            if not earlier.belongs_to(key := next(keys)):
                row = self.earlier_rows + count
                whose = "" if self.columns.text is None else f", whose text is {key!r}"
                raise ValueError(
                    f"row {row} of {self._earlier_file} is not row {row} of the input{whose}. Choose a different "
                    "--output, or pass --overwrite."
                )
        else:
            count = len(rows)
        self.earlier_rows += count
        return count

    def append(self, rows: Dataset, outputs: Sequence[str | None]) -> None:
        """Write the texts of rows to NAME.partial, and wait until they are on the disk.

        Raises:
            OSError: They cannot be written, for example because the disk is full. The file may hold some of them.
        """
        self._report_dropped()
        keys = row_keys(rows, self.columns)
        lines = b"".join(self._line(*pair) for pair in zip(keys, outputs, strict=True))
        try:
            # If the new record were written before the first line of NAME.partial, a run killed in between would leave
            # the old output beside it, and the next run would take the old texts for texts of these settings.
            if self.is_replacing:
                self.made_with_file.unlink(missing_ok=True)
            else:
                self._record_made_with()
            self.partial_file.write(lines)
            self.partial_file.flush()
            self._record_made_with()
            self.is_replacing = False
            self.new_rows += len(outputs)  # They count now, because Ctrl-C may come during the wait for the disk.
            os.fsync(self.partial_file.fileno())
        except OSError as error:
            # The raw file is closed, because closing the buffered one would try to write the rest again.
            self.partial_file.raw.close()  # type: ignore[attr-defined]
            raise self._cannot_write(self.partial, error) from error

    def finish(self, reread: Callable[[], Iterable[Chunk]] | None) -> None:
        """Write the output, after all rows have their text, and remove NAME.partial.

        Args:
            reread: A function that returns the chunks of the input once more. None if the rows have no column but
                their text.

        Raises:
            ValueError: The earlier run wrote texts of more rows, or the input has changed meanwhile.
            OSError: The output cannot be written. NAME.partial is kept.
        """
        if self.earlier_texts is not None and next(self.earlier_texts, None) is not None:
            raise ValueError(
                f"{counted(self.earlier_rows, 'row')} of the input were read, and {self._earlier_file} has more. Leave "
                "out --limit or raise it, choose a different --output, or pass --overwrite."
            )
        is_whole = self.path.exists() and not self.is_resumed and not self.new_rows
        if is_whole or not self.rows:
            return
        self._report_dropped()
        name = output_column(list(self.input_columns))
        report_output_column(name)
        schemas = [*self.schemas, pa.schema([(name, pa.string())])]  # The generated texts become the last column.
        try:
            write_whole(self.path, schemas, self._tables(name, reread))
        except OSError as error:
            raise self._cannot_write(self.path, error) from error
        self.partial_file.close()
        self.partial.unlink(missing_ok=True)

    def _cannot_write(self, path: Path, error: OSError) -> OSError:
        """Return the error for a file that cannot be written. It says how many rows are kept, and what to do."""
        kept = f"{counted(self.rows, 'row')}, from which the same command resumes" if self.rows else "no row yet"
        return OSError(
            f"{path} cannot be written ({error.strerror}). {self.partial} holds {kept}. Free some space, and run the "
            "same command again."
        )

    def _remember_columns(self, rows: Dataset) -> None:
        """Remember the columns of rows for `finish`."""
        dropped = self._columns_to_drop(rows)
        schema = table_without(rows, dropped).schema.remove_metadata()
        if not self.schemas:
            self.unreported_columns = [name for name in dropped if name not in self.columns.vector_files]
        if schema not in self.schemas:
            self.schemas.append(schema)
        self.input_columns |= dict.fromkeys(rows.column_names)

    def _report_dropped(self) -> None:
        """Tell the user once which columns the file cannot hold. By then, the rows and their vectors are checked."""
        for column in self.unreported_columns:
            say(f"Column {column!r} holds vectors; it is left out of {self.path}. JSON lines and Parquet keep it.")
        self.unreported_columns = []

    def _columns_to_drop(self, rows: Dataset) -> list[str]:
        """Return the columns that are not written: NumPy files, and columns that the file cannot hold."""
        return self.columns.vector_files if can_hold_vectors(self.path) else all_vector_columns(rows, self.columns)

    def _line(self, key: Any, output: str | None) -> bytes:
        """Return the line of NAME.partial for a row."""
        name = key_column(self.columns)
        return json_line({name: key, output_column([name]): output})

    def _begin_appending(self, text_count: int) -> None:
        """Prepare NAME.partial for more rows. If it is new, first copy the texts of the earlier output into it.

        Args:
            text_count: Number of texts in the earlier output.
        """
        self.earlier_texts = None
        if self.is_resumed or text_count == 0:
            self.partial_file.seek(0, os.SEEK_END)
            return
        unfinished = _open_locked(self.partial.with_name(self.partial.name + UNFINISHED))
        unfinished.truncate(0)
        for earlier in islice(texts_in_output(self.path, self.columns), text_count):
            unfinished.write(self._line(earlier.key, earlier.output))
        unfinished.flush()
        os.fsync(unfinished.fileno())
        unfinished.close()
        self.partial_file.close()
        Path(unfinished.name).replace(self.partial)
        self.partial_file = _open_locked(self.partial)

    def _tables(self, name: str, reread: Callable[[], Iterable[Chunk]] | None) -> Iterator[pa.Table]:
        """Yield the rows of the output, chunk by chunk, with the generated texts in the column called `name`."""
        generated = texts_in_partial(self.partial_file, self.columns)
        if reread is None:
            while part := list(islice(generated, CHUNK)):
                texts, outputs = zip(*part, strict=True)
                columns = {key_column(self.columns): texts, name: outputs}
                yield pa.table({column: pa.array(values, pa.string()) for column, values in columns.items()})
            return
        for _, rows in reread():
            keys, part = row_keys(rows, self.columns), list(islice(generated, len(rows)))
            if len(part) < len(rows) or not all(each.belongs_to(key) for each, key in zip(part, keys, strict=True)):
                raise ValueError(f"the input changed while {self.partial} was made. Pass --overwrite to start over.")
            outputs = pa.array([each.output for each in part], pa.string())
            yield table_without(rows, self._columns_to_drop(rows)).append_column(name, outputs)

    def _record_made_with(self) -> None:
        """Write NAME.made-with, unless it exists."""
        if not self.made_with_file.exists():
            unfinished = self.made_with_file.with_name(self.made_with_file.name + UNFINISHED)
            unfinished.write_text(json.dumps(self.made_with) + "\n", encoding="utf-8")
            unfinished.replace(self.made_with_file)


def _open_locked(path: Path) -> BinaryIO:
    """Open a file to read and append, and lock it.

    Raises:
        OSError: It cannot be written.
        ValueError: Another process has locked it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}). Choose a different --output.") from error
    try:  # After a launcher was killed, its processes may still be writing.
        portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.LockException as error:
        raise ValueError(f"{path} is being written by another process. Wait for it, or end it.") from error
    return file

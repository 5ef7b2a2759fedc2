"""Large sets: read chunk by chunk, shared among processes, and written so that an interrupted run can go on.

A chunk is the same rows whatever the number of processes, and the work of one of them, whole. So batches, and with them
the last bit of a number, are those of a single process.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import portalocker
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.environment import parse_flag_from_env
from datasets import Dataset, load_dataset

from .data import check_columns, check_texts
from .files import FILE_KINDS, file_tables, kind_of, lines_of, opened, reading

CHUNK = 512  # rows: eight batches to sort by length, and the work that a process loses when it is killed
MADE_WITH = ".made-with"  # ends the name of the file beside an output that tells what its lines depend on

Work = TypeVar("Work")
Result = TypeVar("Result")


class Chunk(NamedTuple):
    """Rows that follow each other, and the number of the first of them in their file."""

    first: int
    rows: Dataset


def processes() -> PartialState:
    """Who takes part: the processes that `accelerate launch` or `torchrun` started, or this one alone."""
    # without a word from us, accelerate makes of two processes on CPUs two that are alone
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def shared(chunks: Iterable[Work], work: Callable[[Work], Result]) -> Iterator[tuple[Work, Result]]:
    """Chunks in their order, and what `work` makes of each; each process does every n-th, and all get all.

    All processes must call it, with the same chunks, and use it up.
    """
    state, chunks = processes(), iter(chunks)
    while turn := list(islice(chunks, state.num_processes)):
        mine = turn[state.process_index : state.process_index + 1]
        yield from zip(turn, gather_object([work(chunk) for chunk in mine]), strict=True)


def read_chunks(
    data: str, split: str = "train", text_column: str = "text", encoding: str | None = None
) -> Iterator[Chunk]:
    """The rows of `files.load_rows`, in their order; or of a .txt file, a row a line, in column `text_column`.

    Only some thousands of rows are in memory at a time, and nothing is kept on disk. (A .json that is one array is read
    whole.) What is wrong with a row is found when it is reached.

    Args:
        encoding: of a .txt or CSV file; None for UTF-8.

    Raises:
        ValueError: the file is of another kind, or damaged, or in another encoding.
        OSError: there is neither such a file nor such a data set.
    """
    with reading(data, encoding, [*FILE_KINDS, ".txt"]):
        if not Path(data).is_file():
            streamed = load_dataset(data, split=split, streaming=True)
            yield from _numbered(map(Dataset, streamed.with_format("arrow").iter(batch_size=CHUNK)))
        elif kind_of(data) == ".txt":
            with opened(data) as file:
                yield from chunks_of_texts(lines_of(file, encoding), text_column)
        else:
            yield from _numbered(map(Dataset, file_tables(data, CHUNK, encoding)))


def chunks_of_texts(texts: Iterable[str], text_column: str) -> Iterator[Chunk]:
    """Texts as rows of one column; no more of them are taken than a chunk needs."""
    texts = iter(texts)
    rows = iter(lambda: list(islice(texts, CHUNK)), [])
    return _numbered(Dataset(pa.table({text_column: pa.array(chunk, pa.string())})) for chunk in rows)


def _numbered(parts: Iterable[Dataset]) -> Iterator[Chunk]:
    first = 0
    for rows in parts:
        yield Chunk(first, rows)
        first += len(rows)


def spread(rows: int, having: np.ndarray | None = None) -> list[np.ndarray]:
    """All row numbers, int64, in parts of like size and at most CHUNK, each drawn from everywhere and then sorted.

    Vectors that are shuffled within a part come from the whole set then, however it is sorted.

    Args:
        having: bool (rows,), which rows have a vector; None for all. No part has a single one of them then, unless
            there is but one: it could not be shuffled.
    """
    drawn, number = np.random.default_rng(0).permutation(rows), -(-rows // CHUNK)
    if having is None or having.all():
        return [np.sort(part) for part in np.array_split(drawn, number)]
    with_vector, without = drawn[having[drawn]], drawn[~having[drawn]]
    shares = max(1, min(number, len(with_vector) // 2))
    parts = [with_vector[share::shares] for share in range(shares)] + [drawn[:0]] * (number - shares)
    room = np.cumsum([-(-rows // number) - len(part) for part in parts])[:-1]
    return [np.sort(np.concatenate(pair)) for pair in zip(parts, np.split(without, room), strict=True)]


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


def unfinished(
    chunks: Iterable[Chunk], columns: Sequence[str | None], output: Output | None
) -> Iterator[tuple[Chunk, int]]:
    """The chunks that have not all of their lines in the output, and how many they have.

    Args:
        columns: that the rows must have: of the text, the target, the vector's text and the vector, or None.
        output: of the first process; None in all others, which it tells.

    Raises:
        ValueError: a column is missing or holds no text, or a line of the output is not of its row.
    """
    for chunk in chunks:
        check_columns(chunk.rows, columns)
        check_texts(chunk.rows, [column for column in columns[:3] if column])
        there = [output.already(chunk.rows[output.text_column]) if output else 0]
        broadcast_object_list(there)
        if there[0] < len(chunk.rows):
            yield chunk, there[0]

"""Rows of a set that does not fit on a disk: read, checked, shuffled and prepared while the model trains on them.

The order of the rows follows from the seed alone, and each row has its number in it. So a resumed training, and each of
several processes, finds its rows by their numbers, as in a set that is in memory. It reads the rows before them again,
but makes no vectors for them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..common.console import say
from .data import Columns, check_vectors, find_held_out, find_usable, left_out, vector_widths
from .row_blocks import VECTOR_BLOCK
from .streaming import FIRST, Chunk, read_chunks


class Block(NamedTuple):
    """Some rows of a set, in the order in which they are trained on."""

    rows: pa.Table
    numbers: np.ndarray  # the number of each row in the set, int64 (rows,)

    def take(self, indices: np.ndarray) -> "Block":
        """Return the rows with these indices."""
        return Block(self.rows.take(pa.array(indices)), self.numbers[indices])


class Window(NamedTuple):
    """Consecutive rows to train on, and the order in which they come."""

    block: Block
    order: np.ndarray  # the indices of the rows, int64 (rows,)

    def rows(self, start: int, most: int) -> Block:
        """Return at most `most` rows from a place in the order."""
        return self.block.take(self.order[start : start + most])


NO_ROWS = Window(Block(pa.table({}), np.zeros(0, dtype=np.int64)), np.zeros(0, dtype=np.int64))


class RowReader:
    """Reads the rows of a set that a model trains on: the usable rows that are not held out.

    Args:
        data: A file, or the id of a data set on the Hub.
        columns: The columns to read.
        first: The first usable rows of the set.
        held_out: The held-out rows among the first ones, which are not in `first`. Further rows with the same text (or
            the same pair, see `data.hold_out`) are left out too. None if a different set validates.
        encoding: Encoding of CSV files; None for UTF-8.
        skip_nan: Whether to leave out rows whose vectors hold NaN or infinity.
        limit: The most rows to read; None for all.
    """

    def __init__(
        self,
        data: str,
        columns: Columns,
        first: Dataset,
        held_out: Dataset | None,
        encoding: str | None = None,
        skip_nan: bool = False,
        limit: int | None = None,
    ):
        self.data, self.columns, self.encoding, self.skip_nan, self.limit = data, columns, encoding, skip_nan, limit
        self.names = list(dict.fromkeys([*columns.texts, *columns.by_kind.values()]))
        self.widths = vector_widths(first, columns)
        self.mark_held_out = None if held_out is None else find_held_out(first, held_out, columns)
        self.left_out = Counter[str]()  # how many rows after the first ones were left out, and why
        self.first_uncounted = FIRST  # the number of the first row that `left_out` does not cover yet

    def read(self) -> Iterator[Block]:
        """Yield the rows in their order, some hundreds at a time. Each call is a pass over the whole set.

        Raises:
            ValueError: A row cannot be used. The message names its number. It is raised when the row is reached.
            OSError: The set can no longer be read.
        """
        remaining = self.limit
        files = self.columns.vector_files
        for chunk in read_chunks(self.data, encoding=self.encoding, vector_files=files):
            block = self._block_of(chunk)
            if remaining is not None:
                block = block.take(np.arange(min(remaining, len(block.numbers))))
                remaining -= len(block.numbers)
            yield block
            if remaining == 0:
                return

    def _block_of(self, chunk: Chunk) -> Block:
        """Return the rows of a chunk to train on, and count the rows that are left out."""
        finite, kept = find_usable(chunk.rows, self.columns, self.skip_nan, chunk.first, self.widths)
        numbers = np.arange(chunk.first, chunk.first + len(chunk.rows))
        # An earlier pass may have counted these rows, so only those with a new number count.
        all_new, finite_new, kept_new = (
            int((part >= self.first_uncounted).sum()) for part in (numbers, numbers[finite], numbers[kept])
        )
        self.left_out += Counter(nan=all_new - finite_new, unusable=finite_new - kept_new)
        self.first_uncounted = max(self.first_uncounted, chunk.first + len(numbers))
        block = Block(chunk.rows.data.table.select(self.names), numbers).take(kept)
        rows = Dataset(block.rows)
        check_vectors(rows, self.columns, block.numbers.tolist(), self.widths)
        return block if self.mark_held_out is None else block.take(np.flatnonzero(~self.mark_held_out(rows)))

    def report(self) -> None:
        """Print how many of the rows that were read only in training were left out."""
        for words in left_out(self.left_out["nan"], self.left_out["unusable"], self.columns):
            say(f"After the first {FIRST:,} rows, {words}.")


class RowStream(Sequence[dict[str, Any]]):
    """The rows to train on, as `inputs.prepare` makes them, in a shuffled order. When all are read, they start over.

    Rows are shuffled within windows: `shuffle_buffer` consecutive rows are in memory, and come in a random order. Then
    the next ones are read. The rows are meant to be read by ascending indices. An earlier index is read from the
    beginning.

    Args:
        read: Returns the rows of one pass over the set, such as `RowReader.read`.
        make_inputs: Makes the inputs of some rows.
        row_count: How many rows to train on.
        shuffle_buffer: The rows of a window.
        seed: Seed of the order.
    """

    windows: Iterator[Window]  # the windows that have not been read yet
    window: Window
    first: int  # the index of the window's first row
    end: int  # the index of the row after its last one
    inputs: list[dict]  # the inputs of some rows of the window
    inputs_start: int  # the index of the first of these rows

    def __init__(
        self,
        read: Callable[[], Iterable[Block]],
        make_inputs: Callable[[Block], list[dict]],
        row_count: int,
        shuffle_buffer: int,
        seed: int,
    ):
        self.read, self.make_inputs, self.row_count = read, make_inputs, row_count
        self.shuffle_buffer, self.seed = shuffle_buffer, seed
        self._start_over()

    def __len__(self) -> int:
        return self.row_count

    def __getitem__(self, index: Any) -> Any:
        """Return a row. Raises IndexError if there is none, and what `read` and `make_inputs` raise."""
        if not 0 <= index < self.row_count:
            raise IndexError(f"there is no row {index}; the training has {self.row_count} rows.")
        if index < self.first:
            self._start_over()
        if index >= self.end + self.shuffle_buffer:
            say(f"Reading the first {index:,} rows again, to continue after them.")
        while index >= self.end:
            self.window = next(self.windows)
            self.first, self.end = self.end, self.end + len(self.window.order)
        start = self.first + (index - self.first) // VECTOR_BLOCK * VECTOR_BLOCK
        if start != self.inputs_start:
            # A resumed training makes the same blocks, so that vectors of an encoder have the same bits.
            block = self.window.rows(start - self.first, VECTOR_BLOCK)
            self.inputs, self.inputs_start = self.make_inputs(block), start
        return self.inputs[index - start]

    def _start_over(self) -> None:
        """Go back to before the first row."""
        self.windows, self.window, self.first, self.end = self._shuffled_windows(), NO_ROWS, 0, 0
        self.inputs, self.inputs_start = [], -1

    def _shuffled_windows(self) -> Iterator[Window]:
        """Yield windows without end."""
        for number in count():
            generator, is_empty = np.random.default_rng([self.seed, number]), True
            for window in _regrouped(self.read(), self.shuffle_buffer):
                yield Window(window, generator.permutation(len(window.numbers)))
                is_empty = False
            if is_empty:
                raise ValueError("no row is left to train on: all of them are held out or cannot be used.")


def _regrouped(blocks: Iterable[Block], size: int) -> Iterator[Block]:
    """Yield the rows of blocks in blocks of `size` rows. The last one may have fewer."""
    tables: list[pa.Table] = []
    numbers = np.zeros(0, dtype=np.int64)
    for block in blocks:
        tables, numbers = [*tables, block.rows], np.concatenate([numbers, block.numbers])
        while len(numbers) >= size:
            rows = pa.concat_tables(tables, promote_options="permissive")
            yield Block(rows[:size], numbers[:size])
            tables, numbers = [rows[size:]], numbers[size:]
    if len(numbers):
        yield Block(pa.concat_tables(tables, promote_options="permissive"), numbers)

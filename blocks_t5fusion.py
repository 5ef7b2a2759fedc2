"""Blocks of training rows as arrays: what `fit_fusion` reads of the rows, without an object for each row.

Rows are usually dicts, which are read one by one. A data set that holds its rows in arrays (`t5fusion train` keeps them
in an Arrow file) has a method `row_arrays`, and is read in blocks, ten times as fast.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .kinds_t5fusion import DEFAULT_KIND, VectorKind
from .rows_t5fusion import LARGEST_NORM, SMALLEST_NORM, Ids, RowVectors, Vectors, as_array, vectors_of_row

FIRST_TEXT_ID = 2  # Smaller ids are <pad> (0), </s> (1), and the negative ids that the loss ignores.


class DistinctTokens(NamedTuple):
    """The distinct tokens of the target of each row, in order of their ids."""

    ids: Ids  # int64 (tokens,), row after row
    starts: Ids  # where the tokens of each row start, int64 (rows,)


class RowBlock(NamedTuple):
    """Some rows, each of which has a vector and labels."""

    vectors: dict[str, Vectors]  # by kind, float32 (vectors, dim), row after row
    counts: dict[str, Ids]  # by kind, how many vectors each row has, int64 (rows,)
    tokens: Ids  # ids of the tokens of the targets, int64 (tokens,), row after row
    lengths: Ids  # how many tokens each target has, int64 (rows,)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.lengths)

    def between(self, start: int, end: int) -> "RowBlock":
        """Return the rows from `start` to before `end`."""
        vectors = {name: _between(self.vectors[name], counts, start, end) for name, counts in self.counts.items()}
        counts = {name: counts[start:end] for name, counts in self.counts.items()}
        return RowBlock(vectors, counts, _between(self.tokens, self.lengths, start, end), self.lengths[start:end])

    def only(self, kept: npt.NDArray[np.bool_]) -> "RowBlock":
        """Return the rows that `kept`, bool (rows,), marks."""
        if kept.all():
            return self
        vectors = {name: self.vectors[name][np.repeat(kept, counts)] for name, counts in self.counts.items()}
        counts = {name: counts[kept] for name, counts in self.counts.items()}
        return RowBlock(vectors, counts, self.tokens[np.repeat(kept, self.lengths)], self.lengths[kept])

    def mean_vectors(self, kind: str) -> Vectors:
        """Return the mean vector of each row that has vectors of a kind, float32 (rows that have one, dim)."""
        counts = self.counts[kind][self.counts[kind] > 0]
        if (counts == 1).all():
            return self.vectors[kind]
        starts = np.cumsum(counts) - counts
        return np.add.reduceat(self.vectors[kind], starts) / counts[:, None].astype(np.float32)

    def distinct_tokens(self, part: int = 0, parts: int = 1) -> DistinctTokens:
        """Return the distinct tokens of one of several consecutive parts of each target.

        The first parts are longer by a token if the target cannot be divided evenly. If a target has fewer tokens than
        there are parts, each part that would be empty gets all tokens of the target.
        """
        row = np.repeat(np.arange(self.rows), self.lengths)
        tokens = self.tokens
        if parts > 1:
            place, length = np.arange(len(tokens)) - (np.cumsum(self.lengths) - self.lengths)[row], self.lengths[row]
            short, longer = np.divmod(length, parts)  # `longer` parts have `short + 1` tokens each, the others `short`.
            first = part * short + np.minimum(part, longer)
            is_inside = (first <= place) & (place < first + short + (part < longer))
            is_inside |= part >= length
            row, tokens = row[is_inside], tokens[is_inside]
        span = int(tokens.max(initial=0)) + 1
        pairs = np.sort(row * span + tokens)
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # `np.unique` takes five times as long.
        return DistinctTokens(pairs % span, np.searchsorted(pairs, np.arange(self.rows) * span))


def _between(values: Any, counts: Ids, start: int, end: int) -> Any:
    """Return the values of the rows from `start` to before `end`; `counts` says how many values each row has."""
    return values[counts[:start].sum() : counts[:end].sum()]


class RowArrays(NamedTuple):
    """Some rows as arrays, as a data set's `row_arrays` yields them. Rows may lack vectors or labels."""

    vectors: dict[str, tuple[Vectors, Ids, Ids]]  # by kind: all numbers; each vector's width; each row's count
    labels: Ids  # token ids, int (labels,), row after row
    lengths: Ids  # how many labels each row has, int (rows,)
    is_labelled: npt.NDArray[np.bool_]  # which rows have labels, bool (rows,)


def read_blocks(rows: Any, kinds: Mapping[str, VectorKind], size: int) -> Iterator[RowBlock]:
    """Yield the rows that have a vector and labels, in order, at most `size` in a block.

    Args:
        rows: Rows as `fit_fusion` takes them. If they have a method `row_arrays`, it yields their `RowArrays`.
        kinds: The model's kinds of vectors by name.
        size: The most rows in a block.

    Raises:
        ValueError: A vector does not have the width of its kind, or is one that the collator refuses.
    """
    if not hasattr(rows, "row_arrays"):
        yield from _stack(read_rows(rows, kinds), size)
        return
    read = 0
    for arrays in rows.row_arrays():
        block = _block_of_arrays(arrays, kinds)
        count = len(arrays.lengths)
        if block is None:  # Something is wrong with a row. Reading the rows one by one finds out what.
            yield from _stack(read_rows((rows[index] for index in range(read, read + count)), kinds, read), size)
        else:
            yield from (block.between(start, start + size) for start in range(0, block.rows, size))
        read += count


def split_off(blocks: Iterable[RowBlock], count: int) -> tuple[list[RowBlock], Iterator[RowBlock]]:
    """Return the blocks of the first `count` rows, and the blocks of the other rows."""
    first: list[RowBlock] = []
    others = iter(blocks)
    for block in others:
        first.append(block.between(0, count))
        if block.rows >= count:
            return first, chain([block.between(count, block.rows)], others)
        count -= block.rows
    return first, others


def read_rows(
    rows: Iterable[Mapping[str, Any]], kinds: Mapping[str, VectorKind], first: int = 0
) -> Iterator[tuple[RowVectors, Ids]]:
    """Yield a row's vectors of each kind, float32 (vectors, dim), and the ids of its target's tokens, int64 (tokens,).

    Rows without a vector or without labels are skipped, and so are a row's kinds without a vector.

    Args:
        rows: Dicts; see `FittingMixin.fit_fusion`.
        kinds: The model's kinds of vectors by name.
        first: Index of the first row, for the message.

    Raises:
        ValueError: A vector does not have the width of its kind, or is one that the collator refuses.
    """
    for index, row in enumerate(rows, first):
        try:
            vectors = vectors_of_row(index, row.get("lexical_embeds"), kinds)
        except ValueError as error:  # The index is that of a row in `rows`. There is no batch.
            raise ValueError(str(error).replace(" of the batch", "", 1)) from None
        vectors = {name: kind_vectors for name, kind_vectors in vectors.items() if len(kind_vectors)}
        if not vectors or row.get("labels") is None:
            continue
        for name, kind_vectors in vectors.items():
            if kind_vectors.shape[1] != kinds[name].dim:
                raise ValueError(_width_message(index, name, kind_vectors.shape[1], kinds[name].dim))
        target = as_array(row["labels"]).ravel().astype(np.int64)
        yield vectors, target[target >= FIRST_TEXT_ID]


def _width_message(row: int, kind: str, found: int, expected: int) -> str:
    """Return what is wrong with a row whose vector of a kind has `found` numbers, and what to do."""
    if kind != DEFAULT_KIND:
        return f"row {row} has a {kind} vector of {found} numbers; expected {expected}, as `config.vectors` says."
    return (
        f"row {row} has a vector of {found} numbers; expected {expected} (`config.lexical_dim`). Use the encoder of "
        f"the training, or build the model with `lexical_dim={found}`."
    )


def _stack(pairs: Iterator[tuple[RowVectors, Ids]], size: int) -> Iterator[RowBlock]:
    """Yield what `read_rows` yields as blocks of `size` rows."""
    while pairs_of_block := list(islice(pairs, size)):
        targets = [target for _, target in pairs_of_block]
        vectors, counts = {}, {}
        for name in dict.fromkeys(name for given, _ in pairs_of_block for name in given):
            vectors[name] = np.concatenate([given[name] for given, _ in pairs_of_block if name in given])
            counts[name] = _int64(len(given.get(name, ())) for given, _ in pairs_of_block)
        yield RowBlock(vectors, counts, np.concatenate(targets), _int64(map(len, targets)))


def _int64(numbers: Iterable[int]) -> Ids:
    """Return numbers as an array."""
    return np.fromiter(numbers, np.int64)


def _block_of_arrays(arrays: RowArrays, kinds: Mapping[str, VectorKind]) -> RowBlock | None:
    """Return the rows that have a vector and labels; None if `read_rows` would refuse one, or may do so."""
    given = arrays.vectors
    if len(kinds) == 1 and len(given) == 1:  # As in a dict row, the vectors of the only kind need no name.
        given = dict(zip(kinds, given.values(), strict=True))
    if not given.keys() <= kinds.keys():
        return None
    vectors, counts = {}, {}
    for name, (numbers, widths, row_counts) in given.items():
        if (widths != kinds[name].dim).any():
            return None
        vectors[name], counts[name] = numbers.reshape(-1, kinds[name].dim), row_counts.astype(np.int64)
        if not _are_readable(vectors[name], kinds[name]):
            return None
    is_text = arrays.labels >= FIRST_TEXT_ID
    ends = np.concatenate([[0], np.cumsum(is_text)])[np.cumsum([0, *arrays.lengths])]
    block = RowBlock(vectors, counts, arrays.labels[is_text].astype(np.int64), np.diff(ends))
    has_vector: Any = sum(counts.values(), np.zeros(block.rows, dtype=np.int64)) > 0
    return block.only(has_vector & arrays.is_labelled)


def _are_readable(vectors: Vectors, kind: VectorKind) -> bool:
    """Return whether all vectors, float32 (vectors, dim), are finite and, without a scale, have readable norms."""
    if kind.scale is not None:
        return bool(np.isfinite(vectors).all())
    # In float64, the sum of the squares of float32 numbers does not overflow.
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    is_readable = (norms >= SMALLEST_NORM) & (norms <= LARGEST_NORM)
    return bool((is_readable | (norms == 0)).all())


__all__ = ["DistinctTokens", "RowArrays", "RowBlock", "read_blocks", "read_rows", "split_off"]

"""Reading and checks of the arguments of `T5FusionProcessor`: texts, and vectors that are given as numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .kinds_t5fusion import DEFAULT_KIND, VectorKind, counted
from .rows_t5fusion import SEVERAL_NUMBERS, RowVectors, Vectors, bad_row, check_kinds, field_of, vectors_of_one_kind


def read_texts(name: str, values: Any, count: int | None = None) -> list[str]:
    """Return one or more strings as a list of `str`.

    Args:
        name: Name of the argument, for the message.
        values: The strings, in a list or another iterable.
        count: Expected number of strings; None for any number.

    Raises:
        ValueError: There are none, or not `count` of them; or one is not a string of whole characters.
    """
    values = read_list(name, values, count)
    if not values:
        raise ValueError(f"`{name}` is empty; expected one item or more.")
    return [read_text(name, row, value) for row, value in enumerate(values)]


def read_text(name: str, row: int, value: Any) -> str:
    """Return a string of whole characters as `str`.

    Args:
        name: Name of the argument, for the message.
        row: Index of the row, for the message.
        value: The string.

    Raises:
        ValueError: `value` is not a string, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise bad_row(row, name, f"of type {type(value).__name__}; expected a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = f"{value[error.start]!r} at position {error.start} is half of a surrogate pair"
        remedy = "Remove it: `text.encode('utf-8', 'ignore').decode()`"
        raise bad_row(row, name, f"{problem}; expected whole characters. {remedy}") from None
    return str(value)  # NumPy has a string type of its own.


def texts_of_row(row: int, item: Any) -> list[str]:
    """Return the texts from which a row's vectors are made, one per vector.

    Args:
        row: Index of the row, for the message.
        item: A string, a list of strings, or None for no vector.

    Raises:
        ValueError: It is something else, or a string holds half of a surrogate pair.
    """
    if item is None or isinstance(item, str):
        return [] if item is None else [read_text("lexical_texts", row, item)]
    try:
        return [read_text("lexical_texts", row, text) for text in list(item)]
    except TypeError:
        raise bad_row(row, "lexical_texts", f"of type {type(item).__name__}; expected a string, or several") from None


def read_list(name: str, values: Any, count: int | None = None) -> list[Any]:
    """Return `values` as a list.

    Args:
        name: Name of the argument, for the message.
        values: Any iterable except a string or a dict.
        count: Expected number of items; None for any number.

    Raises:
        ValueError: `values` is something else, or has not `count` items.
    """
    expected = "a list of one item or more"
    if count is not None:
        expected = f"a list with one item per text, {counted(count, 'item')}"
    try:
        items = None if isinstance(values, (str, bytes, Mapping)) else list(values)
    except TypeError:
        items = None
    if items is None:
        raise ValueError(f"`{name}` is of type {type(values).__name__}; expected {expected}.")
    if count is not None and len(items) != count:
        found = f"{counted(len(items), 'item')} for {counted(count, 'text')}"
        raise ValueError(f"`{name}` has {found}; expected one per text.")
    return items


def read_vectors(lexical_embeds: Any, count: int, kinds: Mapping[str, VectorKind]) -> list[RowVectors]:
    """Return the vectors of each of `count` rows by kind, (vectors, dim) each, from the argument `lexical_embeds`.

    Args:
        lexical_embeds: Numbers, as `T5FusionProcessor.__call__` describes them.
        count: Number of rows.
        kinds: The processor's kinds by name.

    Returns:
        For each row, a dict of arrays by kind. A kind's arrays are float16 if all its vectors were given as float16
        arrays or tensors, and float32 otherwise. A kind that `lexical_embeds` does not name is left out of the dicts.

    Raises:
        ValueError: There are not `count` items; a kind is unknown; or the vectors of a row are not as wide as their
            kind, not finite or, in a kind without a scale, of a norm outside 1e-6 to 1e18.
    """
    columns = lexical_embeds if isinstance(lexical_embeds, Mapping) else _columns_of(lexical_embeds, count, kinds)
    check_kinds(None, columns, kinds)
    by_kind = {name: _read_vectors_of_kind(values, count, name, kinds[name]) for name, values in columns.items()}
    return [{name: rows[index] for name, rows in by_kind.items()} for index in range(count)]


def _columns_of(lexical_embeds: Any, count: int, kinds: Mapping[str, VectorKind]) -> dict[str, list[Any]]:
    """Return vectors that are given row by row as a list per kind.

    Raises:
        ValueError: There are not `count` rows, or the vectors of several kinds are not given by kind.
    """
    rows = read_list("lexical_embeds", lexical_embeds, count)
    if not any(isinstance(row, Mapping) for row in rows) and len(kinds) == 1:
        return dict.fromkeys(kinds, rows)
    for index, row in enumerate(rows):
        if row is not None and not isinstance(row, Mapping):
            expected = f"a dict of vectors by kind: {', '.join(map(repr, kinds))}"
            raise bad_row(index, "lexical_embeds", f"of type {type(row).__name__}; expected {expected}")
        check_kinds(index, row or {}, kinds)
    named = {name for row in rows for name in row or {}}
    return {name: [(row or {}).get(name) for row in rows] for name in kinds if name in named}


def _read_vectors_of_kind(values: Any, count: int, name: str, kind: VectorKind) -> list[Vectors]:
    """Return one kind's vectors of each of `count` rows, (vectors, dim). The errors are those of `read_vectors`."""
    field, width = field_of(name), kind.dim
    items = read_list(field, values, count)
    rows = [vectors_of_one_kind(index, item, kind, field) for index, item in enumerate(items)]
    for index, row in enumerate(rows):
        if len(row) and row.shape[1] != width:
            raise bad_row(index, field, _wrong_width(name, row.shape[1], width))
    dtypes = {str(getattr(item, "dtype", None)) for item, row in zip(items, rows, strict=True) if len(row)}
    are_half = bool(dtypes) and dtypes <= {"float16", "torch.float16"}
    dtype: type[np.floating[Any]] = np.float16 if are_half else np.float32
    return [row.astype(dtype) if len(row) else np.zeros((0, width), dtype) for row in rows]


def _wrong_width(kind: str, given: int, expected: int) -> str:
    """Return what is wrong with vectors of `given` numbers where the kind has `expected`, and what to do."""
    remedy = SEVERAL_NUMBERS if expected == 1 else ""
    if kind != DEFAULT_KIND:
        width = f"{expected}, the width of this kind in the processor's `vectors`"
        return f"vectors of {given} numbers; expected {width}{remedy}"
    argument = f"lexical_dim={given}"
    return (
        f"vectors of {given} numbers; expected {expected}, the processor's `lexical_dim`. Make them as in training. "
        f"For vectors of a different width, train with `T5WithFusion(..., {argument})` and "
        f"`T5FusionProcessor(..., {argument}, lexical_encoder=None, lexical_source='given')`"
    )

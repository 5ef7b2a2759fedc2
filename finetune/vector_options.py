"""The values of --vector-column: [KIND=]COLUMN[:OPTION]..., read into columns and options of kinds, and written.

This module imports nothing slow, because the command line must be quick.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from ..common.errors import did_you_mean
from ..common.vector_file_names import is_vector_file
from ..kinds_t5fusion import DEFAULT_KIND, PROJECTORS, VectorKind, check_name

FORM = "[KIND=]COLUMN[:OPTION]..."
SCALES = {"standard": "standard", "log": "log", "unscaled": None}  # the names of scales on the command line
OPTIONS = ("tokens", "projector", "scale")  # fields of VectorKind that a value can set; the width comes from the data
KNOWN = (*PROJECTORS, *SCALES)
VectorColumns = str | Mapping[str, str] | None  # one column whose kind has no name of its own, or columns by kind
KindOptions = Mapping[str, Mapping[str, Any]]  # fields of VectorKind by kind


class VectorColumn(NamedTuple):
    """A value of --vector-column."""

    kind: str | None
    column: str
    options: dict[str, Any]  # fields of VectorKind


def parse_vector_columns(
    values: Sequence[str] | None, has_encoder: bool = False, takes_options: bool = True
) -> tuple[VectorColumns, KindOptions | None]:
    """Return the columns in values of --vector-column, and the options of their kinds.

    A single column without a kind is returned as a text. If there are several columns, or an encoder, the kind of a
    column without a kind gets the name of the column.

    Args:
        values: Texts such as "vector", "image=img:8:mlp" and "price:log". A backslash before ":" or "=" makes it a part
            of the column's name.
        has_encoder: Whether an encoder makes the vectors of a first kind, which is called "lexical".
        takes_options: Whether options such as ":8" may follow a column.

    Returns:
        `Columns.vector` and `Recipe.kinds`.

    Raises:
        ValueError: A value has a different form or an unknown option, or a kind or a column is named twice.
    """
    parsed = [_parse(value) for value in values or []]
    if not takes_options and (given := next((each for each in parsed if each.options), None)):
        raise ValueError(
            f"--vector-column gives options for column {given.column!r}, but the training has fixed them. Pass only "
            "the kind and the column."
        )
    if len(parsed) == 1 and parsed[0].kind is None and not has_encoder:
        return parsed[0].column, {DEFAULT_KIND: parsed[0].options} if parsed[0].options else None
    columns: dict[str, str] = {}
    options: dict[str, dict[str, Any]] = {}
    for kind, column, of_kind in parsed:
        name = kind if kind is not None else _kind_named_after(column)
        if name in columns:
            raise ValueError(
                f"--vector-column names the columns {columns[name]!r} and {column!r} for the kind {name!r}. Name one "
                "column for each kind."
            )
        if column in columns.values():
            raise ValueError(f"--vector-column names the column {column!r} twice. Name one kind for each column.")
        if has_encoder and name == DEFAULT_KIND:
            raise ValueError(
                f"--vector-column names the column {column!r} for the kind {name!r}, but the encoder makes the vectors "
                "of that kind. Name a different kind."
            )
        columns[name] = column
        if of_kind:
            options[name] = of_kind
    return columns or None, options or None


def vector_names(vector: VectorColumns) -> list[str]:
    """Return the names of columns of vectors."""
    return [vector] if isinstance(vector, str) else list((vector or {}).values())


def _parse(value: str) -> VectorColumn:
    """Return a value of --vector-column; ValueError if it has a different form."""
    # No option begins with a slash or a backslash, but the path of a file may: C:\vectors.npy.
    named, *options = _split(value, r":(?![\\/])")
    kind, *rest = _split(named, "=", 1)
    column = rest[0] if rest else kind
    if not column:
        raise ValueError(f"--vector-column {value!r} names no column; expected {FORM}, such as image=img:8:mlp.")
    if rest:
        _check_kind(kind, f"--vector-column {value!r}")
    fields: dict[str, Any] = {}
    for option in options:
        name, setting = _read_option(option, value)
        if name in fields:
            raise ValueError(f"--vector-column {value!r} sets the {name} twice. Set it once.")
        fields[name] = setting
    return VectorColumn(kind if rest else None, _unescaped(column), fields)


def _split(text: str, mark: str, at_most: int = 0) -> list[str]:
    """Split a text at a mark, but not where a backslash stands before it."""
    return re.split(rf"(?<!\\){mark}", text, maxsplit=at_most)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([:=])", r"\1", text)


def _escaped(text: str) -> str:
    return re.sub(r"([:=])", r"\\\1", text)


def _check_kind(kind: str, where: str) -> None:
    """Raise ValueError if a kind cannot have this name."""
    try:
        check_name(kind)
    except ValueError:
        raise ValueError(
            f"{where}: a kind cannot be called {kind!r}; expected a letter or `_`, then letters, digits, `_` and `-`."
        ) from None


def _kind_named_after(column: str) -> str:
    """Return the kind of a column that was given without one; ValueError if no kind can have the column's name.

    For a NumPy file, it is the name of the file without its folder and its ending.
    """
    try:
        return check_name(PurePath(column).stem if is_vector_file(column) else column)
    except ValueError:
        raise ValueError(
            f"--vector-column {column!r}: no kind of vectors can have this name. Name the kind, as in "
            f"--vector-column 'KIND={_escaped(column)}'."
        ) from None


def _read_option(option: str, value: str) -> tuple[str, Any]:
    """Return the field of VectorKind that an option sets, and its value; ValueError for an unknown option."""
    if option in PROJECTORS:
        return "projector", option
    if option in SCALES:
        return "scale", SCALES[option]
    if option.isdecimal() and int(option) > 0:
        return "tokens", int(option)
    hint = did_you_mean(option, KNOWN, r"a colon in the name of a column is written \:.")
    raise ValueError(
        f"--vector-column {value!r} has the option {option!r}; expected a number of tokens from 1, or one of "
        f"{', '.join(KNOWN)}; {hint}"
    )


def vector_column_values(vector: VectorColumns, options: KindOptions | None) -> str | list[str] | None:
    """Return the value of --vector-column, or a list of several, that `parse_vector_columns` reads into these."""
    options = options or {}
    if vector is None or isinstance(vector, str):
        return None if vector is None else _value(_escaped(vector), options.get(DEFAULT_KIND, {}))
    values = [_value(f"{kind}={_escaped(column)}", options.get(kind, {})) for kind, column in vector.items()]
    return values[0] if len(values) == 1 else values or None


def _value(column: str, options: Mapping[str, Any]) -> str:
    """Return a column with its options behind it."""
    names = {scale: name for name, scale in SCALES.items()}
    words = [str(names[value] if field == "scale" else value) for field, value in _in_order(options)]
    return ":".join([column, *words])


def _in_order(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((field, options[field]) for field in OPTIONS if field in options)


def check_kind_options(kinds: KindOptions) -> None:
    """Check the options of kinds: fields of VectorKind that a value of --vector-column can set.

    Raises:
        ValueError: A kind has an unknown field, or the value of a field is not allowed.
    """
    for kind, options in kinds.items():
        if unknown := [name for name in options if name not in OPTIONS]:
            raise ValueError(
                f"`kinds` sets {', '.join(unknown)} of the kind {kind!r}; expected some of {', '.join(OPTIONS)}."
            )
        try:
            VectorKind(1, **options)
        except ValueError as error:
            raise ValueError(f"`kinds`, kind {kind!r}: {error}") from None

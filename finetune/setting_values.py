"""Check the values of settings against the types of the fields that they set.

The values come from YAML or from Python code. The fields belong to classes of transformers and PEFT.
"""

from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


def fit_value(value: Any, kind: Any) -> Any:
    """Return a plain value, such as YAML has, in the form that a field of type `kind` takes.

    A whole number fits where a number is expected. A number fits where only a text is expected, and becomes one. A
    mapping becomes a dataclass.

    Raises:
        TypeError: The value does not fit.
    """
    if kind is Any or (value is None and kind in (None, NoneType)):
        return value
    if get_origin(kind) in (Union, UnionType):
        return _fit_one_of(value, _kinds_of(kind))
    if get_origin(kind) is Literal:
        return _checked(value, any(_is_choice(value, choice) for choice in get_args(kind)))
    if kind is dict or get_origin(kind) is dict:
        return _checked(value, isinstance(value, Mapping))
    if kind in (list, tuple) or get_origin(kind) in (list, tuple):
        return _fit_items(value, kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _checked(value, value in [member.value for member in kind])
    if is_dataclass(kind) and isinstance(kind, type):
        return kind(**_checked(value, isinstance(value, Mapping)))
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return _checked(value, _is_plain(value, kind))


def _kinds_of(kind: Any) -> list[Any]:
    """Return the types of a union. Text comes last, because a number fits there too.

    If the union has an enumeration of names, no other text fits, so text is left out.
    """
    kinds = list(get_args(kind))
    if any(isinstance(each, type) and issubclass(each, Enum) for each in kinds):
        kinds = [each for each in kinds if each is not str]
    return sorted(kinds, key=lambda each: each is str)


def _fit_one_of(value: Any, kinds: list[Any]) -> Any:
    """Return the value in the form of the first type that it fits; raise TypeError if it fits none."""
    for kind in kinds:
        try:
            return fit_value(value, kind)
        except TypeError:
            continue
    raise TypeError


def _fit_items(value: Any, kind: Any) -> list | tuple:
    """Return a list or tuple with its items in the form that `kind`, a type of lists or tuples, says."""
    item_kinds, container = get_args(kind), get_origin(kind) or kind
    _checked(value, isinstance(value, (list, tuple)))
    if container is tuple and item_kinds and Ellipsis not in item_kinds:
        _checked(value, len(value) == len(item_kinds))
        return tuple(fit_value(item, item_kind) for item, item_kind in zip(value, item_kinds, strict=True))
    return container(fit_value(item, item_kinds[0] if item_kinds else Any) for item in value)


def _checked(value: Any, fits: bool) -> Any:
    """Return the value; raise TypeError unless it fits."""
    if not fits:
        raise TypeError
    return value


def _is_choice(value: Any, choice: Any) -> bool:
    """Return whether a value is the choice, or a name of the family that the choice stands for."""
    # PEFT writes a family of names like this: "pissa_niter_[number of iters]".
    family = choice.partition("[")[0] if isinstance(choice, str) and "[" in choice else None
    is_member = family is not None and isinstance(value, str) and value.startswith(family)
    return is_member or (value == choice and type(value) is type(choice))


def _is_plain(value: Any, kind: Any) -> bool:
    """Return whether a value is of type `kind`: bool, int, float (or a whole number) or str."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind if kind in (int, str) else ())


def in_words(kind: Any) -> str:
    """Describe what a field of type `kind` accepts, in words that complete "expected ..."."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(dict.fromkeys(in_words(each) for each in _kinds_of(kind)))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    if kind in (list, tuple) or get_origin(kind) in (list, tuple):
        return "a list"
    return WORDS.get(kind, "a mapping")


def fit_setting(name: str, value: Any, kind: Any) -> Any:
    """Return the value of a setting in the form that its field takes (see `fit_value`).

    Raises:
        ValueError: The value does not fit.
    """
    try:
        return fit_value(value, kind)
    except TypeError:
        raise ValueError(f"the setting `{name}` is {value!r}; expected {in_words(kind)}.") from None


def set_by_option(name: str, option: str, flag: str) -> ValueError:
    """Return the error for a field that is not a setting, because an option sets it.

    Args:
        name: The field.
        option, flag: The option's name in Python and on the command line.
    """
    return ValueError(
        f"`{name}` is not a setting: the option `{option}` sets it. Give that ({flag} on the command line)."
    )

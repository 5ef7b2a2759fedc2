"""Check the values of settings against the types of the fields that they set.

The values come from YAML or from Python code. The fields belong to classes of transformers and PEFT.
"""

from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


def fit_value(value: Any, type_: Any) -> Any:
    """Return a plain value, such as YAML has, in the form that a field of this type takes.

    A whole number fits where a number is expected. A number fits where only a text is expected, and becomes one. A
    mapping becomes a dataclass.

    Raises:
        TypeError: The value does not fit.
    """
    if type_ is Any or (value is None and type_ in (None, NoneType)):
        return value
    if get_origin(type_) in (Union, UnionType):
        return _fit_one_of(value, _types_of(type_))
    if get_origin(type_) is Literal:
        return _checked(value, any(_is_choice(value, choice) for choice in get_args(type_)))
    if type_ is dict or get_origin(type_) is dict:
        return _checked(value, isinstance(value, Mapping))
    if type_ in (list, tuple) or get_origin(type_) in (list, tuple):
        return _fit_items(value, type_)
    if isinstance(type_, type) and issubclass(type_, Enum):
        return _checked(value, value in [member.value for member in type_])
    if is_dataclass(type_) and isinstance(type_, type):
        return type_(**_checked(value, isinstance(value, Mapping)))
    if type_ is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return _checked(value, _is_plain(value, type_))


def _types_of(type_: Any) -> list[Any]:
    """Return the types of a union. Text comes last, because a number fits there too.

    If the union has an enumeration of names, no other text fits, so text is left out.
    """
    types = list(get_args(type_))
    if any(isinstance(each, type) and issubclass(each, Enum) for each in types):
        types = [each for each in types if each is not str]
    return sorted(types, key=lambda each: each is str)


def _fit_one_of(value: Any, types: list[Any]) -> Any:
    """Return the value in the form of the first type that it fits; raise TypeError if it fits none."""
    for type_ in types:
        try:
            return fit_value(value, type_)
        except TypeError:
            continue
    raise TypeError


def _fit_items(value: Any, type_: Any) -> list | tuple:
    """Return a list or tuple with its items in the form that a type of lists or tuples says."""
    item_types, container = get_args(type_), get_origin(type_) or type_
    _checked(value, isinstance(value, (list, tuple)))
    if container is tuple and item_types and Ellipsis not in item_types:
        _checked(value, len(value) == len(item_types))
        return tuple(fit_value(item, item_type) for item, item_type in zip(value, item_types, strict=True))
    return container(fit_value(item, item_types[0] if item_types else Any) for item in value)


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


def _is_plain(value: Any, type_: Any) -> bool:
    """Return whether a value is of a plain type: bool, int, float (or a whole number) or str."""
    if isinstance(value, bool):
        return type_ is bool
    return isinstance(value, (int, float) if type_ is float else type_ if type_ in (int, str) else ())


def in_words(type_: Any) -> str:
    """Describe what a field of this type accepts, in words that complete "expected ..."."""
    if get_origin(type_) in (Union, UnionType):
        return " or ".join(dict.fromkeys(in_words(each) for each in _types_of(type_)))
    if get_origin(type_) is Literal:
        return f"one of {', '.join(map(str, get_args(type_)))}"
    if isinstance(type_, type) and issubclass(type_, Enum):
        return f"one of {', '.join(str(member.value) for member in type_)}"
    if type_ in (list, tuple) or get_origin(type_) in (list, tuple):
        return "a list"
    return WORDS.get(type_, "a mapping")


def fit_setting(name: str, value: Any, type_: Any) -> Any:
    """Return the value of a setting in the form that its field takes (see `fit_value`).

    Raises:
        ValueError: The value does not fit.
    """
    try:
        return fit_value(value, type_)
    except TypeError:
        raise ValueError(f"the setting `{name}` is {value!r}; expected {in_words(type_)}.") from None


def set_by_option(name: str, option: str, flag: str) -> ValueError:
    """Return the error for a field that is not a setting, because an option sets it.

    Args:
        name: The field.
        option, flag: The option's name in Python and on the command line.
    """
    return ValueError(
        f"`{name}` is not a setting: the option `{option}` sets it. Pass that option ({flag} on the command line)."
    )

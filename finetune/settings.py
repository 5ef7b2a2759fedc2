"""Settings: fields of transformers' `Seq2SeqTrainingArguments` and PEFT's `LoraConfig`, by their names there.

Their names and types are checked before anything is read or trained.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

OPTION_FOR = {  # fields that an option of ours sets, and that option
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "bf16": "precision",
    "output_dir": "output",
    "resume_from_checkpoint": "resume",
    "gradient_accumulation_steps": "gradient_accumulation",
    "load_best_model_at_end": "keep_best",
    "early_stopping_patience": "patience",
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
}
_HUB = "`t5fusion export` and `t5fusion push` bring a model to the Hub"
_IDLE = "it has no effect here"
_OURS = "t5fusion sets it"
_BEST = "the model with the lowest held-out loss is the best one"
NO_SETTING = {  # fields that are no settings, and why
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo"), _HUB),
    **dict.fromkeys(("hub_always_push", "hub_revision"), _HUB),
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "local_rank", "disable_tqdm"), _IDLE),
    **dict.fromkeys(("task_type", "peft_type", "peft_version", "auto_mapping", "inference_mode", "revision"), _OURS),
    "base_model_name_or_path": _OURS,
    **dict.fromkeys(("metric_for_best_model", "greater_is_better"), _BEST),
}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


class Settings(NamedTuple):
    """Settings by the class that they belong to, with values of the types that their fields have."""

    trainer: dict[str, Any]  # of Seq2SeqTrainingArguments
    lora: dict[str, Any]  # of LoraConfig


def read_settings(settings: Mapping[str, Any] | None, options: Collection[str] = ()) -> Settings:
    """Return settings by the class that they belong to.

    Args:
        settings: a value for each name: a number, a text, true or false, null, or a list or mapping of these.
        options: names of options, which are no settings.

    Raises:
        ValueError: a name is unknown or no setting, or a value has another type than the field.
    """
    read = Settings({}, {})
    for name, value in (settings or {}).items():
        _check_name(name, options)
        try:
            json.dumps(value)  # as the record of the training will hold it
        except (TypeError, ValueError):
            raise ValueError(
                f"the setting `{name}` is a {type(value).__name__}; expected a number, a text, true or false, or a "
                "list or mapping of these."
            ) from None
        of_trainer, of_lora = _field_types()
        belongs, kind = (read.lora, of_lora[name]) if name in of_lora else (read.trainer, of_trainer[name])
        try:
            belongs[name] = fitted(value, kind)
        except TypeError:
            raise ValueError(f"the setting `{name}` is {value!r}; expected {in_words(kind)}.") from None
    return read


def check_settings(settings: Mapping[str, Any], options: Collection[str], without_lora: bool) -> None:
    """Raise ValueError for a setting that cannot be used.

    Args:
        settings, options: as for `read_settings`.
        without_lora: whether there is no LoRA, so that its settings would have no effect.
    """
    read = read_settings(settings, options)
    if without_lora and read.lora:
        raise ValueError(f"the setting `{min(read.lora)}` has no effect with `full`: it is LoRA's. Leave one out.")
    _check_with_peft(read.lora)


def _check_with_peft(settings: dict[str, Any]) -> None:
    """Raise ValueError if PEFT itself refuses settings of LoRA."""
    from peft import LoraConfig  # slow, and without settings not needed to check options

    try:
        LoraConfig(**settings)
    except (TypeError, ValueError, ImportError) as error:
        raise ValueError(f"PEFT refuses the settings of LoRA: {error}") from error


def _check_name(name: str, options: Collection[str]) -> None:
    option = name if name in options else OPTION_FOR.get(name)
    if option is not None:
        raise ValueError(
            f"`{name}` is no setting: the option `{option}` sets it. Give that (--{option.replace('_', '-')} on the "
            "command line)."
        )
    if name in NO_SETTING:
        raise ValueError(f"`{name}` is no setting: {NO_SETTING[name]}. Leave it out.")
    known = [*_field_types()[0], *_field_types()[1]]
    if name not in known:
        nearest = get_close_matches(str(name), [*known, *options], 1)
        hint = f"did you mean `{nearest[0]}`?" if nearest else "names are those of transformers and PEFT."
        raise ValueError(f"there is no setting `{name}` in Seq2SeqTrainingArguments or LoraConfig; {hint}")


def _field_types() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the type of each field, by its name, of Seq2SeqTrainingArguments and of LoraConfig."""
    from peft import LoraConfig  # both are slow, and without settings not needed to check options
    from transformers import Seq2SeqTrainingArguments

    def types(options: Any) -> dict[str, Any]:
        hints = get_type_hints(options)
        return {each.name: hints[each.name] for each in fields(options) if each.init}

    return types(Seq2SeqTrainingArguments), types(LoraConfig)


def fitted(value: Any, kind: Any) -> Any:
    """Return a plain value, such as YAML has, as the type of a field has it.

    A whole number fits where a number is expected; a number fits where only a text is expected; a mapping makes a
    dataclass.

    Raises:
        TypeError: the value does not fit.
    """
    if kind is Any or (value is None and kind in (None, NoneType)):
        return value
    if get_origin(kind) in (Union, UnionType):
        return _fitted_to_one(value, _kinds_of(kind))
    if get_origin(kind) is Literal:
        return _checked(value, any(_is_choice(value, choice) for choice in get_args(kind)))
    if kind is dict or get_origin(kind) is dict:
        return _checked(value, isinstance(value, Mapping))
    if kind in (list, tuple) or get_origin(kind) in (list, tuple):
        return _fitted_items(value, kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _checked(value, value in [member.value for member in kind])
    if is_dataclass(kind) and isinstance(kind, type):
        return kind(**_checked(value, isinstance(value, Mapping)))
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return _checked(value, _is_plain(value, kind))


def _kinds_of(kind: Any) -> list[Any]:
    """Return the types of a union, text last. Beside names to choose from, other text is no type of its own."""
    kinds = list(get_args(kind))
    if any(isinstance(each, type) and issubclass(each, Enum) for each in kinds):
        kinds = [each for each in kinds if each is not str]
    return sorted(kinds, key=lambda each: each is str)


def _fitted_to_one(value: Any, kinds: list[Any]) -> Any:
    for kind in kinds:
        try:
            return fitted(value, kind)
        except TypeError:
            continue
    raise TypeError


def _fitted_items(value: Any, kind: Any) -> list | tuple:
    items, to = get_args(kind), get_origin(kind) or kind
    _checked(value, isinstance(value, (list, tuple)))
    if to is tuple and items and Ellipsis not in items:
        _checked(value, len(value) == len(items))
        return tuple(fitted(each, item) for each, item in zip(value, items, strict=True))
    return to(fitted(each, items[0] if items else Any) for each in value)


def _checked(value: Any, fits: bool) -> Any:
    if not fits:
        raise TypeError
    return value


def _is_choice(value: Any, choice: Any) -> bool:
    # PEFT spells a family of names like this: "pissa_niter_[number of iters]".
    family = choice.partition("[")[0] if isinstance(choice, str) and "[" in choice else None
    is_member = family is not None and isinstance(value, str) and value.startswith(family)
    return is_member or (value == choice and type(value) is type(choice))


def _is_plain(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind if kind in (int, str) else ())


def in_words(kind: Any) -> str:
    """Return what a type of a field accepts, in words that complete "expected ..."."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(dict.fromkeys(in_words(each) for each in _kinds_of(kind)))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    if kind in (list, tuple) or get_origin(kind) in (list, tuple):
        return "a list"
    return WORDS.get(kind, "a mapping")

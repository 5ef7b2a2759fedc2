"""Check settings: fields of transformers' `Seq2SeqTrainingArguments` and PEFT's `LoraConfig`, by their names there.

Names and types are checked before any row is read.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, get_type_hints

from ..common.errors import did_you_mean
from .setting_values import fit_setting, set_by_option

OPTION_FOR = {  # fields that an option of this package sets, and that option
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
_HUB = "`t5fusion export` and `t5fusion push` publish a model on the Hub"
_IDLE = "it has no effect here"
_OURS = "t5fusion sets it"
_BEST = "the model with the lowest held-out loss is the best one"
ALSO_OPTIONS = ("max_steps",)  # Earlier releases had it as a setting only, and what they saved still loads.
NO_SETTING = {  # fields that are not settings, and the reason
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo"), _HUB),
    **dict.fromkeys(("hub_always_push", "hub_revision"), _HUB),
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "local_rank", "disable_tqdm"), _IDLE),
    **dict.fromkeys(("task_type", "peft_type", "peft_version", "auto_mapping", "inference_mode", "revision"), _OURS),
    "base_model_name_or_path": _OURS,
    **dict.fromkeys(("metric_for_best_model", "greater_is_better"), _BEST),
}


class Settings(NamedTuple):
    """Settings of each class, with values of the types that their fields have."""

    trainer: dict[str, Any]  # of Seq2SeqTrainingArguments
    lora: dict[str, Any]  # of LoraConfig


def read_settings(settings: Mapping[str, Any] | None, options: Collection[str] = ()) -> Settings:
    """Check settings, and return them by the class that they belong to.

    Args:
        settings: A value for each name: a number, a text, true or false, null, or a list or mapping of these.
        options: Names of options, which are not settings.

    Raises:
        ValueError: A name is unknown or not a setting, or a value has a different type than the field.
    """
    checked = Settings({}, {})
    for name, value in (settings or {}).items():
        _check_name(name, options)
        try:
            json.dumps(value)  # The record of the training will hold it as JSON.
        except (TypeError, ValueError):
            raise ValueError(
                f"the setting `{name}` is of type {type(value).__name__}; expected a number, a text, true or false, or "
                "a list or mapping of these."
            ) from None
        trainer_types, lora_types = _field_types()
        if name in lora_types:
            checked.lora[name] = fit_setting(name, value, lora_types[name])
        else:
            checked.trainer[name] = fit_setting(name, value, trainer_types[name])
    return checked


def check_settings(settings: Mapping[str, Any], options: Collection[str], without_lora: bool) -> None:
    """Raise ValueError for a setting that cannot be used.

    Args:
        settings, options: As for `read_settings`.
        without_lora: Whether all weights train, so that settings of LoRA would have no effect.
    """
    checked = read_settings(settings, options)
    if without_lora and checked.lora:
        raise ValueError(f"the setting `{min(checked.lora)}` has no effect with `full`: it is LoRA's. Leave one out.")
    _check_with_peft(checked.lora)


def _check_with_peft(settings: dict[str, Any]) -> None:
    """Raise ValueError if PEFT itself refuses settings of LoRA."""
    from peft import LoraConfig  # It is slow to import, and only settings need it.

    try:
        LoraConfig(**settings)
    except (TypeError, ValueError, ImportError) as error:
        raise ValueError(f"PEFT refuses the settings of LoRA: {error}") from error


def _check_name(name: str, options: Collection[str]) -> None:
    """Raise ValueError if there is no setting of this name."""
    option = name if name in options and name not in ALSO_OPTIONS else OPTION_FOR.get(name)
    if option is not None:
        raise set_by_option(name, option, _flag_of(option))
    if name in NO_SETTING:
        raise ValueError(f"`{name}` is not a setting: {NO_SETTING[name]}. Leave it out.")
    known = [*_field_types()[0], *_field_types()[1]]
    if name not in known:
        hint = did_you_mean(name, [*known, *options], "see the pages of transformers and PEFT for the names.")
        raise ValueError(f"there is no setting `{name}` in Seq2SeqTrainingArguments or LoraConfig; {hint}")


def _flag_of(option: str) -> str:
    """Return what sets an option on the command line, such as "--lr", or "--no-packing" for one that is on."""
    from .options import TrainingOptions  # That module imports this one.

    metadata: Mapping[str, Any] = next((each.metadata for each in fields(TrainingOptions) if each.name == option), {})
    opposite, _ = metadata.get("opposite") or (option, None)
    return "--set" if option == "settings" else f"--{opposite.replace('_', '-')}"


def _field_types() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the type of each field, by its name, of Seq2SeqTrainingArguments and of LoraConfig."""
    from peft import LoraConfig  # Both are slow to import, and only settings need them.
    from transformers import Seq2SeqTrainingArguments

    def types(options: Any) -> dict[str, Any]:
        hints = get_type_hints(options)
        return {each.name: hints[each.name] for each in fields(options) if each.init}

    return types(Seq2SeqTrainingArguments), types(LoraConfig)

"""Choose an engine for a model and this processor, and load it."""

from typing import Any, NamedTuple

import torch
from torch import nn

from ..common.console import say
from .features import Features, detect_features
from .merging import merged_copy
from .names import REFERENCE, check_engine
from .packed_model import PackedT5

CANNOT_RUN = "the engine {} cannot run this model: {}. Use the engine torch."


class Choice(NamedTuple):
    """The engine that runs; and the reason, if a different engine was asked for."""

    name: str
    reason: str = ""  # "" if the engine that was asked for runs


def choose_engine(model: nn.Module, engine: str, features: Features | None = None) -> Choice:
    """Return which engine runs if `engine` is asked for.

    Args:
        model: A fused model, with or without an adapter.
        engine: A name in `ENGINES`.
        features: What the processor can do; None to find out.

    Raises:
        ValueError: There is no such engine, or it cannot run this model.
    """
    check_engine(engine)
    if engine == "torch":
        return Choice("torch")
    features = features or detect_features()
    missing = _missing_feature(engine, features)
    obstacle = _obstacle(model, "fp32" if missing else engine)
    if engine == "auto":
        if obstacle:
            return Choice("torch", obstacle)
        return Choice("fp32", "it gives the tokens of torch, and its weights are packed for this processor")
    if obstacle:
        raise ValueError(CANNOT_RUN.format(engine, obstacle))
    return Choice("fp32", missing) if missing else Choice(engine)


def _missing_feature(engine: str, features: Features) -> str:
    """Return what the processor lacks for an engine; "" if it lacks nothing."""
    if engine == "bf16" and not features.bf16:
        return "this processor does not multiply bfloat16 itself"
    if engine == "int8" and not features.int8:
        return "this processor does not multiply int8 itself"
    return ""


def load_engine(model: Any, engine: str = "auto", features: Features | None = None) -> Any:
    """Return an engine for a model: an object with transformers' `generate`.

    Every engine except torch is a copy, which later changes of the model do not reach. The model itself does not
    change. If a different engine runs than the one that was asked for, a message on standard error says so.

    Args:
        model: A fused model, with or without an adapter, on the CPU and in evaluation mode.
        engine: "torch" for the model itself, "fp32", "bf16", "int8", or "auto" (see `ENGINES`).
        features: What the processor can do; None to find out.

    Returns:
        The model itself with "torch", otherwise a [`PackedT5`].

    Raises:
        ValueError: There is no such engine, or it cannot run this model.
    """
    choice = choose_engine(model, engine, features)
    packed = None
    if choice.name != REFERENCE:
        try:
            packed = PackedT5(merged_copy(model), choice.name, features or detect_features())
        except ValueError as error:
            if engine != "auto":
                raise ValueError(CANNOT_RUN.format(engine, error)) from error
            choice = Choice(REFERENCE, str(error))
    if choice.reason:
        say(f"Engine {engine}: {choice.name} runs, because {choice.reason}.")
    return model if packed is None else packed


def _obstacle(model: nn.Module, engine: str) -> str:
    """Return why the engines other than torch cannot run a model; "" if they can."""
    device = next(model.parameters()).device
    if device.type != "cpu":
        return f"the model is on the device {device}, and the other engines run on a CPU"
    adapter: Any = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        return f"the model's {adapter.peft_type.value} adapter is made of inputs, which cannot be merged into weights"
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if engine in ("fp32", "auto") and dtypes != {torch.float32}:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return f"the model's weights are {names}, and only float32 gives the same tokens"
    return ""

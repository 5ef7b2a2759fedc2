"""The options of a training, and the checks on them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real

import torch

from ..common.run_folder import MAX_SOURCE, MAX_TARGET

STARTS = ("targets", "random")
LORA_ONLY = ("rank", "alpha", "dropout", "target_modules")  # options that have no effect where all weights train
NUMBERS: dict[
    str, tuple[type, Callable[[float], bool], str]
] = {  # kind, check and words for each number of the options
    "epochs": (Real, lambda value: value > 0, "a number above 0"),
    "batch_size": (Integral, lambda value: value >= 1, "a whole number from 1"),
    "lr": (Real, lambda value: value > 0, "a number above 0"),
    "fusion_lr": (Real, lambda value: value >= 0, "0 or a number above it"),
    "rank": (Integral, lambda value: value >= 1, "a whole number from 1"),
    "alpha": (Real, lambda value: value > 0, "a number above 0"),
    "dropout": (Real, lambda value: 0 <= value < 1, "a number from 0 to less than 1"),
    "max_source": (Integral, lambda value: value >= 2, "a whole number from 2"),
    "max_target": (Integral, lambda value: value >= 2, "a whole number from 2"),
    "seed": (Integral, lambda value: 0 <= value < 2**32, f"a whole number from 0 to {2**32 - 1}"),
}


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the defaults are the first user's, but where `docs/method.md` found better.

    Args:
        base: Hub id or folder of a plain T5 or of a fused model; "tiny_t5" is the embedded one.
        full: train all weights, not LoRA.
        batch_size: of each process.
        lr: peak learning rate; None for 1e-3 with LoRA, 5e-4 without.
        fusion_lr: that of the fusion layer; None for the same.
        fusion_start: "targets" (closed-form, see `fusion_start`) or "random".
        train_fusion: whether the adapter trains and holds the fusion layer; if not, it stays at its random start, which
            every machine makes alike.
        target_modules: what LoRA is put on, by the modules' names or the ends of their paths, each of which must be in
            the model; None for each matrix of the blocks. ("q", "v") with `train_fusion=False` is the first user's own
            LoraConfig.
        max_source, max_target: what `data.prepare` cut the rows to, kept for whoever evaluates.
        precision: "fp32", "bf16", or "auto": bf16 where the processor is fast at it.

    Raises:
        ValueError: a value is out of its range or not a number, or an option has no effect beside another.
    """

    base: str = "tiny_t5"
    full: bool = False
    epochs: float = 3.0
    batch_size: int = 8
    lr: float | None = None
    fusion_lr: float | None = None
    fusion_start: str = "targets"
    train_fusion: bool = True
    target_modules: tuple[str, ...] | None = None
    rank: int = 32
    alpha: int = 32
    dropout: float = 0.05
    max_source: int = MAX_SOURCE
    max_target: int = MAX_TARGET
    seed: int = 42
    precision: str = "auto"

    def __post_init__(self):
        if self.fusion_start not in STARTS:
            raise ValueError(f"`fusion_start` is {self.fusion_start!r}; expected one of {', '.join(STARTS)}.")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"`precision` is {self.precision!r}; expected auto, fp32 or bf16.")
        for name, (kind, fits, expected) in NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in ("lr", "fusion_lr"):
                continue
            if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value) or not fits(value):
                raise ValueError(f"`{name}` is {value!r}; expected {expected}.")
        modules = self.target_modules
        if modules is not None and (isinstance(modules, str) or not modules or not all(modules)):
            # a string would be taken for its letters
            raise ValueError(f"`target_modules` is {modules!r}; expected names such as ('q', 'v'), or None for all.")
        defaults = {field.name: field.default for field in fields(self)}
        idle = [f"`{name}`" for name in LORA_ONLY if self.full and getattr(self, name) != defaults[name]]
        if idle:
            have, are = ("have", "they are") if len(idle) > 1 else ("has", "it is")
            raise ValueError(f"{' and '.join(idle)} {have} no effect with `full`: {are} LoRA's. Leave one out.")
        if self.fusion_lr is not None and not self.train_fusion:
            raise ValueError("`fusion_lr` has no effect with `train_fusion=False`. Leave one out.")

    @property
    def peak_lr(self) -> float:
        return self.lr if self.lr is not None else 5e-4 if self.full else 1e-3

    @property
    def bf16(self) -> bool:
        return self.precision == "bf16" or (self.precision == "auto" and fast_bf16())


def fast_bf16() -> bool:
    """Whether this machine multiplies in bf16 faster than in fp32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

"""The options of a training: the name, type, default, help and allowed values of each, in one place.

The command line makes its options from the fields of these classes (see `cli/parsing.py`). This module imports nothing
slow, because the command line must be quick.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, get_args, get_origin

from ..common.limits import MAX_SOURCE, MAX_TARGET
from ..common.panels import DATA, LORA, TRAINING, VECTORS
from ..naming_t5fusion import NEWEST_EMBEDDED
from .reporting import check_reporters
from .settings import check_settings
from .vector_options import check_kind_options

LORA_ONLY = ("rank", "alpha", "dropout", "target_modules")  # options that have no effect if all weights train
DTYPES = ("float16", "bfloat16")  # in which `t5fusion shrink` saves weights


class Allowed(NamedTuple):
    """The numbers that an option accepts."""

    number_type: type  # Real or Integral
    accepts: Callable[[float], bool]
    words: str  # completes "expected ..."


POSITIVE = Allowed(Real, lambda number: number > 0, "a number above 0")
NOT_NEGATIVE = Allowed(Real, lambda number: number >= 0, "a number from 0")
FRACTION = Allowed(Real, lambda number: 0 <= number < 1, "a number from 0 to less than 1")
COUNT = Allowed(Integral, lambda number: number >= 1, "a whole number from 1")
LENGTH = Allowed(Integral, lambda number: number >= 2, "a whole number from 2")  # at least a token and </s>
SEED = Allowed(Integral, lambda number: 0 <= number < 2**32, f"a whole number from 0 to {2**32 - 1}")


def option(default: Any, help: str, allowed: Allowed | None = None, *, panel: str = TRAINING, **metadata: Any) -> Any:
    """Return a dataclass field that is an option.

    Args:
        default: The default value.
        help: A sentence that says what the option does. --help shows it.
        allowed: The numbers that the option accepts; None if its values are not numbers.
        panel: The panel of --help that shows the option, one of `common.panels`.
        **metadata: What the command line needs to know. `parse`: a function that turns the text on the command
            line into the value. `opposite`: name and help of a flag that sets the field from True to False. `metavar`:
            the word that --help shows for the value. `command_line`: False for a field that is not an option there.
    """
    return field(default=default, metadata={"help": help, "allowed": allowed, "panel": panel, **metadata})


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a text such as "q, v"."""
    return tuple(name.strip() for name in text.split(","))


def names_unless(word: str) -> Callable[[str], tuple[str, ...] | None]:
    """Return a function that splits a text into names, but returns None for one word, such as "all"."""
    return lambda text: None if text == word else split_names(text)


def describe_fields(options: type) -> type:
    """Put the help of each field into the docstring of a class of options."""
    arguments = "".join(f"        {each.name}: {each.metadata['help']}\n" for each in fields(options))
    summary, raises, rest = (options.__doc__ or "").partition("    Raises:")
    options.__doc__ = f"{summary}    Args:\n{arguments}\n{raises}{rest}"
    return options


def check_fields(options: Any) -> None:
    """Raise ValueError for the first field whose value is not allowed."""
    for each in fields(options):
        value, allowed = getattr(options, each.name), each.metadata["allowed"]
        if get_origin(each.type) is Literal and value not in get_args(each.type):
            raise ValueError(f"`{each.name}` is {value!r}; expected one of {', '.join(get_args(each.type))}.")
        if allowed is None or (value is None and each.default is None):
            continue
        is_number = isinstance(value, allowed.number_type) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not allowed.accepts(value):
            raise ValueError(f"`{each.name}` is {value!r}; expected {allowed.words}.")


@describe_fields
@dataclass(frozen=True)
class Recipe:
    """How the vectors and prompts of a new processor are made.

    Raises:
        ValueError: A value is not allowed.
    """

    encoder: str | None = option(
        None,
        "Sentence-transformers model for vectors. Default: all-MiniLM-L6-v2, or none with --vector-column.",
        panel=VECTORS,
    )
    lexical_dim: int = option(384, "Width of the encoder's vectors.", COUNT, panel=VECTORS)
    template: str = option(
        "{text}", "The prompt. {text} stands for the row's text; rows without text need no {text}.", panel=DATA
    )
    kinds: Mapping[str, Mapping[str, Any]] | None = option(
        None,
        "Options of the kinds of vectors that columns hold: tokens, projector and scale, by the name of the kind, such "
        "as {'image': {'tokens': 8, 'projector': 'mlp'}, 'price': {'scale': 'log'}}.",
        command_line=False,
    )

    def __post_init__(self):
        check_fields(self)
        check_kind_options(self.kinds or {})


@describe_fields
@dataclass(frozen=True)
class TrainingOptions:
    """How to train. Defaults follow the measurements in docs/method.md.

    Raises:
        ValueError: A value is not allowed, or an option has no effect because of a second option.
    """

    base_model: str = option(
        NEWEST_EMBEDDED,
        f'Hub id or folder of a T5, or of a fused model. "{NEWEST_EMBEDDED}" is the one in this package.',
    )
    full: bool = option(False, "Train all weights instead of LoRA.")
    target_modules: tuple[str, ...] | None = option(
        None,
        "Modules that LoRA adapts, by name or by the end of their path, such as q,v. Default: all, which means every "
        "matrix of the blocks.",
        panel=LORA,
        parse=names_unless("all"),
    )
    train_fusion: bool = option(
        True,
        "Train the fusion layer. Otherwise it keeps its initial random weights, which are the same on every machine, "
        "and only the scales of its vectors are fitted to the rows.",
        panel=VECTORS,
        opposite=(
            "freeze_fusion",
            "Keep the fusion layer at its initial random weights. Only the scales of vectors are fitted to the rows.",
        ),
    )
    fusion_start: Literal["targets", "random"] = option(
        "targets",
        "Weights that the fusion layer starts from: fitted to the targets in closed form, or random.",
        panel=VECTORS,
    )
    epochs: float = option(3.0, "Passes over the rows.", POSITIVE)
    max_steps: int | None = option(
        None, "Number of steps to train, instead of a number of epochs. --streaming needs it.", COUNT
    )
    batch_size: int = option(8, "Rows in a batch, in each process.", COUNT)
    lr: float | None = option(None, "Peak learning rate. Default: 1e-3 for LoRA, 5e-4 for all weights.", POSITIVE)
    fusion_lr: float | None = option(
        None,
        "Peak learning rate of the fusion layer. Default: the same as for the other weights.",
        NOT_NEGATIVE,
        panel=VECTORS,
    )
    vector_dropout: float = option(
        0.0,
        "Share of rows that lose their vectors in a training step, so that the model also learns to do without.",
        FRACTION,
        panel=VECTORS,
    )
    rank: int = option(32, "Rank of LoRA.", COUNT, panel=LORA)
    alpha: int = option(32, "Scale of LoRA: its output is multiplied by alpha / rank.", POSITIVE, panel=LORA)
    dropout: float = option(0.05, "Dropout of LoRA's input.", FRACTION, panel=LORA)
    max_source: int = option(MAX_SOURCE, "Longest input in tokens; longer ones are cut.", LENGTH, panel=DATA)
    max_target: int = option(MAX_TARGET, "Longest target in tokens; longer ones are cut.", LENGTH, panel=DATA)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "Precision of computation. auto: bf16 on machines where it is fast."
    )
    packing: bool = option(
        True,
        "Put short rows of a batch into one sequence, so that less is padding. The result is the same within rounding.",
        opposite=("no_packing", "Do not put several short rows of a batch into one sequence."),
    )
    streaming: bool = option(
        False, "Read the rows while the model trains on them, for a set that does not fit on a disk.", panel=DATA
    )
    shuffle_buffer: int = option(
        10_000, "With --streaming: rows that are in memory at a time, and shuffled with each other.", COUNT, panel=DATA
    )
    seed: int = option(42, "Seed of the random numbers.", SEED)
    gradient_accumulation: int = option(1, "Batches whose gradients are added up for one training step.", COUNT)
    warmup_steps: float = option(
        0.0,
        "Steps in which the learning rate rises to its peak. A number below 1 is a share of all steps.",
        NOT_NEGATIVE,
    )
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "constant",
        "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "warmup_stable_decay",
    ] = option(
        "linear",
        "How the learning rate changes after the warm-up: linear, cosine, constant, inverse_sqrt, ...",
        metavar="NAME",
    )  # fmt: skip
    eval_steps: int | None = option(None, "Steps between two evaluations. Default: one after each epoch.", COUNT)
    save_steps: int | None = option(None, "Steps between two checkpoints. Default: one after each epoch.", COUNT)
    logging_steps: int | None = option(
        None, "Steps between two entries of the log. Default: one after each epoch.", COUNT
    )
    keep_best: bool = option(False, "Save the model with the lowest held-out loss, instead of the last one.")
    patience: int | None = option(
        None,
        "Stop after this many evaluations in a row without a lower held-out loss, and save the model with the lowest.",
        COUNT,
    )
    report_to: tuple[str, ...] | None = option(
        None,
        "Experiment trackers to report the losses to: tensorboard, wandb, trackio, mlflow, ... Default: none.",
        parse=names_unless("none"),
    )
    settings: Mapping[str, Any] | None = option(
        None,
        "Any other field of transformers' Seq2SeqTrainingArguments or PEFT's LoraConfig, by its name there, such as "
        "{'weight_decay': 0.01, 'use_rslora': True}.",
        command_line=False,
    )

    def __post_init__(self):
        check_fields(self)
        self._check_modules()
        self._check_best()
        self._check_streaming()
        check_reporters(self.report_to or ())
        if self.settings:
            check_settings(self.settings, [each.name for each in fields(self)], without_lora=self.full)
            if "modules_to_save" in self.settings and not self.train_fusion:
                raise ValueError("`modules_to_save` has no effect with `train_fusion=False`. Leave one out.")

    def _check_modules(self) -> None:
        """Check the options of LoRA and of the fusion layer, and that each has an effect beside the others."""
        modules = self.target_modules
        # A string would be read as a sequence of letters.
        if modules is not None and (isinstance(modules, str) or not modules or not all(modules)):
            raise ValueError(f"`target_modules` is {modules!r}; expected names such as ('q', 'v'), or None for all.")
        defaults = {each.name: each.default for each in fields(self)}
        idle = [f"`{name}`" for name in LORA_ONLY if self.full and getattr(self, name) != defaults[name]]
        if idle:
            have, are = ("have", "they are") if len(idle) > 1 else ("has", "it is")
            raise ValueError(f"{' and '.join(idle)} {have} no effect with `full`: {are} LoRA's. Leave one out.")
        if self.fusion_lr is not None and not self.train_fusion:
            raise ValueError("`fusion_lr` has no effect with `train_fusion=False`. Leave one out.")

    def _check_best(self) -> None:
        """Check that each evaluation comes with a checkpoint, if the best model is kept."""
        if self.keeps_best and self.eval_steps != (self.save_steps or self.eval_steps):
            every = f"`eval_steps` is {self.eval_steps or 'None (each epoch)'} and `save_steps` is {self.save_steps}"
            raise ValueError(
                f"{every}; to keep the best model, a checkpoint is needed after each evaluation. Pass `eval_steps` "
                "only, or both the same number."
            )

    def _check_streaming(self) -> None:
        """Check the number of steps, which a set that is streamed needs, and the options beside it."""
        defaults = {each.name: each.default for each in fields(self)}
        if self.max_steps is not None and self.epochs != defaults["epochs"]:
            raise ValueError("`epochs` has no effect with `max_steps`. Leave one out.")
        if self.streaming and self.steps is None:
            raise ValueError(
                "`streaming` needs `max_steps`, the number of steps to train, because nothing says how many rows there "
                "are. Pass `max_steps` 1000, for example."
            )
        if not self.streaming and self.shuffle_buffer != defaults["shuffle_buffer"]:
            raise ValueError("`shuffle_buffer` has no effect without `streaming`. Leave it out.")

    @property
    def steps(self) -> int | None:
        """The number of steps to train; None if it follows from the epochs. Earlier releases had it as a setting."""
        steps = (self.settings or {}).get("max_steps", self.max_steps)
        return steps if isinstance(steps, int) and steps > 0 else None

    @property
    def keeps_best(self) -> bool:
        """Whether training saves the model with the lowest held-out loss, and not the last one."""
        return self.keep_best or self.patience is not None

    @property
    def peak_lr(self) -> float:
        """The peak learning rate of all weights but the fusion layer's."""
        return self.lr if self.lr is not None else 5e-4 if self.full else 1e-3

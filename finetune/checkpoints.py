"""The checkpoints of a training: find the newest whole one, check that training can resume from it, explain errors."""

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import TrainerState

from ..common.writing import cause_of
from ..naming_t5fusion import EMBEDDED, FIRST_EMBEDDED, first_line, name_to_record, was_embedded
from .options import TrainingOptions
from .output_folder import RESUME_CONDITIONS

STATE = "trainer_state.json"  # The Trainer writes this file last.
TORCH_FILES = ("*.pt", "*.pth", "*.bin")
NEEDED = {  # what a checkpoint must hold, and patterns of file names; a file must match one of them
    "weights": ("adapter_model.safetensors", "model*.safetensors", "pytorch_model*"),
    "state of the optimizer": ("optimizer.pt", "optimizer.bin", "optimizer_*"),
    "state of the learning rates": ("scheduler.pt",),
    "random numbers": ("rng_state*.pth",),
}
# Options that the first checkpoints did not record. With their defaults, training is as it was then.
OPTIONS_ADDED = (
    "gradient_accumulation", "warmup_steps", "lr_scheduler_type", "eval_steps", "save_steps", "logging_steps",
    "keep_best", "patience", "settings", "vector_dropout", "max_steps", "streaming", "shuffle_buffer",
)  # fmt: skip


def last_checkpoint(folder: Path) -> tuple[Path | None, dict[str, str]]:
    """Return the newest whole checkpoint (None if there is none), and the problem of each newer one by its name."""
    steps = {checkpoint: checkpoint.name.rpartition("-")[2] for checkpoint in folder.glob("checkpoint-*")}
    numbered = [checkpoint for checkpoint, step in steps.items() if step.isdecimal()]
    damaged: dict[str, str] = {}
    for checkpoint in sorted(numbered, key=lambda checkpoint: int(steps[checkpoint]), reverse=True):
        problem = problem_of(checkpoint)
        if problem is None:
            return checkpoint, damaged
        damaged[checkpoint.name] = problem
    return None, damaged


def problem_of(checkpoint: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint, in a few words; None if nothing is.

    The files may be readable and still not fit the model. `check_weights` and `loading` find that out.
    """
    if not (checkpoint / STATE).exists():
        return f"its saving was not finished: there is no {STATE}"
    for content, patterns in NEEDED.items():
        if not any(any(checkpoint.glob(pattern)) for pattern in patterns):
            return f"there is no {patterns[0]}, which holds the {content}"
    return _problem_of_json(checkpoint) or _problem_of_weights(checkpoint)


def _problem_of_json(checkpoint: Path) -> str | None:
    """Return what is wrong with the JSON files of a checkpoint; None if nothing is."""
    for name in (STATE, RESUME_CONDITIONS, "adapter_config.json"):
        if (checkpoint / name).exists() and not isinstance(_read_json(checkpoint / name), dict):
            return f"{name} is damaged"
    try:
        step = TrainerState.load_from_json(str(checkpoint / STATE)).global_step
    except (TypeError, ValueError):
        step = None
    if str(step) != checkpoint.name.rpartition("-")[2]:
        return f"{STATE} belongs to a different checkpoint"
    conditions = checkpoint / RESUME_CONDITIONS
    if conditions.exists() and not isinstance(_read_json(conditions).get("base"), str):
        return f"{RESUME_CONDITIONS} is not what t5fusion wrote"
    return None


def _problem_of_weights(checkpoint: Path) -> str | None:
    """Return what is wrong with the files of tensors in a checkpoint; None if nothing is."""
    for file in checkpoint.glob("*.safetensors"):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError):
            return f"{file.name} is damaged"
    for file in (file for pattern in TORCH_FILES for file in checkpoint.glob(pattern) if file.is_file()):
        try:
            with zipfile.ZipFile(file) as archive:
                is_damaged = archive.testzip() is not None
        except (zipfile.BadZipFile, OSError, EOFError):
            is_damaged = True
        if is_damaged:
            return f"{file.name} is {'damaged' if file.stat().st_size else 'empty'}"
    return None


def _read_json(file: Path):
    """Return the content of a JSON file; None if it is not JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None


def check_conditions(checkpoint: Path, expected: dict) -> None:
    """Check that a checkpoint comes from a training with the same options, texts and kinds of vectors.

    Args:
        checkpoint: The folder of the checkpoint.
        expected: The conditions of the current training (see `record.resume_conditions`).

    Raises:
        ValueError: Some conditions differ. The message names them.
    """
    defaults = {each.name: each.default for each in fields(TrainingOptions) if each.name in OPTIONS_ADDED}
    then = defaults | read_conditions(checkpoint, expected)
    now = json.loads(json.dumps(expected))  # JSON turns tuples into lists, as it did in the checkpoint.
    changes = [f"{name} was {then.get(name)}, now {value}" for name, value in now.items() if then.get(name) != value]
    if changes:
        raise ValueError(
            f"{checkpoint} was started with other settings: {'; '.join(changes)}. Resume with the same ones, or start "
            "over."
        )


def read_conditions(checkpoint: Path, default: dict) -> dict:
    """Return the conditions for resuming that a checkpoint records; `default` if it records none."""
    file = checkpoint / RESUME_CONDITIONS
    conditions = json.loads(file.read_text(encoding="utf-8")) if file.exists() else default
    base = conditions.get("base", "")
    # Earlier releases recorded the path of the embedded base model.
    name = FIRST_EMBEDDED if was_embedded(base, checkpoint) else name_to_record(base)
    return conditions | {"base": name} if name in EMBEDDED else conditions


def recorded_commit(checkpoints: Path) -> str | None:
    """Return the commit of the base model that the checkpoints in a folder record; None if none of them does."""
    recorded = [_read_json(file) for file in sorted(checkpoints.glob(f"checkpoint-*/{RESUME_CONDITIONS}"))]
    return next((each["commit"] for each in recorded if isinstance(each, dict) and each.get("commit")), None)


def check_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Check that the weights in a checkpoint have the names and shapes of the model's weights. Shards are not checked.

    Raises:
        ValueError: A weight is missing, unknown, or has a different shape.
    """
    if isinstance(model, PeftModel):
        file, expected = checkpoint / "adapter_model.safetensors", get_peft_model_state_dict(model)
    else:
        file, expected = checkpoint / "model.safetensors", model.state_dict()
    if not file.exists():
        return
    with safe_open(file, "pt") as weights:
        shapes = {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    wrong = [name for name in shapes if name not in expected or list(expected[name].shape) != shapes[name]]
    saved = {expected[name].data_ptr() for name in shapes if name in expected}  # Tied weights are saved once.
    wrong += [name for name, value in expected.items() if name not in shapes and value.data_ptr() not in saved]
    if wrong:
        raise ValueError(f"{len(wrong)} weights are missing, unknown or of a different shape, for example {min(wrong)}")


@contextmanager
def loading(checkpoint: str | os.PathLike | None, part: str) -> Iterator[None]:
    """Turn every error raised while a part of a checkpoint is loaded into a ValueError that names the checkpoint."""
    try:
        yield
    except Exception as error:  # torch, pickle, safetensors and json raise many types.
        cause = first_line(error)
        raise ValueError(
            f"{checkpoint} cannot be resumed from: {part} cannot be loaded ({cause}). Delete that checkpoint and "
            "resume from an earlier one, if there is one, or start over with --overwrite instead of --resume."
        ) from error


@contextmanager
def saving(folder: Path, checkpoints: Path) -> Iterator[None]:
    """Turn errors of writing to a folder into an OSError that says the cause and the checkpoint to resume from.

    Args:
        folder: The folder that is being written.
        checkpoints: The folder of all checkpoints.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        whole, _ = last_checkpoint(checkpoints)
        advice = f"run the same command with --resume: {whole.name} is whole" if whole else "start over"
        cause = cause_of(error, folder)
        raise OSError(f"{folder} could not be written: {cause}. Free some space, and {advice}.") from error

"""Checkpoints of a training: which of them are whole, what a resumed training must agree with, and how they fail."""

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import TrainerState

from ..common.errors import first_line
from ..naming_t5fusion import EMBEDDED, name_of_embedded, was_embedded
from .output_folder import RESUMED

STATE = "trainer_state.json"  # what the Trainer writes last
TORCH_FILES = ("*.pt", "*.pth", "*.bin")
NEEDED = {  # what a checkpoint consists of, and the files of which it has at least one
    "weights": ("adapter_model.safetensors", "model*.safetensors", "pytorch_model*"),
    "state of the optimizer": ("optimizer.pt", "optimizer.bin", "optimizer_*"),
    "state of the rates": ("scheduler.pt",),
    "random numbers": ("rng_state*.pth",),
}
LITTLE = 2**20  # bytes: with no more left on a device, what fails there fails for that


def last_checkpoint(folder: Path) -> tuple[Path | None, dict[str, str]]:
    """The newest checkpoint that is whole, and by name what is wrong with each that is newer; None if none is whole."""
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
    """What is wrong with the files of a checkpoint, in a few words; None if it is whole.

    That they are read does not say that they fit the model: see `check_weights` and `loading`.
    """
    if not (checkpoint / STATE).exists():
        return f"its saving was not finished: there is no {STATE}"
    for needed, patterns in NEEDED.items():
        if not any(any(checkpoint.glob(pattern)) for pattern in patterns):
            return f"there is no {patterns[0]}, which holds the {needed}"
    for name in (STATE, RESUMED, "adapter_config.json"):
        if (checkpoint / name).exists() and not isinstance(_read_json(checkpoint / name), dict):
            return f"{name} is damaged"
    try:
        step = TrainerState.load_from_json(str(checkpoint / STATE)).global_step
    except (TypeError, ValueError):
        step = None
    if str(step) != checkpoint.name.rpartition("-")[2]:
        return f"{STATE} is not of this checkpoint"
    if (checkpoint / RESUMED).exists() and not isinstance(_read_json(checkpoint / RESUMED).get("base"), str):
        return f"{RESUMED} is not what t5fusion wrote"
    for file in checkpoint.glob("*.safetensors"):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError):
            return f"{file.name} is damaged"
    for file in (file for pattern in TORCH_FILES for file in checkpoint.glob(pattern) if file.is_file()):
        try:
            with zipfile.ZipFile(file) as opened:
                damaged = opened.testzip() is not None
        except (zipfile.BadZipFile, OSError, EOFError):
            damaged = True
        if damaged:
            return f"{file.name} is {'damaged' if file.stat().st_size else 'empty'}"
    return None


def _read_json(file: Path):
    """What a JSON file holds; None where it holds none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None


def check_resumed(checkpoint: Path, expected: dict) -> None:
    """ValueError if a checkpoint was begun with other options, rows or vectors."""
    begun = read_begun(checkpoint, expected)
    now = json.loads(json.dumps(expected))  # as what was begun with was kept
    other = [f"{name} was {begun.get(name)}, now {value}" for name, value in now.items() if begun.get(name) != value]
    if other:
        raise ValueError(f"{checkpoint} was begun otherwise: {'; '.join(other)}. Resume with the same, or start anew.")


def read_begun(checkpoint: Path, default: dict) -> dict:
    """What a resumed training must agree with, by the checkpoint; `default` where it does not tell."""
    file = checkpoint / RESUMED
    begun = json.loads(file.read_text(encoding="utf-8")) if file.exists() else default
    base = begun.get("base", "")
    if was_embedded(base, checkpoint) or name_of_embedded(base) == EMBEDDED:  # earlier releases wrote its path
        begun = begun | {"base": EMBEDDED}
    return begun


def check_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """ValueError unless the weights of a checkpoint are those of the model, by name and shape.

    Shards, of FSDP or of a large model, are not looked at.
    """
    if isinstance(model, PeftModel):
        file, expected = checkpoint / "adapter_model.safetensors", get_peft_model_state_dict(model)
    else:
        file, expected = checkpoint / "model.safetensors", model.state_dict()
    if not file.exists():
        return
    with safe_open(file, "pt") as opened:
        shapes = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118, no dict
    wrong = [name for name in shapes if name not in expected or list(expected[name].shape) != shapes[name]]
    saved = {expected[name].data_ptr() for name in shapes if name in expected}  # a tied weight is saved by one name
    wrong += [name for name, value in expected.items() if name not in shapes and value.data_ptr() not in saved]
    if wrong:
        raise ValueError(f"{len(wrong)} weights are absent, unknown or of another shape, {min(wrong)} is one")


@contextmanager
def loading(checkpoint: str | os.PathLike | None, what: str) -> Iterator[None]:
    """ValueError, which names the checkpoint, for whatever is raised while a part of it is loaded."""
    try:
        yield
    except Exception as error:  # of many kinds: of torch, pickle, safetensors, json
        cause = first_line(error)
        raise ValueError(
            f"{checkpoint} cannot be resumed from: {what} cannot be loaded ({cause}). Delete that checkpoint and "
            "resume from an earlier one, if there is one, or start over with --overwrite in place of --resume."
        ) from error


@contextmanager
def saving(folder: Path, checkpoints: Path) -> Iterator[None]:
    """OSError for what is raised where a folder cannot be written, a full disk's included; it names the checkpoint that
    can be resumed from.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        whole, _ = last_checkpoint(checkpoints)
        advice = f"give the same command with --resume: {whole.name} is whole" if whole else "start over"
        raise OSError(f"{folder} could not be written: {_cause_of(error, folder)}. Make room, and {advice}.") from error


def _cause_of(error: BaseException, folder: Path) -> str:
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    number = next((number for each in chain if (number := getattr(each, "errno", None))), None)
    if number is not None:
        return os.strerror(number)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if shutil.disk_usage(there).free < LITTLE:  # torch does not tell
        return os.strerror(errno.ENOSPC)
    return first_line(error)

"""Train: from rows to an adapter (or all weights), tokenizer, processor and record in a folder."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list, disable_fsdp_ram_efficient_loading
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils.hub import extract_commit_hash

from ..collating_t5fusion import DataCollatorWithFusion
from ..common.base_models import base_commit, base_name
from ..common.console import is_first_process, say
from ..common.permissions import apply_umask
from ..common.run_folder import RECORD, align
from ..hooks.trainer_hook import FusionCallback
from ..naming_t5fusion import EMBEDDED
from ..processing_t5fusion import T5FusionProcessor
from .checkpoints import check_resumed, last_checkpoint, read_begun, saving
from .model import build_model, trainable_share
from .options import TrainingOptions
from .output_folder import CHECKPOINTS, OutputFolder
from .trainer import FusionTrainer, ShowProgress, StopOnSignal, _arguments

Result = TypeVar("Result")


def pin_encoder(processor: T5FusionProcessor) -> None:
    """Names in the recipe the commit of its encoder, where that is the one of the Hub's cache."""
    name = processor.lexical_encoder
    if name is None or Path(name).is_dir() or processor.lexical_encoder_revision is not None:
        return
    repository = name if "/" in name else f"sentence-transformers/{name}"  # as that package reads a bare name
    found = try_to_load_from_cache(repository, "modules.json")
    processor.lexical_encoder_revision = extract_commit_hash(found if isinstance(found, str) else None, None)


def rows_digest(rows: list[dict]) -> str:
    """Of the ids of texts and targets, which are the same on every machine; not of vectors, whose last bits are not."""
    ids = [[list(map(int, row[name])) for name in ("input_ids", "labels")] for row in rows]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12]


def recipe_of(processor: T5FusionProcessor) -> dict:
    """How its vectors and prompts are made."""
    names = ("lexical_encoder", "lexical_source", "normalize", "lexical_dtype", "lexical_max_tokens", "template")
    return {name: getattr(processor, name) for name in names}


def train(
    rows: list[dict],
    held_out: list[dict],
    processor: T5FusionProcessor,
    options: TrainingOptions,
    output: Path,
    resume: bool = False,
    data: str | None = None,
    columns: Sequence[str | None] = (),
    overwrite: bool = False,
    mark: str | None = None,
) -> nn.Module:
    """Trains and saves into `output`: adapter (or all weights), tokenizer, processor, and `training.json`.

    Until the first checkpoint is saved, after the first epoch, nothing in `output` changes.

    Args:
        rows, held_out: as `data.prepare` makes them, to train on and to evaluate with after each epoch.
        resume: go on from the last checkpoint in `output/checkpoints`.
        data: id of the data set on the Hub that the rows are from, for the record.
        columns: that the rows were made of; to resume, they must be the same.
        overwrite: replace what an earlier training saved in `output`, which else must be empty, or not exist.
        mark: name of a file to put into `output` with the first checkpoint; only a folder that has it is overwritten.

    Returns:
        The trained model: a `PeftModel`, or a `T5WithFusion` if `options.full`. Under FSDP its weights are shards; what
        is saved is whole.

    Raises:
        Interrupted: Ctrl-C was pressed, or SIGTERM received; the checkpoint is saved.
        ValueError: `resume`, and there is no checkpoint, or it was begun with other options or rows; or `output` is not
            empty, or another training is writing there.
    """
    arguments = _arguments(options, output / CHECKPOINTS)
    folder = OutputFolder(output, resume, overwrite, mark)
    with _held(folder, arguments):
        return _train(rows, held_out, processor, options, arguments, folder, data, columns)


@contextmanager
def _held(folder: OutputFolder, arguments: Seq2SeqTrainingArguments) -> Iterator[None]:
    """Holds the folder in the first process, and raises in all of them what is raised there."""
    with ExitStack() as stack:
        _from_first(arguments, lambda: stack.enter_context(folder.held()))
        yield


def _from_first(arguments: Seq2SeqTrainingArguments, work: Callable[[], Result]) -> Result:
    """What `work` returns or raises (OSError or ValueError) in the first process, in all of them."""
    outcome: list = [None, None]
    if arguments.process_index == 0:
        try:
            outcome[0] = work()
        except (OSError, ValueError) as error:
            outcome[1] = error
    if arguments.world_size > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def _train(
    rows: list[dict],
    held_out: list[dict],
    processor: T5FusionProcessor,
    options: TrainingOptions,
    arguments: Seq2SeqTrainingArguments,
    folder: OutputFolder,
    data: str | None,
    columns: Sequence[str | None],
) -> nn.Module:
    output = folder.path
    last: Path | None = None
    damaged: list[Path] = []
    if folder.resume:
        last, damaged = _from_first(arguments, lambda: _resumable(Path(arguments.output_dir)))
    begun_with = _begun_with(rows, held_out, processor, options, columns, arguments.world_size)
    if last is not None:
        check_resumed(last, begun_with)
    commit = read_begun(last, {}).get("commit") if last is not None else None
    commit = commit or base_commit(options.base)  # which goes on as it was begun, if its main has moved meanwhile
    disable_fsdp_ram_efficient_loading()  # a model of which only one process holds the weights cannot be started
    model = build_model(options, processor, rows, commit)
    trains, total = trainable_share(model)
    how = "full fine-tuning" if options.full else f"LoRA, r={options.rank}, alpha={options.alpha}"
    _print(f"{how}: {trains:,} of {total:,} weights train ({trains / total:.1%})")
    stopper = StopOnSignal()
    trainer = FusionTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=DataCollatorWithFusion(processor.tokenizer),
        callbacks=[stopper],
    )
    for theirs in (PrinterCallback, ProgressCallback):  # which of the two is there depends on the log level
        trainer.remove_callback(theirs)
    progress = ShowProgress()
    trainer.add_callback(progress)
    trainer.remove_callback(FusionCallback)
    trainer.add_callback(FusionCallback(start=False))  # `build_model` has seen to the start
    trainer.fusion_lr = options.fusion_lr if options.fusion_lr is not None else options.peak_lr
    trainer.folder, trainer.begun_with = folder, begun_with | {"commit": commit}
    stopper.accelerator = trainer.accelerator
    trainer.damaged = damaged
    earlier = _from_first(arguments, lambda: _seconds_before(output / RECORD)) if folder.resume else 0.0
    start = time.monotonic()
    with stopper.listening(), progress.closed():
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    stopper.raise_if_stopped()
    whole = _gather(trainer) if trainer.is_fsdp_enabled else None
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # leaves bf16 autocast behind
    if whole is None:
        align(model)
    if trainer.is_world_process_zero():
        folder.begin()
        is_embedded = base_name(options.base) == EMBEDDED
        record = {
            "options": asdict(options) | {"lr": options.peak_lr} | ({"base": EMBEDDED} if is_embedded else {}),
            "base_revision": commit,
            "data": data,
            "rows": len(rows),
            "held_out_rows": len(held_out),
            "processes": arguments.world_size,
            "trainable_weights": trains,
            "weights": total,
            "seconds": round(earlier + time.monotonic() - start, 1),
            "history": [entry for entry in trainer.state.log_history if "eval_loss" in entry or "loss" in entry],
            "versions": {name: version(name) for name in ("t5fusion", "torch", "transformers", "peft", "datasets")},
            "python": platform.python_version(),
        }
        with saving(output, Path(arguments.output_dir)):
            model.save_pretrained(output, state_dict=whole)
            pin_encoder(processor)
            processor.save_pretrained(output)
            (output / RECORD).write_text(json.dumps(record, indent=1) + "\n")
            apply_umask(output)
    return model


def _resumable(checkpoints: Path) -> tuple[Path, list[Path]]:
    """The checkpoint to go on from, and the damaged ones that are newer; ValueError if there is none."""
    last, damaged = last_checkpoint(checkpoints)
    problems = "; ".join(f"{name}: {problem}" for name, problem in damaged.items())
    if last is None and damaged:
        raise ValueError(
            f"no checkpoint in {checkpoints} is whole ({problems}). To start over, give --overwrite in place of "
            "--resume."
        )
    if last is None:
        raise ValueError(f"there is no checkpoint in {checkpoints} to resume from. Leave --resume out to start anew.")
    if damaged:
        say(f"Not whole, and deleted at the next checkpoint: {problems}. Going on from {last.name}.")
    return last, [checkpoints / name for name in damaged]


def _seconds_before(record: Path) -> float:
    """What the training took until it was resumed, where it had been finished: all that is left is to save."""
    if not record.exists():
        return 0.0
    try:
        return float(json.loads(record.read_text(encoding="utf-8"))["seconds"])
    except (ValueError, LookupError, TypeError):
        say(f"{record} is damaged, and written anew: its seconds are those from here on.")
        return 0.0


def _begun_with(
    rows: list[dict],
    held_out: list[dict],
    processor: T5FusionProcessor,
    options: TrainingOptions,
    columns: Sequence[str | None],
    processes: int,
) -> dict:
    """What a resumed training must agree with, by name."""
    begun_with = asdict(options) | {
        "base": base_name(options.base),
        "rows": len(rows),
        "held_out_rows": len(held_out),
        "digest of the rows": rows_digest(rows),
        "columns": list(columns),
        **recipe_of(processor),
    }
    # how many processes share it may change
    begun_with["batch size of all processes"] = begun_with.pop("batch_size") * processes
    return begun_with


def _gather(trainer: FusionTrainer) -> dict[str, torch.Tensor]:
    """The weights of a sharded model, whole, in the first process; each once, however many modules share it."""
    whole = trainer.accelerator.get_state_dict(trainer.model)
    return {name: whole[name] for name, _ in trainer.model.named_parameters() if name in whole}


def _print(line: str) -> None:
    if is_first_process():
        print(line, flush=True)

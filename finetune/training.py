"""Train on rows, and save the adapter (or all weights), the processor and a record in a run folder."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate.utils import broadcast_object_list, disable_fsdp_ram_efficient_loading
from torch import nn
from transformers import Seq2SeqTrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..collating_t5fusion import DataCollatorWithFusion
from ..common.base_models import base_commit
from ..common.console import say
from ..common.run_files import DIGEST, RECORD, weights_digest
from ..common.run_folder import align
from ..hooks.trainer_hook import FusionCallback
from ..kinds_t5fusion import counted
from ..processing_t5fusion import T5FusionProcessor
from .checkpoints import check_conditions, last_checkpoint, read_conditions, saving
from .loss_curve import save_loss_curve
from .model import build_model, count_weights
from .options import TrainingOptions
from .output_folder import CHECKPOINTS, OutputFolder
from .record import named_columns, pin_encoder, resume_conditions, rows_digest, training_record
from .reporting import reporting
from .row_stream import RowStream
from .trainer import FindBest, FusionTrainer, ShowProgress, StopEarly, StopOnSignal, training_arguments

Result = TypeVar("Result")


def train(
    rows: Sequence[dict],
    held_out: Sequence[dict],
    processor: T5FusionProcessor,
    options: TrainingOptions,
    output: str | Path,
    resume: bool = False,
    data: str | None = None,
    columns: Sequence[str | Mapping[str, str] | None] = (),
    overwrite: bool = False,
    mark: str | None = None,
    source: dict[str, Any] | None = None,
    run: str | None = None,
    first: Sequence[dict] | None = None,
) -> nn.Module:
    """Train, and save into `output`: adapter (or all weights), tokenizer, processor, `training.json` and `loss.svg`.

    Nothing in `output` changes before the first checkpoint is saved, by default after the first epoch. (There are two
    exceptions: a lock file; and with `options.report_to=("tensorboard",)`, `output/logs` from the beginning.)

    Args:
        rows, held_out: Rows of `inputs.prepare`, to train on and to evaluate with after each epoch.
        processor: The processor of the rows. It is saved beside the model.
        options: How to train.
        output: The run folder. It need not exist.
        resume: Resume from the last checkpoint in `output/checkpoints`.
        data: Id of the data set on the Hub that holds the rows, for the record.
        columns: `Columns` that the rows were made from. A resumed training must name the same.
        overwrite: Replace what an earlier training saved in `output`; other files stay. Otherwise it must be empty or
            not exist.
        mark: Name of a file to write into `output` with the first checkpoint. Only a folder with that file is
            overwritten.
        source: Where the rows come from, for the record: `data`, `validation`, `limit` and `encoding`.
        run: Content of `run.yaml`, which is written with the first checkpoint; None for no such file.
        first: The first of the rows, if they are a `RowStream`: the fusion layer is fitted to them, and a resumed
            training must have the same. None for all rows.

    Returns:
        The trained model: a `PeftModel`, or a `T5WithFusion` if `options.full`. Under FSDP its weights are shards; the
        saved weights are whole.

    Raises:
        Interrupted: Ctrl-C was pressed or SIGTERM received; a checkpoint is saved.
        ValueError: There is no checkpoint to resume from, or its training had other options or rows; `output` is not
            empty, or another training is writing there; or the base model does not suit the options or the tokenizer.
        OSError: The base model cannot be loaded, or `output` cannot be written.
    """
    arguments = training_arguments(options, Path(output) / CHECKPOINTS)
    folder = OutputFolder(Path(output), resume, overwrite, mark, run)
    with _locked(folder, arguments):
        first = rows if first is None else first
        conditions = resume_conditions(first, held_out, processor, options, columns, arguments.world_size)
        start = _find_start(folder, arguments, options, conditions)
        disable_fsdp_ram_efficient_loading()  # It would load the weights in one process only, but all need them.
        model = build_model(options, processor, first, start.commit, fit=start.checkpoint is None)
        shares = _print_summary(model, options, rows, held_out)
        stopper = StopOnSignal()
        trainer = _make_trainer(model, rows, held_out, processor, options, arguments, stopper)
        trainer.folder, trainer.damaged = folder, start.damaged
        trainer.conditions = conditions | {"commit": start.commit}
        if "tensorboard" in (options.report_to or ()):
            _log_beside_checkpoints(trainer)
        with reporting(options.report_to or ()):
            _run(trainer, stopper, start)
        facts = {
            "base_revision": start.commit,
            "data": data,
            "source": source,
            "columns": named_columns(columns),
            "held_out_digest": rows_digest(held_out),
            "rows": len(rows),
            "held_out_rows": len(held_out),
            "processes": arguments.world_size,
            "trainable_weights": shares[0],
            "weights": shares[1],
            "seconds": trainer.seconds,
            "best": _best(trainer),
            "history": [entry for entry in trainer.state.log_history if "eval_loss" in entry or "loss" in entry],
        }
        return _save(trainer, processor, training_record(options, **facts))


@contextmanager
def _locked(folder: OutputFolder, arguments: Seq2SeqTrainingArguments) -> Iterator[None]:
    """Lock the folder in the first process. All processes raise what the first one raises."""
    with ExitStack() as stack:
        _in_first_process(arguments, lambda: stack.enter_context(folder.held()))
        yield


def _in_first_process(arguments: Seq2SeqTrainingArguments, work: Callable[[], Result]) -> Result:
    """Call `work` in the first process. All processes return its result, or raise its OSError or ValueError."""
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


class _Start(NamedTuple):
    """Where a training starts."""

    commit: str | None  # commit of the base model; None for a folder
    checkpoint: Path | None = None  # checkpoint to resume from
    damaged: Sequence[Path] = ()  # newer checkpoints that are not whole
    seconds: float = 0.0  # duration of the training that the checkpoint comes from


def _find_start(
    folder: OutputFolder, arguments: Seq2SeqTrainingArguments, options: TrainingOptions, conditions: dict
) -> _Start:
    """Return where the training starts, after checking that it can resume from there."""
    if not folder.resume:
        return _Start(base_commit(options.base_model))
    checkpoint, damaged = _in_first_process(arguments, lambda: _resumable(Path(arguments.output_dir)))
    check_conditions(checkpoint, conditions)
    say(f"Resuming from {checkpoint.name}.")
    # A resumed training stays at its commit of the base model, even if the main branch has moved. Earlier releases did
    # not record the duration.
    recorded = read_conditions(checkpoint, {})
    commit = recorded.get("commit") or base_commit(options.base_model)
    return _Start(commit, checkpoint, damaged, recorded.get("seconds", 0.0))


def _resumable(checkpoints: Path) -> tuple[Path, list[Path]]:
    """Return the checkpoint to resume from and the newer, damaged ones; raise ValueError if there is none."""
    last, damaged = last_checkpoint(checkpoints)
    problems = "; ".join(f"{name}: {problem}" for name, problem in damaged.items())
    if last is None and damaged:
        raise ValueError(
            f"no checkpoint in {checkpoints} is whole ({problems}). To start over, pass --overwrite instead of "
            "--resume."
        )
    if last is None:
        raise ValueError(f"there is no checkpoint in {checkpoints} to resume from. Leave --resume out to start over.")
    if damaged:
        say(f"Damaged, and deleted when the next checkpoint is saved: {problems}.")
    return last, [checkpoints / name for name in damaged]


def held_out_loss(
    model: nn.Module, held_out: Sequence[dict], processor: T5FusionProcessor, options: TrainingOptions
) -> float:
    """Return the loss of a trained model as the Trainer measures it in training; on the same machine, bit for bit.

    Args:
        model: The trained model.
        held_out: Rows of `inputs.prepare`.
        processor: The processor of the rows.
        options: The options of the training, which decide on precision and batches.

    Returns:
        The mean over the rows of the mean loss of their batch, in nats per token.
    """
    with TemporaryDirectory() as folder:
        arguments = training_arguments(options, Path(folder))
        trainer = _make_trainer(model, held_out, held_out, processor, options, arguments, StopOnSignal())
        loss = trainer.evaluate()["eval_loss"]
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # It computes in fp32 again.
    return loss


def _print_summary(
    model: nn.Module, options: TrainingOptions, rows: Sequence[dict], held_out: Sequence[dict]
) -> tuple[int, int]:
    """Print how many weights train, on how many rows. Return how many weights train, and how many there are."""
    trainable, total = count_weights(model)
    method = "full fine-tuning" if options.full else f"LoRA, r={options.rank}, alpha={options.alpha}"
    read = counted(len(rows), "row") + (" of a stream" if isinstance(rows, RowStream) else "")
    counts = f"{read} to train on, {counted(len(held_out), 'row')} to validate with"
    say(f"{method}: {trainable:,} of {total:,} weights train ({trainable / total:.1%}); {counts}")
    return trainable, total


def _make_trainer(
    model: nn.Module,
    rows: Sequence[dict],
    held_out: Sequence[dict],
    processor: T5FusionProcessor,
    options: TrainingOptions,
    arguments: Seq2SeqTrainingArguments,
    stopper: StopOnSignal,
) -> FusionTrainer:
    """Return the Trainer with this package's callbacks and learning rates."""
    trainer = FusionTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=DataCollatorWithFusion(processor, packing=options.packing),
        callbacks=[stopper],
    )
    if options.keeps_best:
        trainer.add_callback(FindBest())
    if options.patience is not None:
        trainer.add_callback(StopEarly(options.patience))
    for callback in (PrinterCallback, ProgressCallback):  # The Trainer has one of them, depending on the log level.
        trainer.remove_callback(callback)
    trainer.remove_callback(FusionCallback)
    trainer.add_callback(FusionCallback(start=False))  # `build_model` has initialized the fusion layer.
    trainer.fusion_lr = options.fusion_lr if options.fusion_lr is not None else options.peak_lr
    return trainer


def _log_beside_checkpoints(trainer: FusionTrainer) -> None:
    """Write TensorBoard's files into the run folder, unless $TENSORBOARD_LOGGING_DIR names a different place."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(trainer.folder.new_logs())


def _run(trainer: FusionTrainer, stopper: StopOnSignal, start: _Start) -> None:
    """Train, from the checkpoint if there is one."""
    progress = ShowProgress()
    trainer.add_callback(progress)
    stopper.accelerator = trainer.accelerator
    trainer.started = time.monotonic() - start.seconds
    with stopper.listening(), progress.closed():
        trainer.train(resume_from_checkpoint=None if start.checkpoint is None else str(start.checkpoint))


def _best(trainer: FusionTrainer) -> dict[str, Any] | None:
    """Return step, epoch and held-out loss of the model in memory if it is the best one; None if it is the last one."""
    state = trainer.state
    if not trainer.args.load_best_model_at_end or state.best_model_checkpoint is None:
        return None
    step = int(Path(state.best_model_checkpoint).name.rpartition("-")[2])
    evaluated = next(entry for entry in state.log_history if entry["step"] == step and "eval_loss" in entry)
    say(f"Best model: step {step}, epoch {evaluated['epoch']:g}, loss {evaluated['eval_loss']:.3f} held out.")
    return {name: evaluated[name] for name in ("step", "epoch", "eval_loss")}


def _save(trainer: FusionTrainer, processor: T5FusionProcessor, record: dict[str, Any]) -> nn.Module:
    """Save model, processor and record, and return the model."""
    folder = trainer.folder
    whole_weights = _gather(trainer) if trainer.is_fsdp_enabled else None
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # It computes in fp32 again.
    if whole_weights is None:
        align(model)
    if trainer.is_world_process_zero():
        folder.begin()
        with saving(folder.path, Path(trainer.args.output_dir)):
            model.save_pretrained(folder.path, state_dict=whole_weights)
            pin_encoder(processor)
            processor.save_pretrained(folder.path)
            record |= {DIGEST: weights_digest(folder.path)}
            (folder.path / RECORD).write_text(json.dumps(record, indent=1) + "\n")
            save_loss_curve(folder.path, record["history"])
    return model


def _gather(trainer: FusionTrainer) -> dict[str, torch.Tensor]:
    """Return the whole weights and scales of a sharded model, in the first process.

    Weights that modules share are in it once.
    """
    weights = trainer.accelerator.get_state_dict(trainer.model)
    names = (name for name, _ in chain(trainer.model.named_parameters(), trainer.model.named_buffers()))
    return {name: weights[name] for name in names if name in weights}

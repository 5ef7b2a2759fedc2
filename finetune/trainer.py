"""The Trainer of `t5fusion train`: several processes, checkpoints to resume from, signals and progress."""

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.data import SequentialSampler
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy

from ..common.console import say
from ..common.progress import Progress
from .checkpoints import check_weights, loading, problem_of, saving
from .options import TrainingOptions
from .output_folder import RESUME_CONDITIONS, OutputFolder
from .row_stream import RowStream
from .settings import read_settings

STREAMED_INTERVALS = 10  # How often a training from a streamed set evaluates, saves and logs by default.
NOTHING_LEFT = (
    "This training had finished, so there is nothing to resume; only its files are written again. To train for longer, "
    "start a new training with more --epochs and a different --output."
)
SAME_SIGNAL = 1.0  # seconds in which a process may get one signal twice: from the cluster and from its launcher


class Interrupted(Exception):
    """Training was stopped by SIGINT (Ctrl-C) or SIGTERM, and a checkpoint was saved."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number  # A shell gives this code to a command that the signal killed.


def check_launch() -> None:
    """Check that `accelerate launch` started as many processes as the user asked for.

    With --cpu, it starts only one process and does not say so. The environment shows this: it has an address for the
    processes to meet at, but not their number.

    Raises:
        ValueError: `accelerate launch` started one process.
    """
    sizes = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and not any(name in os.environ for name in sizes):
        raise ValueError(
            "accelerate started one process, not several. On CPUs, pass --multi_gpu to `accelerate launch` "
            "instead of --cpu: it works there too. For one process, pass --num_processes 1."
        )


class FusionTrainer(Seq2SeqTrainer):
    """A Trainer with a separate learning rate for the fusion layer, checked checkpoints, and FSDP on CPUs.

    Set these attributes before training:

    Attributes:
        fusion_lr: Peak learning rate of the fusion layer.
        folder: The run folder.
        conditions: The conditions that a resumed training must meet. Each checkpoint records them.
        started: When the training started, in seconds of `time.monotonic`; for a resumed training, earlier by the
            duration of what it resumes. Each checkpoint records the duration.
        damaged: Checkpoints to delete before the next one is saved. The Trainer keeps the newest ones, and would count
            these among them.
    """

    fusion_lr: float
    folder: OutputFolder
    conditions: dict
    started: float
    damaged: Sequence[Path] = ()

    def create_accelerator_and_postprocess(self):
        """Create the accelerator. With `accelerate launch --use_fsdp`, shard on CPUs too; accelerate would use DDP."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if state.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
            state.fsdp_plugin = FullyShardedDataParallelPlugin()
            if state.mixed_precision != "no":
                state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
            state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def _get_train_sampler(self, train_dataset=None):
        """Return the order of the rows. A `RowStream` has shuffled its rows, and can only be read in its order."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows) if isinstance(rows, RowStream) else super()._get_train_sampler(train_dataset)

    def get_eval_dataloader(self, eval_dataset=None):
        """Return batches that are not packed: the Trainer weights the loss of a batch by its number of sequences."""
        collator = self.data_collator
        self.data_collator = copy(collator)  # `dataclasses.replace` would forget the kinds of vectors.
        self.data_collator.packing = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def create_optimizer(self, model=None):
        if self.accelerator.is_fsdp2:
            self._shard_embeddings()
        optimizer = super().create_optimizer(model)
        if self.fusion_lr != self.args.learning_rate:
            self._set_fusion_lr(optimizer)
        return optimizer

    def _set_fusion_lr(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the weights of the fusion layer into parameter groups of their own, with their learning rate."""
        fusion_ids = {id(weight) for name, weight in self.model.named_parameters() if ".fusion." in name}
        for group in list(optimizer.param_groups):
            fusion = [weight for weight in group["params"] if id(weight) in fusion_ids]
            if fusion:
                group["params"] = [weight for weight in group["params"] if id(weight) not in fusion_ids]
                optimizer.add_param_group({**group, "params": fusion, "lr": self.fusion_lr})

    @property
    def seconds(self) -> float:
        """Duration of the training until now, in seconds."""
        return round(time.monotonic() - self.started, 1)

    def _save_checkpoint(self, *args, **kwargs) -> None:
        checkpoint = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.is_world_process_zero():
            self.folder.begin()
            for damaged in self.damaged:
                shutil.rmtree(damaged, ignore_errors=True)
        self.damaged = ()
        self.accelerator.wait_for_everyone()
        try:
            with saving(checkpoint, checkpoint.parent):
                if self.is_world_process_zero():
                    checkpoint.mkdir(parents=True, exist_ok=True)
                    # This file comes first, because the Trainer ends by deleting the previous checkpoint.
                    (checkpoint / RESUME_CONDITIONS).write_text(json.dumps(self.conditions | {"seconds": self.seconds}))
                super()._save_checkpoint(*args, **kwargs)
        except OSError:
            if self.is_world_process_zero() and problem_of(checkpoint) is not None:
                shutil.rmtree(checkpoint, ignore_errors=True)  # A part of a checkpoint is useless, and takes space.
            raise

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        is_sharded = any(Path(resume_from_checkpoint).glob("pytorch_model_fsdp*"))
        if is_sharded != self.is_fsdp_enabled:
            word = "with" if is_sharded else "without"
            raise ValueError(f"{resume_from_checkpoint} was saved {word} FSDP. Resume {word} it.")
        with loading(resume_from_checkpoint, "its weights"):
            if not is_sharded:
                unwrapped = self.accelerator.unwrap_model(self.model if model is None else model)
                check_weights(Path(resume_from_checkpoint), unwrapped)
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        with loading(checkpoint, "the state of its optimizer or learning rates"):
            super()._load_optimizer_and_scheduler(checkpoint)
            for parameter, state in self.optimizer.state.items():
                for name, value in state.items():
                    # torch itself accepts any shape.
                    if torch.is_tensor(value) and value.dim() and value.shape != parameter.shape:
                        raise ValueError(f"{name} is {tuple(value.shape)} for a weight of {tuple(parameter.shape)}")

    def _load_rng_state(self, checkpoint) -> None:
        with loading(checkpoint, "its random numbers"):
            super()._load_rng_state(checkpoint)

    def _shard_embeddings(self) -> None:
        """Put all modules that hold the shared embedding table into one FSDP group. accelerate would shard only one."""
        table = self.model.get_input_embeddings().weight
        holders = [module for module in self.model.modules() if getattr(module, "weight", None) is table]
        plugin = self.accelerator.state.fsdp_plugin
        policy = plugin.mixed_precision_policy or MixedPrecisionPolicy()
        fully_shard(holders, reshard_after_forward=False, offload_policy=plugin.cpu_offload, mp_policy=policy)


class ShowProgress(TrainerCallback):
    """Shows how far the training has come, and a line for each evaluation."""

    progress: Progress | None = None
    loss: float | None = None  # the training loss that was logged last
    evaluated = 0  # number of batches that the current evaluation has done

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close the bar at the end of this context, even after an error: the error then gets a line of its own."""
        try:
            yield
        finally:
            if self.progress is not None:
                self.progress.close()

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            say(NOTHING_LEFT)
        self.progress = Progress("Training", state.max_steps, "steps", done=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.progress.advance(state.global_step - self.progress.done)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self.evaluated += 1
        self.progress.advance(0, f"evaluating, {self.evaluated} of {len(eval_dataloader)} batches")

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated = 0
        self.progress.advance(0, self._remark())

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.loss = logs["loss"]
            self.progress.advance(0, self._remark())
        is_line = "eval_loss" in logs or ("loss" in logs and args.eval_strategy == IntervalStrategy.NO)
        if is_line and state.is_world_process_zero:
            by_epoch = IntervalStrategy.EPOCH in (args.eval_strategy, args.logging_strategy)
            when = f"epoch {logs['epoch']:g}" if by_epoch else f"step {state.global_step}"
            losses = [f"{self.loss:.3f} in training"] if self.loss is not None else []
            losses += [f"{logs['eval_loss']:.3f} held out"] if "eval_loss" in logs else []
            self.progress.write(f"{when}: loss {', '.join(losses)}")

    def _remark(self) -> str:
        return "" if self.loss is None else f"loss {self.loss:.3f}"


class FindBest(TrainerCallback):
    """Finds the best checkpoint of a resumed training in its folder, even if the folder was moved."""

    def on_train_begin(self, args, state, control, **kwargs):
        if not (args.load_best_model_at_end and state.best_global_step):
            return
        best = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
        if problem_of(best) is None:
            state.best_model_checkpoint = str(best)
            return
        say(f"{best.name}, the best checkpoint so far, is missing or damaged. The best later checkpoint is kept.")
        state.best_model_checkpoint = state.best_global_step = state.best_metric = None


class StopEarly(TrainerCallback):
    """Stops after `patience` evaluations in a row without a new lowest loss.

    It counts from the Trainer's history, which each checkpoint holds. So a resumed training counts on.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.was_over = False  # whether the training had stopped early before it was resumed

    def _is_over(self, state) -> bool:
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        lowest = min((loss for loss in losses if not math.isnan(loss)), default=None)
        evaluations_since = len(losses) if lowest is None else len(losses) - 1 - losses.index(lowest)
        return evaluations_since >= self.patience

    def on_train_begin(self, args, state, control, **kwargs):
        self.was_over = self._is_over(state)
        if self.was_over and state.global_step < state.max_steps:  # Otherwise `ShowProgress` says it.
            say(NOTHING_LEFT)

    def on_evaluate(self, args, state, control, **kwargs):
        if self._is_over(state):
            control.should_training_stop = True

    def on_step_end(self, args, state, control, **kwargs):
        self._stop_again(control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._stop_again(control)

    def _stop_again(self, control) -> None:
        # The Trainer makes one more step before it can be stopped. That step is lost, because the best model is loaded.
        if self.was_over:
            control.should_training_stop = True
            control.should_save = control.should_evaluate = control.should_log = False


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint and stops after Ctrl-C or SIGTERM, at the end of a step: the same step in all processes.

    A second signal has its default effect at once. Set `accelerator` before training.
    """

    accelerator: Accelerator

    def __init__(self) -> None:
        self.received = 0  # number of the first signal; 0 before it
        self.first_at = 0.0  # when it came, by the monotonic clock
        self.previous_handlers: dict[signal.Signals, Any] = {}
        self.stopped = False  # whether training was told to stop

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle both signals in this context."""
        if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there.
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        self.previous_handlers = {number: signal.signal(number, self._receive) for number in signals}
        try:
            yield
        finally:
            self._stop_listening()

    def _stop_listening(self) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _receive(self, number, frame) -> None:
        """Remember the first signal, and pass a second one on to the earlier handler.

        With several processes, a signal within `SAME_SIGNAL` of the first counts as the first, because the launcher may
        pass on a signal that the cluster has already sent to each process.
        """
        is_first = not self.received
        if is_first:
            self.received, self.first_at = number, time.monotonic()
        if self.accelerator.num_processes > 1 and time.monotonic() - self.first_at < SAME_SIGNAL:
            return
        self._stop_listening()
        if not is_first:
            signal.raise_signal(number)

    def on_step_end(self, args, state, control, **kwargs):
        if self.received:
            self.accelerator.set_trigger()
        if self.accelerator.check_trigger():  # One process has set it.
            self.stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        # The user waits. The resumed training ends the epoch, and then evaluates.
        if self.stopped and not float(state.epoch).is_integer():
            control.should_evaluate = control.should_save = False

    def on_train_end(self, args, state, control, **kwargs):
        """Raise `Interrupted` in all processes if one of them received a signal, before others report on the model."""
        if self.stopped:
            raise Interrupted(max(gather_object([int(self.received)])))


def training_arguments(options: TrainingOptions, checkpoints: Path) -> Seq2SeqTrainingArguments:
    """Return the arguments of the Trainer. `options.settings` come last, and override what is set here.

    Args:
        options: The options of the training.
        checkpoints: The folder of the checkpoints.

    Raises:
        ValueError: transformers refuses a setting, or two of them together.
    """
    arguments = dict(
        output_dir=str(checkpoints),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=options.gradient_accumulation,
        learning_rate=options.peak_lr,
        lr_scheduler_type=options.lr_scheduler_type,
        warmup_steps=options.warmup_steps,
        **_intervals(options),
        save_total_limit=2 if options.keeps_best else 1,  # Two are the best one and the last one.
        load_best_model_at_end=options.keeps_best,
        seed=options.seed,
        bf16=computes_in_bf16(options),
        report_to=list(options.report_to or ["none"]),
        log_level_replica="error",
        remove_unused_columns=True,
        use_cpu=not torch.accelerator.is_available(),  # Otherwise transformers refuses bf16 on CPUs.
        ddp_find_unused_parameters=False,  # All weights get gradients. Without vectors, the fusion layer's are 0.
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    settings = read_settings(options.settings).trainer
    try:
        return Seq2SeqTrainingArguments(**arguments | settings)
    except (KeyError, NotImplementedError, TypeError, ValueError) as error:
        if not settings:
            raise
        raise ValueError(f"transformers refuses the settings: {error}") from error


def _intervals(options: TrainingOptions) -> dict[str, Any]:
    """Return the arguments that say when the Trainer evaluates, saves and logs: by epochs, or by a number of steps."""
    # A set that is streamed has no epochs.
    default = math.ceil(options.steps / STREAMED_INTERVALS) if options.streaming and options.steps else None
    given = {"eval": options.eval_steps, "save": options.save_steps, "logging": options.logging_steps}
    steps = {name: number or default for name, number in given.items()}
    if options.keeps_best:
        steps["save"] = steps["eval"]
    arguments: dict[str, Any] = {f"{name}_strategy": "steps" if number else "epoch" for name, number in steps.items()}
    return arguments | {f"{name}_steps": number for name, number in steps.items() if number}


def computes_in_bf16(options: TrainingOptions) -> bool:
    """Return whether to compute in bf16. "auto" chooses it where this machine multiplies faster in it than in fp32."""
    if options.precision != "auto":
        return options.precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

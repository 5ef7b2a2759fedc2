"""Training: build the fused model, put LoRA on top (or train all of it), run the Trainer, save what can be shared."""

import hashlib
import json
import math
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from numbers import Integral, Real
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    broadcast_object_list,
    disable_fsdp_ram_efficient_loading,
    gather_object,
)
from huggingface_hub import try_to_load_from_cache
from peft import get_peft_model
from safetensors import SafetensorError
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoTokenizer, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils.hub import extract_commit_hash

from ..loading_t5fusion import commit_of
from ..modeling_t5fusion import T5WithFusion
from ..naming_t5fusion import EMBEDDED, name_of_embedded, resolve_embedded
from ..processing_t5fusion import DataCollatorWithFusion, T5FusionProcessor
from .checkpoints import check_resumed, check_weights, last_checkpoint, loading, problem_of, read_begun, saving
from .data import MAX_SOURCE, MAX_TARGET, is_first_process, say
from .modes import apply_umask
from .run_folder import CHECKPOINTS, RECORD, RESUMED, RunFolder
from .trainer_callback import FusionCallback

Result = TypeVar("Result")
STARTS = ("targets", "random")
SAME_SIGNAL = 1.0  # seconds within which a rank gets a signal twice: from a cluster, say, and from its launcher
DAMAGED = (SafetensorError, UnpicklingError, EOFError)  # what a file of weights that is torn or foreign raises
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


class Interrupted(Exception):
    """Training was stopped by a signal, SIGINT (Ctrl-C) or SIGTERM; a checkpoint holds what was learnt."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number  # as of a shell's command that the signal killed


def fast_bf16() -> bool:
    """Whether this machine multiplies in bf16 faster than in fp32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def base_folder(base: str) -> str:
    """Where the base is: the embedded one's folder for "tiny_t5", else `base`, a folder by its full path."""
    if base == EMBEDDED:
        return resolve_embedded(base)
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def base_name(base: str) -> str:
    """As `base_folder`, but "tiny_t5" for the embedded base, which elsewhere lies in another folder."""
    return name_of_embedded(base_folder(base))


def base_error(base: str, error: Exception) -> OSError:
    """One sentence for the many ways in which transformers fails to load a model."""
    cause = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0].rstrip(".")
    if base.startswith((".", "/", "~")) and not Path(base).exists():  # of which transformers says what an id may be
        cause = "there is no such folder"
    return OSError(f"the base {base} cannot be loaded ({cause}). Name a folder or a Hub id of a T5 with --base.")


def check_launch() -> None:
    """ValueError if `accelerate launch` was asked for several processes and, on CPUs, started one that is alone.

    It then names where they would meet, and gives none of them a number; nor does it say anything.
    """
    sizes = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and not any(name in os.environ for name in sizes):
        raise ValueError(
            "accelerate started one process, not several. On CPUs give `accelerate launch` --multi_gpu in place of "
            "--cpu: it takes them as well. For one process, --num_processes 1."
        )


def make_processor(base: str, **recipe) -> T5FusionProcessor:
    """The base's tokenizer with a recipe of vectors (see `T5FusionProcessor`).

    Raises:
        OSError: there is no tokenizer there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_folder(base))
    except (OSError, ValueError) as error:
        raise base_error(base, error) from error
    return T5FusionProcessor(tokenizer, **recipe)


def base_commit(base: str) -> str | None:
    """The commit that the base is at now; None for a folder. OSError where it cannot be told."""
    try:
        return commit_of(base_folder(base), {})
    except OSError as error:
        raise base_error(base, error) from error


def build_model(
    options: TrainingOptions, processor: T5FusionProcessor, rows: list[dict], commit: str | None = None
) -> nn.Module:
    """The fused model, its fusion layer started, with LoRA on top unless `options.full`.

    Args:
        commit: of the base; None for its main.

    Raises:
        ValueError: model and tokenizer do not mean the same token by `<lexical>`, or the base is no T5, or it lacks one
            of `options.target_modules`.
        OSError: the base cannot be loaded.
    """
    try:
        model = T5WithFusion(
            base_folder(options.base),
            revision=commit or "main",
            lexical_dim=processor.lexical_dim,
            dtype=torch.float32,
        )
    except (OSError, *DAMAGED) as error:
        raise base_error(options.base, error) from error
    if getattr(model, "peft_config", None):
        raise ValueError(
            f"{options.base} holds an adapter, beside which no other is trained. Name the T5 beneath it, or what "
            "`t5fusion export --kind merged` makes of the two."
        )
    if model.config.lexical_token_id != processor.lexical_token_id:
        raise ValueError(
            f"<lexical> is token {processor.lexical_token_id} of the tokenizer and {model.config.lexical_token_id} of "
            f"the model. Use the tokenizer that belongs to {options.base}, with no other tokens added."
        )
    with_vectors = [row for row in rows if row.get("lexical_embeds") is not None]
    if options.fusion_start == "targets" and options.train_fusion and with_vectors:
        model.fit_fusion(with_vectors)
    if options.full:
        model.encoder.fusion.requires_grad_(options.train_fusion)
        return model
    check_target_modules(model, options)
    lora: dict[str, object] = {"r": options.rank, "lora_alpha": options.alpha, "lora_dropout": options.dropout}
    if not (options.train_fusion and with_vectors):
        lora["modules_to_save"] = []
    if options.target_modules is not None:
        lora["target_modules"] = list(options.target_modules)
    torch.manual_seed(options.seed)
    return get_peft_model(model, model.lora_config(**lora))


def check_target_modules(model: T5WithFusion, options: TrainingOptions) -> None:
    """ValueError unless each of `options.target_modules` is a module that LoRA can be put on.

    PEFT itself is content if one of them is.
    """
    if options.target_modules is None:
        return
    fit = {
        name
        for name, module in model.named_modules()
        # The table is left out since T5 reads it by another of its names, past an adapter on this one. The fusion layer
        # is left out since PEFT puts no adapter on what trains as a whole.
        if isinstance(module, (nn.Linear, nn.Embedding))
        and module is not model.shared
        and not (options.train_fusion and ".fusion." in name)
    }
    unknown = [
        wanted for wanted in options.target_modules if not any(f".{name}".endswith(f".{wanted}") for name in fit)
    ]
    if unknown:
        raise ValueError(
            f"{options.base} has no module {', '.join(map(repr, unknown))} that LoRA can be put on; expected any of "
            f"{', '.join(sorted({name.rpartition('.')[2] for name in fit}))}."
        )


def trainable_share(model: nn.Module) -> tuple[int, int]:
    """Numbers that train, and all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def align(model: nn.Module) -> nn.Module:
    """Moves each weight to memory that torch itself has laid out, and returns the model.

    Weights read from safetensors lie wherever their file has them, and on a CPU the last bit of a product depends on
    it: aligned alike, a reloaded model gives what the trained one gave.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


class FusionTrainer(Seq2SeqTrainer):
    """The Trainer with a learning rate of its own for the fusion layer, and right with several processes.

    Each checkpoint holds `begun_with`, what a resumed training must agree with. Before the first one, the folder is
    emptied of what it replaces.
    """

    fusion_lr: float
    folder: RunFolder
    begun_with: dict
    damaged: Sequence[Path] = ()  # checkpoints newer than the resumed one, which rotation would take for the latest

    def create_accelerator_and_postprocess(self):
        """The Trainer's. And `accelerate launch --use_fsdp` shards on CPUs too, where accelerate takes DDP unasked."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if state.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
            state.fsdp_plugin = FullyShardedDataParallelPlugin()
            if state.mixed_precision != "no":
                state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
            state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def create_optimizer(self, model=None):
        if self.accelerator.is_fsdp2:
            self._shard_embeddings()
        optimizer = super().create_optimizer(model)
        fusion = {id(p) for name, p in self.model.named_parameters() if ".fusion." in name and p.requires_grad}
        if self.fusion_lr != self.args.learning_rate:
            for group in list(optimizer.param_groups):
                moved = [p for p in group["params"] if id(p) in fusion]
                if moved:
                    group["params"] = [p for p in group["params"] if id(p) not in fusion]
                    optimizer.add_param_group({**group, "params": moved, "lr": self.fusion_lr})
        return optimizer

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
                    # first of all, since the Trainer ends by deleting the checkpoint before
                    (checkpoint / RESUMED).write_text(json.dumps(self.begun_with))
                    apply_umask(checkpoint)
                super()._save_checkpoint(*args, **kwargs)
        except OSError:
            if self.is_world_process_zero() and problem_of(checkpoint) is not None:
                shutil.rmtree(checkpoint, ignore_errors=True)  # a part of one is of no use, and takes the room
            raise

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        is_sharded = any(Path(resume_from_checkpoint).glob("pytorch_model_fsdp*"))
        if is_sharded != self.is_fsdp_enabled:
            how = "with" if is_sharded else "without"
            raise ValueError(f"{resume_from_checkpoint} was saved {how} FSDP. Resume {how} it.")
        with loading(resume_from_checkpoint, "its weights"):
            if not is_sharded:
                whole = self.accelerator.unwrap_model(self.model if model is None else model)
                check_weights(Path(resume_from_checkpoint), whole)
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        with loading(checkpoint, "the state of its optimizer or of its rates"):
            super()._load_optimizer_and_scheduler(checkpoint)
            for parameter, state in self.optimizer.state.items():
                for name, value in state.items():
                    if torch.is_tensor(value) and value.dim() and value.shape != parameter.shape:  # torch takes any
                        raise ValueError(f"{name} is {tuple(value.shape)} for a weight of {tuple(parameter.shape)}")

    def _load_rng_state(self, checkpoint) -> None:
        with loading(checkpoint, "its random numbers"):
            super()._load_rng_state(checkpoint)

    def _shard_embeddings(self) -> None:
        """One FSDP group for the table that encoder and decoder share: accelerate knows of one input embedding."""
        table = self.model.get_input_embeddings().weight
        holders = [module for module in self.model.modules() if getattr(module, "weight", None) is table]
        plugin = self.accelerator.state.fsdp_plugin
        policy = plugin.mixed_precision_policy or MixedPrecisionPolicy()
        fully_shard(holders, reshard_after_forward=False, offload_policy=plugin.cpu_offload, mp_policy=policy)


class ShowProgress(ProgressCallback):
    """Bars as the Trainer's own, and a line per epoch instead of its dictionaries."""

    loss = float("nan")

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Ends the bars, also where an error does, so that what is said of it has a line of its own."""
        try:
            yield
        finally:
            for bar in (self.training_bar, self.prediction_bar):
                if bar is not None:
                    bar.close()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = logs.get("loss", self.loss)
        if state.is_world_process_zero and "eval_loss" in logs and self.training_bar is not None:
            line = f"epoch {logs['epoch']:g}: loss {self.loss:.3f} in training, {logs['eval_loss']:.3f} held out"
            self.training_bar.write(line, file=sys.stderr)


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


class StopOnSignal(TrainerCallback):
    """Turns Ctrl-C or SIGTERM into a checkpoint and an end at the next step, the same one in all processes.

    A second signal does at once what it does by default.
    """

    accelerator: Accelerator

    def __init__(self):
        self.received = 0  # number of the first signal
        self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # Python lets no other thread listen
            yield
            return
        self.previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            self._stop_listening()

    def _stop_listening(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _receive(self, number, frame) -> None:
        is_first = not self.received
        if is_first:
            self.received, self.since = number, time.monotonic()
        if self.accelerator.num_processes > 1 and time.monotonic() - self.since < SAME_SIGNAL:
            return
        self._stop_listening()
        if not is_first:
            signal.raise_signal(number)

    def on_step_end(self, args, state, control, **kwargs):
        if self.received:
            self.accelerator.set_trigger()
        if self.accelerator.check_trigger():  # set in any process
            self.stopped = control.should_save = control.should_training_stop = True

    def raise_if_stopped(self) -> None:
        """Raises `Interrupted` in all processes if any of them was to stop."""
        if self.stopped:
            raise Interrupted(max(gather_object([int(self.received)])))


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
    folder = RunFolder(output, resume, overwrite, mark)
    with _held(folder, arguments):
        return _train(rows, held_out, processor, options, arguments, folder, data, columns)


@contextmanager
def _held(folder: RunFolder, arguments: Seq2SeqTrainingArguments) -> Iterator[None]:
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
    folder: RunFolder,
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


def _arguments(options: TrainingOptions, checkpoints: Path) -> Seq2SeqTrainingArguments:
    return Seq2SeqTrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=options.peak_lr,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="epoch",
        seed=options.seed,
        bf16=options.bf16,
        report_to="none",
        log_level_replica="error",
        remove_unused_columns=True,
        use_cpu=not torch.accelerator.is_available(),  # else transformers refuses bf16 here
        ddp_find_unused_parameters=False,  # there are none: without vectors the fusion layer's gradients are zero
        dataloader_pin_memory=torch.accelerator.is_available(),
    )

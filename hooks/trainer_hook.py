"""The hook that calls `fit_fusion` in every `Trainer` of a fused model, and reports if the vectors do not help.

It also refuses a collator of transformers, which puts no placeholders into the rows.

The Trainer shows its data to callbacks only. Every Trainer passes its callbacks and its model to
`CallbackHandler.__init__`. `import t5fusion` wraps this method: if the model is a fused model, the wrapper adds
`FusionCallback`. (transformers' list of default callbacks would do too, but importing its module takes a second, and
not every user of a model needs a Trainer.)

`trainer.remove_callback(FusionCallback)` removes the callback from one Trainer. T5FUSION_TRAINER_HOOK=0 switches it off
in all of them.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import islice
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from ..common.losses import Losses, losses_of, paired_bootstrap
from ..modeling_t5fusion import T5WithFusion, VectorProjector, initial_projection
from .switches import TRAINER, is_on

MOST_START_ROWS = 20_000  # the most rows that `fit_fusion` gets; more take long and change little
FEW_REPORT_ROWS = 50  # With fewer held-out rows, the report adds that they may not be enough.
MOST_REPORT_BATCHES = 64  # the most held-out batches that the report measures

# Reasons why vectors are not scaled, each with what to do.
UNREADABLE = (
    "no rows with vectors and labels can be read from the training set in advance (it is streamed, or its rows are "
    "not those of `processor.rows`). Call `model.fit_fusion(rows)` before training, with some thousands of rows."
)
FROZEN = (
    "the fusion layer is frozen, or has other weights than its initial ones. Call `model.fit_scales(rows)` before "
    "training, on an adapter that holds the layer: one without `modules_to_save=[]`."
)


HALF_PRECISION = (
    "which rounds small updates away. Load the model with `dtype=torch.float32`; `TrainingArguments(bf16=True)` then "
    "still computes in bfloat16."
)


class FusionCallback(TrainerCallback):
    """Callback that calls `fit_fusion` before training, and reports after training if the vectors do not help.

    It calls `fit_fusion` only if the fusion layer still has its initial weights.

    Args:
        start: Whether to call `fit_fusion`. `t5fusion train` passes False, because it has set the layer's weights.
    """

    def __init__(self, start: bool = True):
        self.start = start

    def on_train_begin(self, args: TrainingArguments, state, control, model=None, train_dataloader=None, **kwargs):
        fused = fused_model(model) if self.start else None
        if fused is None or not is_on(TRAINER):
            return
        check_collator(train_dataloader, fused)
        if (dtype := half_precision_of_fusion(fused)) and state.is_world_process_zero:
            print(f"The fusion layer trains in {dtype}, {HALF_PRECISION}", file=sys.stderr)
        will_start = has_initial_fusion(fused)
        rows = start_rows(train_dataloader) if will_start else []
        if rows:
            fused.fit_fusion(rows)
        elif (unscaled := unscaled_kinds(fused)) and state.is_world_process_zero:
            reason = UNREADABLE if will_start else FROZEN
            print(f"The {' and '.join(unscaled)} vectors are not scaled, because {reason}", file=sys.stderr)

    def on_train_end(self, args, state: TrainerState, control, model=None, eval_dataloader=None, **kwargs):
        fused = fused_model(model)
        if fused is None or eval_dataloader is None or not is_on(TRAINER):
            return
        if any(type(parameter) is not torch.nn.Parameter for parameter in fused.parameters()):
            return  # FSDP has split the weights over the processes.
        with unpacked(eval_dataloader):
            own, other = measure_vectors(model, eval_dataloader)
        if len(own.sums) < 2:
            return  # There is nothing to compare.
        cost = paired_bootstrap(other, own)
        if cost.low <= 0 and state.is_world_process_zero:
            too_few = f", or {len(own.sums)} rows are too few to tell" if len(own.sums) < FEW_REPORT_ROWS else ""
            print(
                f"The vectors do not help: on {len(own.sums)} held-out rows the loss is {own.mean:.4f} with their "
                f"own vectors and {other.mean:.4f} with other rows' ({cost.difference:+.4f}, 95 % between "
                f"{cost.low:+.4f} and {cost.high:+.4f}). Either the vectors hold nothing that the text does not, or "
                f"training was too short{too_few}. Check that each row has its own vector, or train for more epochs.",
                file=sys.stderr,
            )


def fused_model(model) -> T5WithFusion | None:
    """Return the fused model that a Trainer trains; None for any other model.

    Args:
        model: A model, an adapter on one, or a wrapper of either, such as DistributedDataParallel.
    """
    model = getattr(model, "module", model)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return base if isinstance(base, T5WithFusion) else None


def half_precision_of_fusion(model: T5WithFusion) -> str | None:
    """Return the name of the half-precision dtype in which the fusion layer trains, though all other weights that train
    are in float32, as PEFT makes LoRA's; None for any other model.
    """
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            dtypes[".fusion." in name].add(parameter.dtype)
    half = dtypes[True] - {torch.float32}
    return str(half.pop()).removeprefix("torch.") if half and dtypes[False] == {torch.float32} else None


def unscaled_kinds(model: T5WithFusion) -> list[str]:
    """Return the kinds of vectors whose scale was not fitted to any rows yet."""
    try:
        fusion = model.fusion_to_fit()
    except ValueError:  # The adapter does not hold the layer, so the base model's own is used.
        fusion = model.encoder.fusion
        fusion = getattr(fusion, "original_module", fusion)
    return [
        name for name, kind in model.config.kinds.items() if kind.scale and not fusion.projector(name).scale.is_fitted
    ]


def has_initial_fusion(model: T5WithFusion) -> bool:
    """Return whether the fusion layer will train, still has its initial weights, and `fit_fusion` was not called."""
    try:
        fusion = model.fusion_to_fit()
    except ValueError:  # The adapter does not hold the layer.
        return False
    return not fusion.fit_was_tried and all(_has_initial_weight(fusion.projector(kind)) for kind in model.config.kinds)


def _has_initial_weight(projector: VectorProjector) -> bool:
    """Return whether the last layer of a projector will train, and still has its initial weight."""
    weight = getattr(projector.last_layer, "weight", None)
    if type(weight) is not torch.nn.Parameter or not weight.requires_grad or weight.numel() == 0:
        return False
    return torch.equal(weight.detach().float().cpu(), initial_projection(weight.shape).to(weight.dtype).float())


def start_rows(loader: DataLoader | None) -> list[dict]:
    """Return rows with a vector and labels, spread over the training set.

    The list is empty for a streamed set, and for a set whose rows are not dicts. Every process reads the same rows,
    because the loader's `dataset` is the whole set.
    """
    dataset: Any = getattr(loader, "dataset", None)
    if not _has_random_access(dataset):
        return []
    step = max(1, -(-len(dataset) // MOST_START_ROWS))  # rounded up
    rows = (dataset[index] for index in range(0, len(dataset), step))
    return [row for row in rows if isinstance(row, dict) and row.get("lexical_embeds") is not None and "labels" in row]


def _has_random_access(dataset: Any) -> bool:
    """Return whether rows can be read by their index."""
    is_indexable = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return is_indexable and not isinstance(dataset, IterableDataset)


def check_collator(loader: DataLoader | None, model: T5WithFusion) -> None:
    """Check that the rows get placeholders, before transformers' own collators fail with an error that does not help.

    Only the first row is looked at. A collator of the user may place the placeholders, so it is not checked.

    Raises:
        ValueError: The collator belongs to transformers, and the first row has vectors, but no placeholders.
    """
    dataset: Any = getattr(loader, "dataset", None)
    collator = _collator_of(loader)
    is_of_transformers = str(getattr(collator, "__module__", "")).startswith("transformers.")
    if not is_of_transformers or not _has_random_access(dataset) or len(dataset) == 0:
        return
    row = dataset[0]
    if not isinstance(row, dict) or row.get("lexical_embeds") is None or row.get("input_ids") is None:
        return
    placeholder_ids = set(model.config.placeholder_ids.values())
    # Only one kind of vectors fits into the tensors that such a collator makes.
    is_one_kind = not isinstance(row["lexical_embeds"], dict)
    if is_one_kind and placeholder_ids & set(torch.as_tensor(row["input_ids"]).tolist()):
        return
    name = getattr(collator, "__name__", type(collator).__name__)
    raise ValueError(
        f"the Trainer's data collator is {name}, which does not prepare the vectors in `lexical_embeds`; expected "
        "DataCollatorWithFusion. Pass `data_collator=DataCollatorWithFusion(processor)`."
    )


def _collator_of(loader: DataLoader | None) -> Any:
    """Return the collator that was given to the Trainer, which may wrap it to remove columns."""
    collator = getattr(loader, "collate_fn", None)
    return getattr(collator, "data_collator", collator)


@contextmanager
def unpacked(loader: DataLoader) -> Iterator[None]:
    """Let a loader's `DataCollatorWithFusion` give each row a sequence of its own, in this context."""
    collator = _collator_of(loader)
    packing = getattr(collator, "packing", False)
    if packing:
        collator.packing = False
    try:
        yield
    finally:
        if packing:
            collator.packing = packing


@torch.no_grad()
def measure_vectors(model, batches: DataLoader) -> tuple[Losses, Losses]:
    """Return the losses of held-out rows with their own vectors, and with the vectors of the row before in the batch.

    Batches of a single row are skipped, and so are batches in which a row has no vector or several. With several
    processes, only the result of the first process is right.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    own, other = [], []
    for number, batch in enumerate(islice(batches, MOST_REPORT_BATCHES)):
        vectors = batch.get("lexical_embeds") if hasattr(batch, "get") else None
        if vectors is None or batch.get("labels") is None:
            continue
        rows = int(min(len(batch["labels"]), rows_left_at(batches, number)))
        if rows < 2:
            continue
        by_kind = vectors if isinstance(vectors, dict) else {None: vectors}
        by_kind = {name: of_kind[:rows].to(device) for name, of_kind in by_kind.items()}
        if not all(has_one_each(of_kind) for of_kind in by_kind.values()):
            continue  # The vectors of the row before might not fit the placeholders.
        shifted = {name: of_kind.roll(1, 0) for name, of_kind in by_kind.items()}
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        batch = {name: value[:rows].to(device) for name, value in tensors.items()}
        own.append(losses_of(model, batch | {"lexical_embeds": by_kind.get(None, by_kind)}))
        other.append(losses_of(model, batch | {"lexical_embeds": shifted.get(None, shifted)}))
    model.train(was_training)
    return Losses.of_batches(own), Losses.of_batches(other)


def has_one_each(vectors: torch.Tensor) -> bool:
    """Return whether each row has exactly one vector: float (rows, dim) or (rows, vectors, dim), without padding."""
    return (vectors.dim() == 2 or vectors.shape[1] == 1) and bool((vectors != 0).flatten(1).any(1).all())


def rows_left_at(batches: DataLoader, number: int) -> float:
    """Return how many rows of the data set are left when the first process begins its batch `number`.

    If several processes share the batches, accelerate repeats rows at the end, so that each process gets the same
    number of full batches. Returns infinity for a data set of unknown length.
    """
    rows_per_step = getattr(batches, "total_batch_size", None) or getattr(batches, "batch_size", None)
    dataset: Any = getattr(batches, "dataset", None)
    return len(dataset) - number * rows_per_step if rows_per_step and hasattr(dataset, "__len__") else math.inf


def add_to_fused_models(callback: type[TrainerCallback]) -> None:
    """Give a callback to every Trainer of a fused model that is made from now on."""
    CallbackHandler.__init__ = _wrap_init(CallbackHandler.__init__, callback)


def _wrap_init(init: Callable, callback: type[TrainerCallback]) -> Callable:
    """Return `CallbackHandler.__init__`, wrapped so that it adds a callback for fused models."""

    @wraps(init)
    def __init__(self, callbacks, model, *args, **kwargs):
        if fused_model(model) is not None:
            callbacks = [callback, *callbacks]
        init(self, callbacks, model, *args, **kwargs)

    return __init__


def register() -> None:
    """Add `FusionCallback` to the Trainers of fused models."""
    add_to_fused_models(FusionCallback)

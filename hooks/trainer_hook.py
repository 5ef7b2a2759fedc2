"""In every `Trainer` of a fused model: start the fusion layer, and report if the vectors brought nothing.

The Trainer shows its data to callbacks only. Every Trainer passes its callbacks and its model to
`CallbackHandler.__init__`, which `import t5fusion` wraps: if the model is a fused model, it adds `FusionCallback`.
(transformers' list of default callbacks would do too, but importing its module takes a second, and not every user of a
model needs a Trainer.) `trainer.remove_callback(FusionCallback)` removes the callback from one Trainer, and the
environment variable T5FUSION_TRAINER_HOOK=0 switches it off.
"""

import math
import sys
from collections.abc import Callable
from functools import wraps
from itertools import islice
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from ..common.losses import Losses, losses_of, paired_bootstrap
from ..modeling_t5fusion import T5WithFusion, initial_projection
from .switches import TRAINER, is_on

MOST_START_ROWS = 20_000  # rows that are read for the start; more take long and change little
MOST_REPORT_BATCHES = 64  # held-out batches that are measured for the report


class FusionCallback(TrainerCallback):
    """Callback that starts a fusion layer, if it still has its initial weights, and reports if the vectors are useless.

    Args:
        start: Whether to start the fusion layer. `t5fusion train` passes False, because it starts the layer itself
            unless it is asked not to.
    """

    def __init__(self, start: bool = True):
        self.start = start

    def on_train_begin(self, args: TrainingArguments, state, control, model=None, train_dataloader=None, **kwargs):
        fused = fused_model(model) if self.start else None
        if fused is not None and is_on(TRAINER) and has_initial_fusion(fused):
            rows = start_rows(train_dataloader)
            if rows:
                fused.fit_fusion(rows)

    def on_train_end(self, args, state: TrainerState, control, model=None, eval_dataloader=None, **kwargs):
        fused = fused_model(model)
        if fused is None or eval_dataloader is None or not is_on(TRAINER):
            return
        if any(type(parameter) is not torch.nn.Parameter for parameter in fused.parameters()):
            return  # FSDP has split the weights over the processes.
        own, other = measure_vectors(model, eval_dataloader)
        if len(own.sums) < 2:
            return
        cost = paired_bootstrap(other, own)
        if cost.low <= 0 and state.is_world_process_zero:
            print(
                f"The vectors bring nothing: on {len(own.sums)} held-out rows the loss is {own.mean:.4f} with their "
                f"own vectors and {other.mean:.4f} with other rows' ({cost.difference:+.4f}, 95 % between "
                f"{cost.low:+.4f} and {cost.high:+.4f}). Either they hold nothing that the text does not, or training "
                "was too short.",
                file=sys.stderr,
            )


def fused_model(model) -> T5WithFusion | None:
    """Return the fused model that a Trainer trains: itself, beneath an adapter, or in a wrapper for several processes.

    None for other models.
    """
    model = getattr(model, "module", model)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return base if isinstance(base, T5WithFusion) else None


def has_initial_fusion(model: T5WithFusion) -> bool:
    """Return whether the fusion layer will train, and still has its initial weights."""
    try:
        fusion = model.fusion_to_fit()
    except ValueError:  # the adapter does not hold the layer
        return False
    weight = getattr(fusion.projection, "weight", None)
    if type(weight) is not torch.nn.Parameter or not weight.requires_grad or weight.numel() == 0:
        return False
    return torch.equal(weight.detach().float().cpu(), initial_projection(weight.shape).to(weight.dtype).float())


def start_rows(loader: DataLoader | None) -> list[dict]:
    """Return rows with a vector and labels, spread over the training set. The list is empty for a streamed set.

    Every process reads the same rows, because the loader's `dataset` is the whole set.
    """
    dataset: Any = getattr(loader, "dataset", None)
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        return []
    step = max(1, -(-len(dataset) // MOST_START_ROWS))  # rounded up
    rows = (dataset[index] for index in range(0, len(dataset), step))
    return [row for row in rows if isinstance(row, dict) and row.get("lexical_embeds") is not None and "labels" in row]


@torch.no_grad()
def measure_vectors(model, batches: DataLoader) -> tuple[Losses, Losses]:
    """Return the losses of held-out rows with their own vectors, and with those of the row before in the batch.

    Left out are batches of a single row, and batches with a row that has no vector or several. Of several processes,
    only the first gets the right rows.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    own, other = [], []
    for number, batch in enumerate(islice(batches, MOST_REPORT_BATCHES)):
        vectors = batch.get("lexical_embeds") if hasattr(batch, "get") else None
        if vectors is None or batch.get("labels") is None:
            continue
        rows = int(min(len(vectors), rows_from_batch(batches, number)))
        if rows < 2:
            continue
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        batch = {name: value[:rows].to(device) for name, value in tensors.items()}
        vectors = batch["lexical_embeds"]
        has_vector = (vectors != 0).flatten(1).any(1)
        one_each = vectors.dim() == 2 or vectors.shape[1] == 1
        if not one_each or not bool(has_vector.all()):
            continue  # Another row's vectors would not fit the placeholders.
        own.append(losses_of(model, batch))
        other.append(losses_of(model, batch | {"lexical_embeds": vectors.roll(1, 0)}))
    model.train(was_training)
    return Losses.of_batches(own), Losses.of_batches(other)


def rows_from_batch(batches: DataLoader, number: int) -> float:
    """Return how many rows of the data set are left when the first process begins its batch of this number.

    Where several processes share the batches, accelerate repeats rows at the end, so that each process gets the same
    number of full batches. Infinity for a set of unknown length.
    """
    step = getattr(batches, "total_batch_size", None) or getattr(batches, "batch_size", None)  # of all processes
    dataset: Any = getattr(batches, "dataset", None)
    return len(dataset) - number * step if step and hasattr(dataset, "__len__") else math.inf


def add_to_fused_models(callback: type[TrainerCallback]) -> None:
    """Give a callback to every Trainer of a fused model that is made from now on."""
    CallbackHandler.__init__ = _wrap_init(CallbackHandler.__init__, callback)


def _wrap_init(init: Callable, callback: type[TrainerCallback]) -> Callable:
    """Wrap `CallbackHandler.__init__`, so that it adds a callback for fused models."""

    @wraps(init)
    def __init__(self, callbacks, model, *args, **kwargs):
        if fused_model(model) is not None:
            callbacks = [callback, *callbacks]
        init(self, callbacks, model, *args, **kwargs)

    return __init__


def register() -> None:
    """Add the callback to the Trainers of fused models."""
    add_to_fused_models(FusionCallback)

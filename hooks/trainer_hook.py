"""What t5fusion does in every `Trainer`, for fused models only: a start for the fusion layer, and a word at the end.

`import t5fusion` puts `FusionCallback` among the Trainer's default callbacks. `trainer.remove_callback(FusionCallback)`
takes it away; the environment variable T5FUSION_TRAINER_HOOK=0 switches it off.
"""

import os
import sys
from itertools import islice
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback, TrainerState, TrainingArguments, trainer

from ..common.losses import Losses, losses_of, paired_bootstrap
from ..modeling_t5fusion import T5WithFusion, initial_projection

SWITCH = "T5FUSION_TRAINER_HOOK"
ROWS_OF_START = 20_000  # rows that are read for the start: more of them change little, and take long
BATCHES_OF_END = 64  # held-out batches that are measured at the end


class FusionCallback(TrainerCallback):
    """Starts a fusion layer that nobody has started, and says so where training made nothing of the vectors.

    Args:
        start: whether it starts the fusion layer; `t5fusion train` has done that, or left it, as it was asked to.
    """

    def __init__(self, start: bool = True):
        self.start = start

    def on_train_begin(self, args: TrainingArguments, state, control, model=None, train_dataloader=None, **kwargs):
        fused = fused_model(model) if self.start else None
        if fused is not None and os.environ.get(SWITCH) != "0" and is_unstarted(fused):
            rows = rows_to_start_from(train_dataloader)
            if rows:
                fused.fit_fusion(rows)

    def on_train_end(self, args, state: TrainerState, control, model=None, eval_dataloader=None, **kwargs):
        fused = fused_model(model)
        if fused is None or eval_dataloader is None or os.environ.get(SWITCH) == "0":
            return
        if any(type(parameter) is not torch.nn.Parameter for parameter in fused.parameters()):  # shards, under FSDP
            return
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
    """The fused model in what a Trainer trains: by itself, beneath an adapter, or wrapped for several processes."""
    model = getattr(model, "module", model)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return base if isinstance(base, T5WithFusion) else None


def is_unstarted(model: T5WithFusion) -> bool:
    """Whether the fusion layer will train, and still has the weights that it was built with."""
    try:
        fusion = model.fusion_to_fit()
    except ValueError:  # the adapter does not hold it
        return False
    weight = getattr(fusion.projection, "weight", None)
    if type(weight) is not torch.nn.Parameter or not weight.requires_grad or weight.numel() == 0:
        return False
    return torch.equal(weight.detach().float().cpu(), initial_projection(weight.shape).to(weight.dtype).float())


def rows_to_start_from(loader: DataLoader | None) -> list[dict]:
    """Rows that have a vector and labels, spread over the training set; none where they cannot be told.

    Every process reads the same rows, since its `dataset` is the whole set.
    """
    dataset: Any = getattr(loader, "dataset", None)
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        return []
    step = max(1, -(-len(dataset) // ROWS_OF_START))
    rows = (dataset[index] for index in range(0, len(dataset), step))
    return [row for row in rows if isinstance(row, dict) and row.get("lexical_embeds") is not None and "labels" in row]


@torch.no_grad()
def measure_vectors(model, batches: DataLoader) -> tuple[Losses, Losses]:
    """The losses of held-out rows with their own vectors, and each with the vector of the row before it.

    Rows without a vector, and batches of one row, do not count.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    own, other = [], []
    for batch in islice(batches, BATCHES_OF_END):
        vectors = batch.get("lexical_embeds") if hasattr(batch, "get") else None
        if vectors is None or batch.get("labels") is None or len(vectors) < 2:
            continue
        batch = {name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
        vectors = batch["lexical_embeds"]
        given = (vectors != 0).flatten(1).any(1)
        one_each = vectors.dim() == 2 or vectors.shape[1] == 1
        if not one_each or not bool(given.all()):  # another row's vectors would not fit the placeholders
            continue
        own.append(losses_of(model, batch))
        other.append(losses_of(model, batch | {"lexical_embeds": vectors.roll(1, 0)}))
    model.train(was_training)
    return Losses.of_batches(own), Losses.of_batches(other)


def register() -> None:
    """Put the callback among those that every Trainer made from now on has."""
    if FusionCallback not in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.append(FusionCallback)

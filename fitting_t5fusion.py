"""The closed-form start of the fusion layer: `FittingMixin` gives `T5WithFusion` its `fit_fusion`.

From random weights the lexical token says nothing at first, and low-rank adapters learn to look elsewhere before the
fusion layer has learnt to speak. This start needs no gradient: ridge regression maps a row's vector to the mean
embedding of its target's words, so that the token reads, from the first step, like a mixture of those words.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .processing_t5fusion import vectors_of_row

if TYPE_CHECKING:  # a mixin of models: a checker may know what they have
    from transformers import PreTrainedModel as Model
else:
    Model = object

STRENGTHS = torch.logspace(-5, 1, 13, dtype=torch.float64, device="cpu")
FIRST_WORD = 2  # ids below it are <pad> and </s>; padding that the loss skips is negative


class FittingMixin(Model):
    """`fit_fusion` for a model that has `encoder.fusion` and `shared`."""

    @torch.no_grad()
    def fit_fusion(self, rows: Iterable[dict]) -> float:
        """Start the fusion layer from the rows, in closed form, before training; print in one sentence what it found.

        Call it before or after `get_peft_model`: the adapter trains on from here and saves the result. After
        `get_peft_model` only the active adapter's copy of the layer changes.

        Args:
            rows: rows as `DataCollatorWithFusion` takes them, read once: a list, a `datasets.Dataset` or any iterable.
                Each needs `labels` (token ids, padded or not) and `lexical_embeds`, float (lexical_dim,) or (vectors,
                lexical_dim), of which the mean counts. Rows without a vector are skipped.

        Returns:
            The share of the variance of the targets' mean embeddings that the vectors explain on rows left out, by
            generalised cross-validation. At zero or below, the vectors say nothing about the targets that a linear map
            could carry, or the rows are too few to tell: the fusion layer then stays as it is.

        Raises:
            ValueError: no row has both labels and a vector, or a vector has another width than `config.lexical_dim`;
                or the active adapter does not hold the fusion layer, so that the result would not be saved.
        """
        fusion = self.fusion_to_fit()
        vectors, labels = read_rows(rows, self.config.lexical_dim)
        embeddings = self.get_input_embeddings().weight
        weight, explained = ridge(vectors, mean_target_embeddings(labels, embeddings.float().cpu()))
        if explained > 0:
            fusion.projection.weight.copy_(weight)
            fusion.projection.bias.copy_(-weight @ vectors.double().mean(0))
        if os.environ.get("RANK", "0") == "0":
            share = f"{explained:.1%} of" if explained > 0 else "nothing of"
            kept = "" if explained > 0 else " The fusion layer stays as it was."
            print(f"fit_fusion: the vectors of {len(vectors):,} rows explain {share} their targets' words.{kept}")
        return explained

    def fusion_to_fit(self) -> Any:
        """The fusion layer that the next training step trains: the active adapter's copy where there is an adapter."""
        fusion = self.encoder.fusion
        copies = getattr(fusion, "modules_to_save", None)
        if copies is not None and fusion.active_adapters:
            return copies[fusion.active_adapters[0]]
        if getattr(self, "peft_config", None):
            raise ValueError(
                f"the adapter {', '.join(map(repr, self.peft_config))} does not hold the fusion layer, so that fitted "
                "weights would not be saved. Put the adapter on with `modules_to_save=['fusion']` in its config, which "
                "is the default, or call `fit_fusion` on a model without an adapter."
            )
        return fusion


def read_rows(rows: Iterable[dict], width: int) -> tuple[Tensor, list[list[int]]]:
    """The mean vector of each row, float32 (rows, width), and the ids of its target's words.

    Raises:
        ValueError: a vector has another width; or no row has both a vector and labels.
    """
    vectors, labels = [], []
    for index, row in enumerate(rows):
        vector = vectors_of_row(index, row.get("lexical_embeds"))
        if len(vector) == 0 or row.get("labels") is None:
            continue
        if vector.shape[1] != width:
            raise ValueError(
                f"row {index} has a vector of {vector.shape[1]} numbers; expected {width} (`config.lexical_dim`). Use "
                f"the encoder of the training, or build the model with `lexical_dim={vector.shape[1]}`."
            )
        vectors.append(torch.from_numpy(vector).mean(0))
        labels.append(torch.as_tensor(row["labels"]).flatten().tolist())
    if not vectors:
        raise ValueError("no row has both `lexical_embeds` and `labels`; expected one or more that do.")
    return torch.stack(vectors), labels


def ridge(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, float]:
    """Ridge regression of centred data, its strength chosen by generalised cross-validation (Golub et al. 1979).

    Args:
        inputs: float (rows, a).
        outputs: float (rows, b).

    Returns:
        The weight, float64 (b, a), and the share of the outputs' variance that it explains on rows left out.
    """
    x, y = inputs.double(), outputs.double()
    x, y = x - x.mean(0), y - y.mean(0)
    variance = y.square().sum().item()
    if variance == 0:
        return y.new_zeros(y.shape[1], x.shape[1]), 0.0
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    projected = left.T @ y
    best_error, best_strength = min((_left_out_error(left, values, projected, y, s), s) for s in STRENGTHS.tolist())
    shrunk = values / (values**2 + best_strength * len(x))
    return (right.T @ (shrunk[:, None] * projected)).T, 1 - best_error / variance


def _left_out_error(left: Tensor, values: Tensor, projected: Tensor, y: Tensor, strength: float) -> float:
    kept = values**2 / (values**2 + strength * len(y))
    residual = (y - left @ (kept[:, None] * projected)).square().sum()
    return (residual / (1 - (kept.sum() + 1) / len(y)) ** 2).item()  # + 1: the mean is fitted too


def mean_target_embeddings(labels: list[list[int]], embeddings: Tensor) -> Tensor:
    """For each row of label ids, the mean embedding of its distinct tokens, rare ones weighing more; (rows, d_model).

    The weight of a token is its inverse document frequency, log(rows / rows that hold it) (Sparck Jones 1972).
    """
    rows = [torch.tensor(sorted({token for token in row if token >= FIRST_WORD}), dtype=torch.int64) for row in labels]
    frequency = torch.bincount(torch.cat(rows), minlength=len(embeddings)).clamp(min=1)
    weight = (len(rows) / frequency).log()
    return torch.stack(
        [(weight[row, None] * embeddings[row]).sum(0) / weight[row].sum().clamp(min=1e-6) for row in rows]
    )


__all__ = ["FittingMixin"]

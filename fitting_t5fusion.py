"""The closed-form start of the fusion layer: `FittingMixin` gives `T5WithFusion` its `fit_fusion`.

A fusion layer with random weights carries no information at first, and low-rank adapters learn to ignore it before it
has learnt anything. The closed-form start needs no gradient: ridge regression maps a row's vector to the mean embedding
of its target's words. From the first training step on, the model reads the vector as a mixture of those words.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .rows_t5fusion import as_array, vectors_of_row

if TYPE_CHECKING:  # Type checkers then know the attributes of the model that this class is mixed into.
    from transformers import PreTrainedModel as Model
else:
    Model = object

STRENGTHS = torch.logspace(-5, 1, 13, dtype=torch.float64, device="cpu")  # ridge penalties to choose from
FIRST_WORD_ID = 2  # Smaller ids are <pad> (0), </s> (1), and the negative ids that the loss ignores.


class FittingMixin(Model):
    """`fit_fusion` for a model that has `encoder.fusion` and `shared`."""

    @torch.no_grad()
    def fit_fusion(self, rows: Iterable[Mapping[str, Any]]) -> float:
        """Start the fusion layer in closed form from the training rows, and print how much the vectors explain.

        Call it before training, before or after `get_peft_model`. The adapter trains on from this start and saves the
        result. After `get_peft_model`, only the active adapter's copy of the layer changes.

        Args:
            rows: Rows as `DataCollatorWithFusion` takes them: a list, a `datasets.Dataset` or any iterable, read once.
                Each row needs `labels`, token ids with or without padding, and `lexical_embeds`, float (lexical_dim,)
                or (vectors, lexical_dim). Several vectors of a row count as their mean. Rows without a vector are
                skipped.

        Returns:
            The share of the variance of the targets' mean embeddings that the vectors explain on held-out rows, by
            generalised cross-validation. At zero or below, a linear map of the vectors says nothing about the targets,
            or there are too few rows to tell. The fusion layer then stays as it is.

        Raises:
            ValueError: No row has both labels and a vector; a vector has another width than `config.lexical_dim`; or
                the active adapter does not hold the fusion layer, so that the result would not be saved.
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
            rows_in_words = "1 row" if len(vectors) == 1 else f"{len(vectors):,} rows"
            sentence = f"the vectors of {rows_in_words} explain {share} their targets' words.{kept}"
            print(f"fit_fusion: {sentence}", file=sys.stderr)
        return explained

    def fusion_to_fit(self) -> Any:
        """Return the fusion layer that training changes: the active adapter's copy, or the model's own.

        Raises:
            ValueError: The model has an adapter, and the active one does not hold the fusion layer.
        """
        fusion = self.encoder.fusion
        copies = getattr(fusion, "modules_to_save", None)
        if copies is not None and fusion.active_adapters:
            return copies[fusion.active_adapters[0]]
        if getattr(self, "peft_config", None):
            raise ValueError(
                f"the adapter {', '.join(map(repr, self.peft_config))} does not hold the fusion layer, so fitted "
                "weights would not be saved. Put the adapter on with `modules_to_save=['fusion']` in its config, which "
                "is the default, or call `fit_fusion` on a model without an adapter."
            )
        return fusion


def read_rows(rows: Iterable[Mapping[str, Any]], width: int) -> tuple[Tensor, list[list[int]]]:
    """Return the mean vector of each row, float32 (rows, width), and each row's label ids, with their padding.

    Rows without a vector or without labels are skipped.

    Raises:
        ValueError: A vector has another width, or no row has both a vector and labels.
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
        labels.append(as_array(row["labels"]).ravel().tolist())
    if not vectors:
        raise ValueError("no row has both `lexical_embeds` and `labels`; expected one or more that do.")
    return torch.stack(vectors), labels


def ridge(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, float]:
    """Fit a ridge regression to centred data, with the penalty that generalised cross-validation chooses.

    Args:
        inputs: Float (rows, a).
        outputs: Float (rows, b).

    Returns:
        The weight, float64 (b, a), and the share of the outputs' variance that it explains on held-out rows (Golub et
        al. 1979).
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
    """Return the squared error on held-out rows that generalised cross-validation estimates for one penalty.

    Args:
        left: Left singular vectors of the centred inputs, float64 (rows, k).
        values: Their singular values, float64 (k,).
        projected: The centred outputs projected on `left`, float64 (k, b).
        y: The centred outputs, float64 (rows, b).
        strength: The ridge penalty, per row.
    """
    kept = values**2 / (values**2 + strength * len(y))
    residual = (y - left @ (kept[:, None] * projected)).square().sum()
    return (residual / (1 - (kept.sum() + 1) / len(y)) ** 2).item()  # + 1 because the mean is fitted too


def mean_target_embeddings(labels: list[list[int]], embeddings: Tensor) -> Tensor:
    """Return the weighted mean embedding of each row's distinct label tokens, float (rows, d_model).

    Rare tokens weigh more: the weight of a token is its inverse document frequency, log(rows / rows that hold it)
    (Sparck Jones 1972).

    Args:
        labels: Token ids of each row, with or without padding.
        embeddings: The embedding table, float (tokens, d_model), on the CPU.
    """
    words = [sorted({token for token in row if token >= FIRST_WORD_ID}) for row in labels]
    rows = [torch.tensor(row, dtype=torch.int64, device="cpu") for row in words]  # whatever the default device is
    frequency = torch.bincount(torch.cat(rows), minlength=len(embeddings)).clamp(min=1)
    weight = (len(rows) / frequency).log()
    return torch.stack(
        [(weight[row, None] * embeddings[row]).sum(0) / weight[row].sum().clamp(min=1e-6) for row in rows]
    )


__all__ = ["FittingMixin"]

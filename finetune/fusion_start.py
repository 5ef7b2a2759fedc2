"""A closed-form start of the fusion layer: the ridge regression from a row's vector to the words of its target.

From random weights the lexical token says nothing at first, and low-rank adapters learn to look elsewhere before the
fusion layer has learnt to speak. This start needs no gradient and no data but the training rows: it maps a vector to
where the embeddings of its target's words lie, so that the token reads, from the first step, like a mixture of them.
"""

import torch
from torch import Tensor

STRENGTHS = torch.logspace(-5, 1, 13, dtype=torch.float64)


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
    rows = [torch.tensor(sorted({token for token in row if token > 1}), dtype=torch.int64) for row in labels]
    frequency = torch.bincount(torch.cat(rows), minlength=len(embeddings)).clamp(min=1)
    weight = (len(rows) / frequency).log()
    return torch.stack(
        [(weight[row, None] * embeddings[row]).sum(0) / weight[row].sum().clamp(min=1e-6) for row in rows]
    )


@torch.no_grad()
def start_from_targets(model, vectors: Tensor, labels: list[list[int]]) -> float:
    """Sets the fusion layer of `model` to the regression from `vectors` (rows, lexical_dim) to the rows' targets.

    Returns:
        The share of the variance of the targets' mean embeddings that the vectors explain on rows left out: near zero,
        they tell nothing of the targets that a straight line could carry.
    """
    embeddings = model.encoder.embed_tokens.weight.float().cpu()
    weight, explained = ridge(vectors, mean_target_embeddings(labels, embeddings))
    if not weight.any():  # all targets are alike: there is nothing to start from
        return 0.0
    projection = model.encoder.fusion.projection
    projection.weight.copy_(weight)
    projection.bias.copy_(-weight @ vectors.double().mean(0))
    return explained

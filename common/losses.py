"""Losses of rows, and confidence intervals for the difference between two models or two inputs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ..rows_t5fusion import IGNORED


class Losses(NamedTuple):
    """The cross entropy of each row."""

    sums: np.ndarray  # float64 (rows,): nats, summed over the tokens of the target
    tokens: np.ndarray  # float64 (rows,): number of tokens of the target

    @classmethod
    def of_batches(cls, batches: "Sequence[Losses]") -> "Losses":
        """Join the losses of several batches, in their order."""
        empty = np.zeros(0)  # NumPy cannot concatenate an empty list.
        sums, tokens = ([getattr(batch, name) for batch in batches] for name in cls._fields)
        return cls(np.concatenate([empty, *sums]), np.concatenate([empty, *tokens]))

    @property
    def mean(self) -> float:
        """Nats per token, over all rows. How the rows were batched does not matter."""
        return float(self.sums.sum() / self.tokens.sum())


class Interval(NamedTuple):
    """A difference of two losses and its 95 % confidence interval, in nats per token."""

    difference: float
    low: float
    high: float


def losses_of(model, batch: Mapping[str, torch.Tensor]) -> Losses:
    """Return the loss of each row of a batch with labels, as the collator makes it, on the model's device."""
    logits = model(**batch).logits.float()
    token_losses = cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none", ignore_index=IGNORED)
    tokens = (batch["labels"] != IGNORED).sum(1)
    return Losses(token_losses.double().sum(1).cpu().numpy(), tokens.double().cpu().numpy())


def paired_bootstrap(a: Losses, b: Losses, samples: int = 10_000, seed: int = 0) -> Interval:
    """Return the difference a - b of the mean losses of two models (or inputs) on the same rows, in nats per token.

    A positive difference means that `b` is better. Each sample draws rows with replacement, the same ones for both
    (Koehn 2004). The bounds are the 2.5th and 97.5th percentiles of the samples.

    Args:
        a, b: The losses. Their rows must be in the same order.
        samples: Number of samples.
        seed: Seed of the random numbers.

    Raises:
        ValueError: The numbers of tokens differ, so the losses are not of the same rows.
    """
    if not np.array_equal(a.tokens, b.tokens):
        differing = "their number differs"
        if len(a.tokens) == len(b.tokens):
            differing = f"{np.count_nonzero(a.tokens != b.tokens)} of them have different numbers of tokens"
        raise ValueError(
            f"the losses are not of the same rows: {differing}. Evaluate both models on the same rows, in the same "
            "order."
        )
    generator, rows = np.random.default_rng(seed), len(a.sums)
    equal_chances = np.full(rows, 1 / rows)
    differences = np.empty(samples)
    for sample in range(samples):  # One at a time, because rows x samples numbers may not fit into memory.
        counts = generator.multinomial(rows, equal_chances)
        differences[sample] = counts @ (a.sums - b.sums) / (counts @ a.tokens)
    low, high = np.percentile(differences, [2.5, 97.5])
    return Interval(a.mean - b.mean, float(low), float(high))

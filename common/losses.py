"""Losses of rows, and how sure a difference between two models, or two inputs, is."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ..rows_t5fusion import IGNORED


class Losses(NamedTuple):
    """Cross entropy of each row: its sum over the target's tokens, in nats, and their number; float64 (rows,)."""

    sums: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of_batches(cls, batches: "Sequence[Losses]") -> "Losses":
        """The losses of the rows of several batches."""
        none = np.zeros(0)
        return cls(*(np.concatenate([none, *part]) for part in (zip(*batches, strict=True) if batches else ((), ()))))

    @property
    def mean(self) -> float:
        """Nats per token, whatever the batches were."""
        return float(self.sums.sum() / self.tokens.sum())


class Interval(NamedTuple):
    """A difference and the bounds that hold it with 95 % probability."""

    difference: float
    low: float
    high: float


def losses_of(model, batch: Mapping[str, torch.Tensor]) -> Losses:
    """The loss of each row of a collated batch with labels, on the model's device."""
    logits = model(**batch).logits.float()
    each = cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none", ignore_index=IGNORED)
    return Losses(each.double().sum(1).cpu().numpy(), (batch["labels"] != IGNORED).sum(1).double().cpu().numpy())


def paired_bootstrap(a: Losses, b: Losses, samples: int = 10_000, seed: int = 0) -> Interval:
    """The difference of the mean losses of two models (or inputs) on the same rows, a - b, in nats per token.

    Rows are drawn with replacement, the same for both (Koehn 2004); the bounds are the 2.5th and 97.5th percentiles.

    Raises:
        ValueError: the rows are not the same: their numbers of tokens differ.
    """
    if not np.array_equal(a.tokens, b.tokens):
        raise ValueError("the losses are not of the same rows: their numbers of tokens differ.")
    numbers, even = np.random.default_rng(seed), np.full(len(a.sums), 1 / len(a.sums))
    differences = np.empty(samples)
    for sample in range(samples):  # one at a time: all at once are rows x samples numbers
        drawn = numbers.multinomial(len(even), even)
        differences[sample] = drawn @ (a.sums - b.sums) / (drawn @ a.tokens)
    low, high = np.percentile(differences, [2.5, 97.5])
    return Interval(a.mean - b.mean, float(low), float(high))

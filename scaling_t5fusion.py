"""The scale of a kind of vectors, which brings the dimensions of raw numbers to one magnitude before projection.

Prices, counts and sensor values have any magnitude. With one learning rate for all of its weights, a linear layer would
learn from the dimensions with large numbers only. So each dimension is shifted by its mean and divided by its standard
deviation. `fit_fusion` computes both from the training rows, and the fusion layer holds them, so they are saved with an
adapter.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .kinds_t5fusion import VectorKind

# When a scale is fitted, values outside these quantiles of a dimension count as the nearer one.
QUANTILES = (0.01, 0.99)
LIMIT = 10.0  # standard deviations; once a scale is fitted, a value further away counts as this
NO_LIMIT = torch.finfo(torch.float32).max  # infinity in a saved file would look like a failed training
SMALL_SHARE = 0.05  # the share of a dimension's magnitudes that count as small; "log" keeps these on a linear scale
MOST_VECTORS = 20_000  # the most vectors that a scale is fitted to; more would take long and change little
# Above these ratios of large to small, of a dimension's numbers and of norms, a different scale is advised.
LARGEST_RATIO_OF_NUMBERS, LARGEST_RATIO_OF_NORMS = 300, 2
EPSILON = 1e-6  # a dimension whose standard deviation is at most this share of its mean is constant within rounding


class VectorScale(nn.Module):
    """The shift and the division of each dimension of a kind's vectors, by means and deviations that `fit` computes.

    These statistics are buffers, because no gradient changes them. They stay in float32 if the model is cast: half
    precision cannot tell a price of 5001 from one of 5000.

    Args:
        kind: The kind of the vectors, whose scale is "standard" or "log".
    """

    mean: Tensor
    rate: Tensor  # one divided by the standard deviation; 0 for a dimension that never varies
    limit: Tensor  # the largest scaled number
    unit: Tensor  # "log": the magnitude at which a dimension's scale turns from linear to logarithmic

    def __init__(self, kind: VectorKind) -> None:
        super().__init__()
        self.is_log = kind.scale == "log"
        for name in ("mean", "rate", "limit", *(("unit",) if self.is_log else ())):
            # The dtype is explicit, because the process may have a different default.
            self.register_buffer(name, torch.empty(kind.dim, dtype=torch.float32))
        self.reset()

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` was called; True if FSDP left none of the statistics in this process."""
        return not bool((self.limit == NO_LIMIT).any())

    def reset(self) -> None:
        """Set the statistics with which vectors stay unchanged (with "log", small numbers stay unchanged)."""
        for name, buffer in self.named_buffers():
            buffer.fill_({"mean": 0.0, "limit": NO_LIMIT}.get(name, 1.0))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return scaled vectors, float32 (..., dim), for vectors of any float dtype."""
        return ((self._logarithm(vectors.float()) - self.mean) * self.rate).clamp(-self.limit, self.limit)

    def _logarithm(self, vectors: Tensor) -> Tensor:
        """Return asinh(vectors / unit) for "log": linear for magnitudes below the unit, logarithmic for larger ones."""
        return torch.asinh(vectors / self.unit.to(vectors)) if self.is_log else vectors

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Compute the statistics of training vectors, float (vectors, dim). At most 20,000 of them are used.

        So that a few outliers change nothing, values outside the 1st and the 99th percentile of a dimension count as
        that percentile. If that makes a dimension constant (as with a few ones among zeros), all its values count.
        """
        values = _sample(vectors)
        if self.is_log:
            self.unit.copy_(_spread(values.abs())[0].nan_to_num(1.0))  # NaN for a dimension of zeros
            values = self._logarithm(values)
        low, high = values.quantile(torch.tensor(QUANTILES).to(values), dim=0)
        inner = values.clamp(low, high)
        values = torch.where(is_constant(inner), values, inner)
        self.mean.copy_(values.mean(0))
        self.rate.copy_(torch.where(is_constant(values), 0.0, 1 / values.std(0, correction=0)))
        self.limit.fill_(LIMIT)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the buffers to a different device, but leave out casts to a different dtype."""
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype != torch.float32:
                self.register_buffer(name, exact[name].to(buffer.device))
        return self


def scale_advice(name: str, kind: VectorKind, vectors: Tensor) -> str:
    """Return advice if a different scale may suit vectors better; otherwise an empty string.

    Args:
        name: The name of their kind.
        kind: Their kind.
        vectors: Float (vectors, dim).
    """
    vectors = _sample(vectors)
    if kind.scale is None:
        shortest, longest = _spread(vectors.norm(dim=1, keepdim=True))
        if not longest > LARGEST_RATIO_OF_NORMS * shortest:  # NaN if all vectors are zeros
            return ""
        return (
            f"the {name} vectors differ in norm (most have one between {shortest[0]:.3g} and {longest[0]:.3g}), and "
            "the model reads their direction only. If the norm matters, build the model and the processor with "
            f"`vectors=`, and with `scale='standard'` in the `VectorKind` of {name!r}."
        )
    smallest, largest = _spread(vectors.abs())
    spanning = (largest > LARGEST_RATIO_OF_NUMBERS * smallest).nonzero().flatten().tolist()
    if kind.scale == "log" or not spanning:
        return ""
    first = spanning[0]
    return (
        f"{len(spanning)} of {kind.dim} dimensions of the {name} vectors span orders of magnitude, such as "
        f"dimension {first}, counted from 0 (most magnitudes are between {smallest[first]:.3g} and "
        f"{largest[first]:.3g}). `scale='log'` in their `VectorKind`, or `:log` after their "
        "--vector-column, may read them better."
    )


def _sample(vectors: Tensor) -> Tensor:
    """Return at most `MOST_VECTORS` of the vectors, float64 (vectors, dim)."""
    return vectors[:: -(-len(vectors) // MOST_VECTORS)].double()


def _spread(magnitudes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 5th and the 95th percentile of the magnitudes above zero in each dimension, float64 (dim,) each."""
    present = magnitudes.where(magnitudes > 0, torch.nan)
    return present.nanquantile(SMALL_SHARE, dim=0), present.nanquantile(1 - SMALL_SHARE, dim=0)


def is_constant(vectors: Tensor) -> Tensor:
    """Return which dimensions of vectors, float64 (vectors, dim), are constant within rounding: bool (dim,)."""
    return vectors.std(0, correction=0) <= EPSILON * vectors.mean(0).abs()


__all__ = ["VectorScale", "scale_advice"]

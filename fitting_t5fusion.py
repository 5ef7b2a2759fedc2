"""The fit of the fusion layer before training: `FittingMixin` gives `T5WithFusion` its `fit_fusion`.

The output of a fusion layer with random weights means nothing to T5, and low-rank adapters learn to ignore it before
the layer has learnt anything. `fit_fusion` replaces these weights without gradients, in closed form: a ridge regression
predicts the mean embedding of a target's tokens from the row's vector, and its weights become those of the layer. So
from the first training step on, the model reads a vector as a mixture of the tokens that the target probably has.
"""

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .blocks_t5fusion import DistinctTokens, RowBlock, read_blocks, split_off
from .kinds_t5fusion import DEFAULT_KIND, VectorKind, counted
from .scaling_t5fusion import MOST_VECTORS, VectorScale, scale_advice

if TYPE_CHECKING:  # Type checkers then know the attributes of the model that this class is mixed into.
    from transformers import PreTrainedModel as Model
else:
    Model = object

STRENGTHS = [10 ** (exponent / 2) for exponent in range(-10, 3)]  # ridge penalties per row and unit, to choose from
SMALLEST_FREEDOM = 1e-7  # With fewer degrees of freedom per row, the estimated error is only rounding.
UNIT_VARIANCES = (0.01, 10)  # between these variances of vectors, summed over dimensions, the unit of penalties is 1
FIRST_ROWS = 100_000  # Token frequencies and scales come from this many rows. Memory never holds more rows.
CHUNK_ROWS = 8192  # the most rows whose numbers are in memory as float64
NO_ROWS = "no row has both `lexical_embeds` and `labels`; expected one or more that do."


class FittingMixin(Model):
    """`fit_fusion` for a model that has `encoder.fusion` and `shared`."""

    @torch.no_grad()
    def fit_fusion(self, rows: Iterable[Mapping[str, Any]]) -> float:
        """Fit the fusion layer to the training rows in closed form, as a start for training.

        Call this before training, before or after `get_peft_model`. Training continues from these weights, and the
        adapter saves the result. After `get_peft_model`, only the active adapter's copy of the layer changes. If a kind
        of vectors has a scale, the scale is fitted to the rows first. The first process prints on standard error how
        much the vectors explain.

        Args:
            rows: Rows as `DataCollatorWithFusion` takes them: a list, a `datasets.Dataset` or any iterable, read once.
                A row needs `labels`, token ids with or without padding, and `lexical_embeds`, float (dim,) or (vectors,
                dim), or a dict of these by kind; other rows are skipped. Several vectors of a row count as their mean.
                A row without a vector of a kind is skipped for that kind. Memory does not grow with the number of
                rows: after 100,000 of them, only sums are kept. The frequencies of tokens, and the scales, are those
                of the first 100,000.

        Returns:
            The share of the variance of the targets' mean embeddings that the vectors would explain on other rows, as
            generalised cross-validation estimates it; with several kinds of vectors, the largest of their shares. At
            zero or below, a linear map of the vectors says nothing about the targets, or there are too few rows to
            tell. The projection of that kind then stays as it is.

        Raises:
            ValueError: No row has both labels and a vector; a vector does not have the width of its kind, or is one
                that the collator refuses; or the active adapter does not hold the fusion layer, so that the result
                would not be saved.
        """
        fusion = self.fusion_to_fit()
        projectors = {name: fusion.projector(name) for name in self.config.kinds}
        embeddings = self.get_input_embeddings().weight.float().cpu()
        shares = []
        for name, moments in read_moments(rows, self.config.kinds, projectors, embeddings).items():
            # A scale has brought the numbers to the magnitude for which the penalties are made.
            unit = 1.0 if self.config.kinds[name].scale else penalty_unit(moments)
            weight, explained = fit_weight(moments, self.config.kinds[name].tokens, unit)
            if explained > 0:
                set_weight(projectors[name], weight, moments)
            shares.append(explained)
            if _is_first_process():
                _report("" if name == DEFAULT_KIND else f"{name} ", moments.rows, explained)
        fusion.fit_was_tried = True
        return max(shares)

    @torch.no_grad()
    def fit_scales(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Fit only the scales of the kinds of vectors to the training rows. `fit_fusion` does this too.

        Args:
            rows: As for `fit_fusion`. The first 100,000 that have a vector and labels count.

        Raises:
            ValueError: No row has both labels and a vector; the width of a vector is not that of its kind; or the
                active adapter does not hold the fusion layer.
        """
        fusion = self.fusion_to_fit()
        projectors = {name: fusion.projector(name) for name in self.config.kinds}
        first, _ = split_off(read_blocks(rows, self.config.kinds, CHUNK_ROWS), FIRST_ROWS)
        if not first:
            raise ValueError(NO_ROWS)
        _fit_scales(first, projectors, "fit_scales")

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
            # PEFT stores the names of the active adapters in each layer that it wraps.
            layers: Any = (module for module in self.modules() if hasattr(module, "base_layer"))
            active = next((layer.active_adapters for layer in layers), list(self.peft_config))
            raise ValueError(
                f"the active adapter {', '.join(map(repr, active))} does not hold the fusion "
                "layer, so fitted weights would not be saved. Attach the adapter with `modules_to_save=['fusion']` in "
                "its config, which is the default after `import t5fusion`, or call this on a model without an adapter."
            )
        return fusion


class Moments:
    """The means of inputs and outputs over all rows so far, and the sums of products of their deviations, in float64.

    Blocks of rows are merged by their own means (Chan et al. 1979), so that a mean far from zero costs no precision.

    Args:
        input_width: How many numbers an input has.
        output_width: How many numbers an output has.
    """

    def __init__(self, input_width: int, output_width: int):
        # The dtype and the device are explicit, because the process may have other defaults.
        zeros = partial(torch.zeros, dtype=torch.float64, device="cpu")
        self.rows = 0
        self.input_mean, self.output_mean = zeros(input_width), zeros(output_width)
        self.input_products = zeros(input_width, input_width)
        self.input_output_products = zeros(input_width, output_width)
        self.output_squares = zeros(output_width)

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add rows: float (rows, inputs) and float (rows, outputs)."""
        # Products in float32 take half the time, but change the weight by one part in ten thousand.
        x, y = (numbers.to(torch.float64, copy=True) for numbers in (inputs, outputs))
        x_mean, y_mean = x.mean(0), y.mean(0)
        x -= x_mean
        y -= y_mean
        x_shift, y_shift = x_mean - self.input_mean, y_mean - self.output_mean
        rows = self.rows + len(x)
        shift_weight = self.rows * len(x) / rows
        self.input_products += x.T @ x + shift_weight * torch.outer(x_shift, x_shift)
        self.input_output_products += x.T @ y + shift_weight * torch.outer(x_shift, y_shift)
        self.output_squares += y.square().sum(0) + shift_weight * y_shift.square()
        self.input_mean += x_shift * len(x) / rows
        self.output_mean += y_shift * len(x) / rows
        self.rows = rows

    def of_outputs(self, outputs: slice) -> "Moments":
        """Return the moments of all inputs and some of the outputs."""
        part = copy(self)
        part.output_mean = self.output_mean[outputs]
        part.input_output_products = self.input_output_products[:, outputs]
        part.output_squares = self.output_squares[outputs]
        return part


def fit_weight(moments: Moments, tokens: int, unit: float) -> tuple[Tensor, float]:
    """Return the weight of a projector's last layer, float64 (tokens * d_model, inputs), and the share explained.

    Each token of a vector predicts the mean embedding of one part of the target: the mean of the whole target, plus the
    part's difference from it. The differences are harder to predict, so they are fitted separately, with
    their own penalty.

    Args:
        moments: The moments of a kind; see `read_moments`.
        tokens: The number of tokens of a vector.
        unit: The unit of the penalties.
    """
    d_model = len(moments.output_mean) // (tokens if tokens == 1 else tokens + 1)
    whole, explained = ridge(moments.of_outputs(slice(d_model)), unit)
    if tokens == 1:
        return whole, explained
    differences, explained_differences = ridge(moments.of_outputs(slice(d_model, None)), unit)
    return whole.repeat(tokens, 1) + (differences if explained_differences > 0 else 0), explained


def set_weight(projector: Any, weight: Tensor, moments: Moments) -> None:
    """Set the last layer of a projector to a ridge regression's weight, float64 (outputs, inputs).

    The layer then predicts how a target deviates from the mean of all targets, because that mean says nothing about a
    row.

    Args:
        projector: The `VectorProjector`.
        weight: The weight.
        moments: The moments of the inputs that the weight was fitted to.
    """
    if isinstance(projector.scale, VectorScale):  # The predictions get the magnitude of the initial bias.
        squares = (weight @ moments.input_products * weight).sum() / moments.rows
        weight = weight * (len(weight) / squares).sqrt()
    projector.last_layer.weight.copy_(weight)
    projector.last_layer.bias.copy_(projector.initial_bias() - weight @ moments.input_mean)


def _is_first_process() -> bool:
    """Return whether this process prints what all processes of a training would print."""
    return os.environ.get("RANK", "0") == "0"


def _report(kind: str, rows: int, explained: float) -> None:
    """Print on standard error how much the vectors of a kind explain. (`kind` ends in a space, or is empty.)"""
    share = f"{explained:.1%} of" if explained > 0 else "nothing of"
    consequence = "" if explained > 0 else " Their projection stays as it was."
    print(
        f"fit_fusion: the {kind}vectors of {counted(rows, 'row')} explain {share} their targets' words.{consequence}",
        file=sys.stderr,
    )


def read_moments(
    rows: Iterable[Mapping[str, Any]],
    kinds: Mapping[str, VectorKind],
    projectors: Mapping[str, Any],
    embeddings: Tensor,
) -> dict[str, Moments]:
    """Return, for each kind that some rows have, the moments of its inputs and of the embeddings that it predicts.

    The inputs are what the last linear layer of the kind's projector reads for a row's mean vector: the scaled vector,
    or the hidden layer of an MLP. The outputs are the mean embedding of the target's tokens. If a vector becomes k > 1
    tokens, the target is split into k parts, and k more outputs follow: the mean embedding of each part minus
    the mean embedding of the whole target.

    Args:
        rows: See `FittingMixin.fit_fusion`.
        kinds: The model's kinds of vectors by name.
        projectors: The `VectorProjector` of each kind.
        embeddings: The embedding table, float (vocabulary, d_model), on the CPU.

    Raises:
        ValueError: The width of a vector is not that of its kind, or no row has both a vector and labels.
    """
    moments: dict[str, Moments] = {}
    # Token weights and scales come from the first rows, so that memory does not grow with the number of rows.
    size = max(1, CHUNK_ROWS // max(kind.tokens for kind in kinds.values()))
    first, others = split_off(read_blocks(rows, kinds, size), FIRST_ROWS)
    weights = token_weights([block.distinct_tokens() for block in first], len(embeddings))
    _fit_scales(first, projectors, "fit_fusion")
    while first:
        _add_block(moments, first.pop(0), kinds, projectors, embeddings, weights)  # `pop` frees the block.
    for block in others:
        _add_block(moments, block, kinds, projectors, embeddings, weights)
    if not moments:
        raise ValueError(NO_ROWS)
    return moments


def _add_block(
    moments: dict[str, Moments],
    block: RowBlock,
    kinds: Mapping[str, VectorKind],
    projectors: Mapping[str, Any],
    embeddings: Tensor,
    weights: Tensor,
) -> None:
    """Add a block of rows to the moments of each kind, in place. The other arguments are those of `read_moments`."""
    means = mean_embeddings(block.distinct_tokens(), embeddings, weights)
    for name, counts in block.counts.items():
        has_kind = counts > 0
        block_of_kind = block.only(has_kind)
        if block_of_kind.rows == 0:
            continue
        # The numbers of a file that is mapped into memory cannot be written to, and torch would warn about that.
        vectors = torch.from_numpy(np.require(block_of_kind.mean_vectors(name), requirements="W"))
        inputs = projectors[name].last_inputs(vectors).cpu()
        outputs = means if block_of_kind is block else means[torch.from_numpy(has_kind)]
        if (count := kinds[name].tokens) > 1:
            parts = (block_of_kind.distinct_tokens(part, count) for part in range(count))
            differences = (mean_embeddings(part, embeddings, weights) - outputs for part in parts)
            outputs = torch.cat([outputs, *differences], dim=1)
        if name not in moments:
            moments[name] = Moments(inputs.shape[1], outputs.shape[1])
        moments[name].add(inputs, outputs)


def _fit_scales(blocks: Sequence[RowBlock], projectors: Mapping[str, Any], caller: str) -> None:
    """Fit each kind's scale to the vectors of some rows, and print advice if a different scale may be better.

    Args:
        blocks: The rows.
        projectors: The `VectorProjector` of each kind.
        caller: The method that was called, for the advice.
    """
    for name, projector in projectors.items():
        blocks_of_kind = [block.only(block.counts[name] > 0) for block in blocks if name in block.counts]
        rows = sum(block.rows for block in blocks_of_kind)
        if not rows:
            continue
        step = -(-rows // MOST_VECTORS)  # rounded up
        starts = np.cumsum([0, *(block.rows for block in blocks_of_kind)])
        sampled = [
            block.only((np.arange(block.rows) + start) % step == 0).vectors[name]
            for block, start in zip(blocks_of_kind, starts[:-1], strict=True)
        ]
        vectors = torch.from_numpy(np.concatenate(sampled))
        if isinstance(projector.scale, VectorScale):
            projector.scale.fit(vectors)
        if _is_first_process() and (advice := scale_advice(name, projector.kind, vectors)):
            print(f"{caller}: {advice}", file=sys.stderr)


def token_weights(targets: Sequence[DistinctTokens], vocabulary: int) -> Tensor:
    """Return the inverse document frequency of each token, log(rows / rows that hold it), float32 (vocabulary,).

    Rare tokens have larger weights (Sparck Jones 1972).

    Args:
        targets: The distinct tokens of each target, by blocks of rows.
        vocabulary: The number of tokens in the vocabulary.
    """
    rows = sum(len(block.starts) for block in targets)
    ids = np.concatenate([block.ids for block in targets]) if targets else np.zeros(0, dtype=np.int64)
    row_counts = torch.bincount(torch.from_numpy(ids), minlength=vocabulary).clamp(min=1)
    return (rows / row_counts.float()).log()


def mean_embeddings(targets: DistinctTokens, embeddings: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of the embeddings of each row's tokens, float (rows, d_model); zeros for no tokens.

    Args:
        targets: The distinct tokens of each target.
        embeddings: The embedding table, float (vocabulary, d_model), on the CPU.
        weights: The weight of each token, float (vocabulary,).
    """
    ids, starts = torch.from_numpy(targets.ids), torch.from_numpy(targets.starts)
    sums = embedding_bag(ids, embeddings, starts, mode="sum", per_sample_weights=weights[ids])
    totals = embedding_bag(ids, weights[:, None], starts, mode="sum")
    return sums / totals.clamp(min=1e-6)


def penalty_unit(moments: Moments) -> float:
    """Return the unit of ridge penalties for vectors without a scale, so that their magnitude does not matter.

    It is 1 if their variance is from 0.01 to 10, and otherwise the power of ten that is nearest to it. So
    if all vectors are multiplied by a power of ten, the penalties to choose from stay equivalent.
    """
    variance = moments.input_products.trace().item() / moments.rows
    smallest, largest = UNIT_VARIANCES
    is_rounding = variance <= torch.finfo(torch.float32).eps ** 2 * moments.input_mean.square().sum().item()
    return 1.0 if is_rounding or smallest <= variance <= largest else 10.0 ** round(math.log10(variance))


def ridge(moments: Moments, unit: float = 1.0) -> tuple[Tensor, float]:
    """Fit a ridge regression, with the penalty that generalised cross-validation chooses (Golub et al. 1979).

    Args:
        moments: The moments of inputs and outputs over all rows.
        unit: The unit of the penalties.

    Returns:
        The weight, float64 (outputs, inputs), and the share of the outputs' variance that it explains on held-out rows.
    """
    output_squares = moments.output_squares.sum().item()
    if output_squares == 0:
        return torch.zeros_like(moments.input_output_products.T), 0.0
    values, directions = torch.linalg.eigh(moments.input_products)
    values = values.clamp(min=0)  # Rounding makes some of them negative.
    projected = directions.T @ moments.input_output_products

    def left_out_error(strength: float) -> float:
        """Return the squared error on held-out rows that generalised cross-validation estimates for one penalty."""
        penalised = values + strength * moments.rows
        explained = (projected.square().sum(1) * (2 * penalised - values) / penalised**2).sum().item()
        parameters = (values / penalised).sum().item() + 1  # The mean is fitted too.
        freedom = 1 - parameters / moments.rows
        if freedom < SMALLEST_FREEDOM:
            return math.inf
        return (output_squares - explained) / freedom**2

    best_error, best_strength = min((left_out_error(strength * unit), strength * unit) for strength in STRENGTHS)
    weight = directions @ (projected / (values + best_strength * moments.rows)[:, None])
    return weight.T, 1 - best_error / output_squares


__all__ = ["FittingMixin"]

"""T5's layers over packed matrices, for inference only.

The weight of each norm is multiplied into the matrix after the norm, and matrices that read the same rows are joined.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .features import Features
from .linears import Linear, pack


class Packing:
    """Packs the matrices of a model.

    Args:
        precision: "fp32", "bf16" or "int8".
        features: What the processor can do.
    """

    def __init__(self, precision: str, features: Features):
        self.precision, self.features = precision, features

    def matrix(self, *matrices: Any, norm: Any = None, scale: float = 1.0, is_exact: bool = False) -> Linear:
        """Return one matrix for several that read the same rows.

        Args:
            matrices: `nn.Linear`s without bias.
            norm: The norm before them. The rows then come from `Norm`, which has no weight.
            scale: A number that the rows are multiplied by.
            is_exact: Whether an int8 model keeps this matrix in bf16 or fp32, because the magnitudes of its input rows
                differ much.

        Raises:
            ValueError: A matrix is quantised, or has a bias.
        """
        for matrix in matrices:
            if type(matrix) is not nn.Linear or matrix.bias is not None:
                raise ValueError(f"a matrix of the model is a {matrix!r}; expected an nn.Linear without bias")
        weight = torch.cat([matrix.weight.detach().float() for matrix in matrices]) * scale
        if norm is not None:
            weight *= norm.weight.detach().float() * math.sqrt(weight.shape[1])  # `Norm` leaves both out.
        precision = self.precision
        if is_exact and precision == "int8":
            precision = "bf16" if self.features.bf16 else "fp32"
        return pack(weight, precision, self.features)


class Norm:
    """T5's norm without its weight. It divides each row by its Euclidean norm, not by its root mean square."""

    def __init__(self, norm: Any):
        width = len(norm.weight)
        # The root mean square is hypot(|x|, sqrt(width * epsilon)) / sqrt(width). The matrix after the norm is
        # multiplied by sqrt(width).
        self.epsilon = torch.tensor(math.sqrt(width * norm.variance_epsilon))

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return rows / torch.hypot(length, self.epsilon)


class FeedForward:
    """A feed-forward layer, with its norm and its residual connection."""

    def __init__(self, layer: Any, packing: Packing):
        dense = layer.DenseReluDense
        self.is_gated = hasattr(dense, "wi_0")
        inner = (dense.wi_0, dense.wi_1) if self.is_gated else (dense.wi,)
        self.norm = Norm(layer.layer_norm)
        self.wi, self.wo = packing.matrix(*inner, norm=layer.layer_norm), packing.matrix(dense.wo, is_exact=True)
        # transformers computes this activation in eight steps, torch in one.
        self.is_gelu_new = type(dense.act).__name__ == "NewGELUActivation"
        self.activation = dense.act

    def add_to(self, hidden: torch.Tensor) -> None:
        """Add the layer's output to hidden states, float32 (..., width)."""
        inner = self.wi(self.norm(hidden))
        if self.is_gated:
            inner, linear = inner.chunk(2, -1)
            inner = self._activate(inner) * linear
        else:
            inner = self._activate(inner)
        hidden += self.wo(inner)

    def _activate(self, inner: torch.Tensor) -> torch.Tensor:
        return F.gelu(inner, approximate="tanh") if self.is_gelu_new else self.activation(inner)

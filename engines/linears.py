"""Matrices whose weights are packed once for the processor, in fp32, bf16 or int8.

A plain `nn.Linear` packs its weights at every call. With few rows, as in decoding, this takes most of the time.
"""

import warnings

import torch
from torch.nn import functional as F

from .features import INT8_ENGINES, Features

ROWS = 8  # the number of input rows for which oneDNN packs a matrix; any other number works too


class Linear:
    """A matrix without bias, float32 (out, in). Call it with rows, float (..., in); it returns (..., out)."""

    dtype = torch.float32  # of the result

    def __init__(self, weight: torch.Tensor):
        self.weight = weight.contiguous()

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return F.linear(rows, self.weight)


class PackedLinear(Linear):
    """A matrix that oneDNN has packed. It computes in the dtype of the weight, float32 or bfloat16."""

    def __init__(self, weight: torch.Tensor):
        self.dtype = weight.dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
        self.multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self.multiply(rows.to(self.dtype), self.weight, None, "none", [], "")
        return product


class Int8Linear(Linear):
    """A matrix of int8 with a scale per output. The rows are quantised at each call, with one scale for all of them."""

    def __init__(self, weight: torch.Tensor):
        scales = (weight.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny).double()
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings():  # torch will remove such tensors; `detect_features` checks that it has them.
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel")
            quantised = torch.quantize_per_channel(weight.contiguous(), scales, zeros, 0, torch.qint8)
        before = torch.backends.quantized.engine
        available = torch.backends.quantized.supported_engines
        torch.backends.quantized.engine = next(name for name in INT8_ENGINES if name in available)
        try:
            self.weight = torch.ops.quantized.linear_prepack(quantised, None)
        finally:
            torch.backends.quantized.engine = before
        self.multiply = torch.ops.quantized.linear_dynamic.default

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self.multiply(rows.float(), self.weight, False)
        return product


def pack(weight: torch.Tensor, precision: str, features: Features) -> Linear:
    """Return a matrix, packed for this processor.

    Args:
        weight: float32 (out, in).
        precision: "fp32", "bf16" or "int8".
        features: What the processor can do.
    """
    if precision == "int8":
        return Int8Linear(weight)
    if precision == "bf16":
        return PackedLinear(weight.bfloat16())
    return PackedLinear(weight) if features.onednn else Linear(weight)

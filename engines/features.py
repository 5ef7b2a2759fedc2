"""The features of this processor and of this build of torch."""

from typing import NamedTuple

import torch

INT8_ENGINES = ("x86", "fbgemm")  # torch's engines for matrices of int8, the preferred one first


class Features(NamedTuple):
    """The features that the engines depend on."""

    onednn: bool  # torch can pack matrices for oneDNN
    bf16: bool  # the processor multiplies bfloat16 itself
    int8: bool  # the processor multiplies int8 itself (VNNI), so that no sum overflows


def detect_features() -> Features:
    """Return the features of this processor. A feature that torch does not report counts as missing."""
    onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    # The first call asks about the processor. The second asks about oneDNN, whose instructions ONEDNN_MAX_CPU_ISA can
    # limit.
    bf16 = _is_true(torch.cpu, "_is_avx512_bf16_supported") and _is_true(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    has_engine = any(name in torch.backends.quantized.supported_engines for name in INT8_ENGINES)
    has_int8 = has_engine and hasattr(torch, "quantize_per_channel") and hasattr(torch.ops.quantized, "linear_dynamic")
    return Features(onednn, onednn and bf16, has_int8 and _is_true(torch.cpu, "_is_vnni_supported"))


def _is_true(place: object, name: str) -> bool:
    return hasattr(place, name) and bool(getattr(place, name)())

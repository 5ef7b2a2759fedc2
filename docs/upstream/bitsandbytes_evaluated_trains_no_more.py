"""bitsandbytes: on a CPU with AVX512-BF16, a 4 bit layer passes no gradients after it has been evaluated.

In evaluation, `Linear4bit` packs its weights in place for a fast product. Back in training mode, `matmul_4bit` still
uses that product, which has no derivative. So all layers before it stop training, without an error. One evaluation in
the middle of QLoRA is enough.
"""

import bitsandbytes
import torch
from bitsandbytes.functional import has_avx512bf16


def gradient() -> torch.Tensor | None:
    """Return the norm of the gradient that reaches the layer's inputs in training mode, or None if none does."""
    inputs = torch.ones(2, 64, requires_grad=True)
    layer.train()(inputs).sum().backward()
    return None if inputs.grad is None else inputs.grad.norm()


torch.manual_seed(0)
layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4")
layer.load_state_dict({"weight": torch.randn(64, 64)})
layer = layer.to("cpu")
print(f"bitsandbytes {bitsandbytes.__version__}, AVX512-BF16: {bool(has_avx512bf16())}")
print("gradient in training:", gradient())
with torch.no_grad():
    layer.eval()(torch.ones(2, 64))
print("gradient in training, after an evaluation:", gradient())

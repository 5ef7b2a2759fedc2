"""PEFT: an adapter that was initialised with `pissa_niter_N` gives other outputs after reloading.

The initialisation removes the principal part from the base model's weights by a randomised decomposition. Reloading
repeats that with other random numbers, and puts the saved adapter on top of the rest.
"""

import tempfile

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model


def base_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64))


for start in ("pissa", "pissa_niter_4"):
    plain = base_model()
    torch.manual_seed(1)
    model = get_peft_model(plain, LoraConfig(r=8, target_modules=["0"], init_lora_weights=start)).eval()
    inputs = torch.randn(4, 64)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.base_model.model[0].lora_B["default"].weight.mul_(2)  # as training might
        model.save_pretrained(folder)
        expected = model(inputs)
        plain = base_model()
        torch.manual_seed(2)  # as in another process
        reloaded = PeftModel.from_pretrained(plain, folder).eval()
        distance = (reloaded(inputs) - expected).abs().max()
    size = expected.abs().max()
    print(
        f"peft {peft.__version__}, {start}: {distance:.2g} apart after reloading, expected 0; numbers up to {size:.2g}"
    )

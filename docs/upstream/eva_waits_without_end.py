"""PEFT: the EVA initialisation never ends, and raises nothing, if every batch has too few tokens for the rank."""

import contextlib
import io

import peft
import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights


class Enough(Exception):
    """Raised after 1000 batches, to end what would not end."""


def forward(model, batch):
    global batches
    batches += 1
    if batches == 1000:
        raise Enough
    return model(batch)


batches = 0
config = LoraConfig(r=8, target_modules=["0"], init_lora_weights="eva", eva_config=EvaConfig())
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 64)), config)
options = {"forward_fn": forward, "prepare_model_inputs_fn": None, "show_progress_bar": False}
options |= {"prepare_layer_inputs_fn": lambda layer_input, model_input, name: layer_input[0]}
try:
    with contextlib.redirect_stdout(io.StringIO()):  # PEFT prints a line for every batch that it skips
        initialize_lora_eva_weights(model, [torch.randn(4, 64)], **options)
    outcome = "ends"
except Enough:
    outcome = "still running"
print(f"peft {peft.__version__}: rank 8, batches of 4: {outcome} after {batches} batches; expected an error")

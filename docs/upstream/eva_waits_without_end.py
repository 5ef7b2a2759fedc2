"""PEFT: the EVA start never ends where no batch has as many tokens as it wants components, and says nothing."""

import peft
import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights


class Enough(Exception):
    pass


def forward(model, batch):
    global batches
    batches += 1
    if batches == 1000:
        raise Enough
    return model(batch)


batches = 0
config = LoraConfig(r=8, target_modules=["0"], init_lora_weights="eva", eva_config=EvaConfig())
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 64)), config)
numbers = {"forward_fn": forward, "prepare_model_inputs_fn": None, "show_progress_bar": False}
numbers |= {"prepare_layer_inputs_fn": lambda layer_input, model_input, name: layer_input[0]}
try:
    initialize_lora_eva_weights(model, [torch.randn(4, 64)], **numbers)
    how = "ends"
except Enough:
    how = "goes on"
print(f"peft {peft.__version__}: rank 8 from batches of 4: {how} after {batches} batches; an error is due at the first")

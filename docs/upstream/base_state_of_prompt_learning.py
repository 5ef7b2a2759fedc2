"""PEFT: with prompt learning and a layer in `modules_to_save`, `get_base_model_state_dict` renames the layer's weights.

For other methods it gives the names and the values of the base model. For prompt learning it returns the state of the
model as it is, with PEFT's wrapper around the layer and the adapter's copy of it. The result fits no base model.
"""

import peft
from peft import PromptTuningConfig, get_base_model_state_dict, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

plain = T5ForConditionalGeneration(T5Config(vocab_size=99, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4))
expected = set(plain.state_dict())
config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2, modules_to_save=["lm_head"])
names = set(get_base_model_state_dict(get_peft_model(plain, config)))
print(f"peft {peft.__version__}: the names are the base model's: {names == expected}, expected True;", end=" ")
print(f"others: {', '.join(sorted(names - expected))}")

"""PEFT: tuners that do not support `adapter_names` ignore it silently, if the model's forward takes **kwargs.

LoRA uses it to mix adapters in a batch. Other tuners pass it on to the model. T5 accepts any keyword, so the active
adapter computes every row, and the names have no effect.
"""

import peft
import torch
from peft import LoHaConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
plain = T5ForConditionalGeneration(T5Config(vocab_size=99, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4))
config = LoHaConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"], init_weights=False)
model = get_peft_model(plain, config).eval()
model.add_adapter("other", config)
batch = {"input_ids": torch.tensor([[5, 6, 1], [7, 8, 1]]), "decoder_input_ids": torch.tensor([[0, 5], [0, 5]])}
with torch.no_grad():
    mixed = model(**batch, adapter_names=["default", "other"]).logits
    default = model(**batch).logits
    model.set_adapter("other")
    other = model(**batch).logits
print(
    f"peft {peft.__version__}: row 1 as 'other' computes it: {torch.allclose(mixed[1], other[1])}, expected True;",
    end=" ",
)
print(f"as 'default', the active one, does: {torch.allclose(mixed[1], default[1])}")

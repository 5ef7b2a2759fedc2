"""transformers: `neftune_noise_alpha` has no effect on a T5.

The Trainer hooks `model.get_input_embeddings()`, which is `shared`. Encoder and decoder look tokens up in their own
modules, which are tied to it, so the hook never runs. The same goes for any other hook on the input embeddings.
"""

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration
from transformers.integrations.neftune import activate_neftune

torch.manual_seed(0)
config = T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0)
config.decoder_start_token_id = 0
model = T5ForConditionalGeneration(config).train()
ids = torch.tensor([[5, 6, 7, 1]])
before = model(input_ids=ids, labels=ids).loss.item()
activate_neftune(model, 50.0)
after = model(input_ids=ids, labels=ids).loss.item()
print(f"transformers {transformers.__version__}: the loss is {before:.6f}, and {after:.6f} with noise of alpha 50")
print("the noise has no effect" if before == after else "the noise has an effect")

"""transformers: a T5 with a decoder deeper than its encoder cannot generate. The cache has the encoder's layers."""

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 4, "decoder_start_token_id": 0}
model = T5ForConditionalGeneration(T5Config(**sizes, num_layers=1, num_decoder_layers=2)).eval()
try:
    outcome = f"{model.generate(torch.tensor([[5, 1]]), max_new_tokens=3).shape[1]} tokens"
except IndexError as error:
    outcome = f"IndexError: {error}"
print(f"transformers {transformers.__version__}: 1 encoder layer, 2 decoder layers: {outcome}; expected tokens")

"""transformers: a T5 v1.1 or FLAN-T5 built from its config ties its head, so `load_state_dict` loses the head."""

from tempfile import TemporaryDirectory

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
with TemporaryDirectory() as folder:
    model = T5ForConditionalGeneration(T5Config(**sizes, tie_word_embeddings=False))
    model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 16))  # as in google/flan-t5-small
    model.save_pretrained(folder)
    loaded = T5ForConditionalGeneration.from_pretrained(folder).eval()
rebuilt = T5ForConditionalGeneration(loaded.config).eval()
rebuilt.load_state_dict(loaded.state_dict())  # returns "All keys matched"
ids = torch.tensor([[5, 6, 1]])
same = torch.equal(loaded(ids, decoder_input_ids=ids).logits, rebuilt(ids, decoder_input_ids=ids).logits)
print(f"transformers {transformers.__version__}: the same logits after load_state_dict: {same}, expected True")

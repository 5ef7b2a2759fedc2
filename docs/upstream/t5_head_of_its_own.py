"""transformers: a T5 v1.1 or FLAN-T5 made of its config ties its head, so that `load_state_dict` loses the head."""

from tempfile import TemporaryDirectory

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
with TemporaryDirectory() as folder:
    made = T5ForConditionalGeneration(T5Config(**sizes, tie_word_embeddings=False))
    made.lm_head.weight = torch.nn.Parameter(torch.randn(40, 16))  # as in google/flan-t5-small
    made.save_pretrained(folder)
    opened = T5ForConditionalGeneration.from_pretrained(folder).eval()
again = T5ForConditionalGeneration(opened.config).eval()
again.load_state_dict(opened.state_dict())  # says that all keys match
ids = torch.tensor([[5, 6, 1]])
same = torch.equal(opened(ids, decoder_input_ids=ids).logits, again(ids, decoder_input_ids=ids).logits)
print(f"transformers {transformers.__version__}: the same logits after load_state_dict: {same}, due True")

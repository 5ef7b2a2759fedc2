"""transformers: a quantised model that was saved and reloaded cannot be saved again, and the error has no message.

`save_pretrained` reverts the conversions that loading made. The conversion of a file that was packed already cannot be
reverted, and raises a bare `NotImplementedError`. `save_original_format=False` avoids it.
"""

import tempfile

import torch
import transformers
from transformers import BitsAndBytesConfig, T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
config = T5Config(vocab_size=100, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
with tempfile.TemporaryDirectory() as folder:
    T5ForConditionalGeneration(config).save_pretrained(f"{folder}/plain")
    packed = BitsAndBytesConfig(load_in_4bit=True)
    quantised = T5ForConditionalGeneration.from_pretrained(f"{folder}/plain", quantization_config=packed)
    quantised.save_pretrained(f"{folder}/quantised")
    model = T5ForConditionalGeneration.from_pretrained(f"{folder}/quantised")
    print(f"transformers {transformers.__version__}: saving it again")
    for options in ({}, {"save_original_format": False}):
        try:
            model.save_pretrained(f"{folder}/again", **options)
            print(options, "works")
        except NotImplementedError as error:
            print(options, repr(error))

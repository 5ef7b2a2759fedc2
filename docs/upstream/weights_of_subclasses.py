"""transformers: in classes outside transformers, a module without weights of its own does not initialise its parts.

In custom code, `PreTrainedModel._initialize_weights` skips a module if all its own parameters are initialised already.
For a module without parameters, `all([])` is true. So T5's attention never draws its matrices, and the model never
draws its embeddings. They keep the values of the general rule, which are 32 times as large.
"""

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration


class Mine(T5ForConditionalGeneration):
    def __init__(self, config):
        super().__init__(config)
        self.encoder = type("MyEncoder", (type(self.encoder),), {"__module__": __name__})(self.encoder.config)
        self.post_init()


config = T5Config(vocab_size=99, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
for cls in (T5ForConditionalGeneration, Mine):
    torch.manual_seed(0)
    spread = cls(config).encoder.block[0].layer[0].SelfAttention.q.weight.std()
    print(f"transformers {transformers.__version__}, {cls.__name__}: deviation of q {spread:.4f}, expected 0.0312")

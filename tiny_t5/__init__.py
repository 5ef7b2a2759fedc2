"""tiny_t5: the first small T5 of this package, for adapters that were trained on it. tiny_t5_v2 is better.

`T5WithFusion(tiny_t5.PATH)` loads it, and so does `T5WithFusion("tiny_t5")`. The README.md in this folder describes its
training data and its quality.
"""

from pathlib import Path

PATH = str(Path(__file__).parent)  # folder of the weights, the config and the tokenizer

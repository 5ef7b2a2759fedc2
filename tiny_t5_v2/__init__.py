"""tiny_t5_v2: a small T5 in this package, for machines that cannot reach the Hub, for the demo and for tests.

`T5WithFusion(tiny_t5_v2.PATH)` loads it, and so does `T5WithFusion("tiny_t5_v2")`. The README.md in this folder
describes its training data and its quality.
"""

from pathlib import Path

PATH = str(Path(__file__).parent)  # folder of the weights, the config and the tokenizer

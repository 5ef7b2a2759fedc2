"""tiny_t5: a small T5 of the project's own, for machines that cannot reach a Hub, and for demo and tests.

`T5WithFusion(tiny_t5.PATH)` loads it, as `T5WithFusion("google/flan-t5-small")` loads that one. What it learnt from,
and how well, is in the README.md of this folder; `pretrain.py` made it.
"""

from pathlib import Path

PATH = str(Path(__file__).parent)  # weights, config and tokenizer are here

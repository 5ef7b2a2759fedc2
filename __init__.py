"""T5 with a second kind of input: lexical vectors beside the text."""

import sys
from pathlib import Path

try:
    from . import tiny_t5
    from .configuration_t5fusion import T5FusionConfig
    from .hooks import register
    from .modeling_t5fusion import T5WithFusion
    from .processing_t5fusion import DataCollatorWithFusion, T5FusionProcessor
except KeyboardInterrupt:
    # The command (`t5fusion`, `python -m t5fusion...`) spends its first seconds here, before its `main` can catch it.
    if sys.argv[0] != "-m" and Path(sys.argv[0]).stem != "t5fusion":
        raise
    print("t5fusion: stopped.", file=sys.stderr)
    sys.exit(130)

register()

__version__ = "0.1.0"
__all__ = ["DataCollatorWithFusion", "T5FusionConfig", "T5FusionProcessor", "T5WithFusion", "tiny_t5"]

"""T5 with a second kind of input: lexical vectors beside the text."""

import sys
from pathlib import Path

try:
    from . import tiny_t5
    from .collating_t5fusion import DataCollatorWithFusion
    from .configuration_t5fusion import T5FusionConfig
    from .hooks import register
    from .modeling_t5fusion import T5WithFusion
    from .processing_t5fusion import T5FusionProcessor
except KeyboardInterrupt:
    # The commands `t5fusion` and `python -m t5fusion` import this package before their `main` runs. That takes seconds,
    # so Ctrl-C is handled here too. Any other program handles it as it likes.
    if sys.argv[0] != "-m" and Path(sys.argv[0]).stem != "t5fusion":
        raise
    print("t5fusion: stopped.", file=sys.stderr)
    sys.exit(130)

register()

__version__ = "0.1.0"
__all__ = ["DataCollatorWithFusion", "T5FusionConfig", "T5FusionProcessor", "T5WithFusion", "tiny_t5"]

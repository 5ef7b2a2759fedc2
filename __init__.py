"""T5 with a second input beside the text: dense vectors.

`import t5fusion` registers the model type with transformers and PEFT, and installs the hooks (see `t5fusion.hooks`).
In the program `t5fusion`, the public names are loaded when they are first used.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import tiny_t5, tiny_t5_v2

if TYPE_CHECKING:
    from .collating_t5fusion import DataCollatorWithFusion
    from .configuration_t5fusion import T5FusionConfig
    from .kinds_t5fusion import VectorKind
    from .modeling_t5fusion import T5WithFusion
    from .pipeline_t5fusion import T5FusionPipeline
    from .processing_t5fusion import T5FusionProcessor

__version__ = "0.1.0"
__all__ = [
    "DataCollatorWithFusion",
    "T5FusionConfig",
    "T5FusionPipeline",
    "T5FusionProcessor",
    "T5WithFusion",
    "VectorKind",
    "tiny_t5",
    "tiny_t5_v2",
]

_MODULES = {
    "DataCollatorWithFusion": "collating_t5fusion",
    "T5FusionConfig": "configuration_t5fusion",
    "T5FusionPipeline": "pipeline_t5fusion",
    "T5FusionProcessor": "processing_t5fusion",
    "T5WithFusion": "modeling_t5fusion",
    "VectorKind": "kinds_t5fusion",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used.

    Raises:
        AttributeError: There is no public name `name`.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register()
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    """Return all names, including those that are not loaded yet."""
    return sorted({*globals(), *__all__})


def _register() -> None:
    """Register the model type and install the hooks."""
    from .hooks import register  # This is slow, because it imports torch, transformers and peft.

    register()


def _is_command_line() -> bool:
    """Return whether Python imports this package to run the program: `t5fusion` or `python -m t5fusion`."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # With `python -m`, the path of __main__.py comes only after this import.
        return sys.orig_argv[-len(sys.argv)] == __name__
    return Path(program).stem == "t5fusion"


if not _is_command_line():  # The program registers after it has checked its arguments (`cli/libraries.py`).
    _register()

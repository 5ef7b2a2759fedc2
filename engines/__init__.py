"""Engines: ways to generate with a trained model on a CPU, some faster than transformers' own.

    from t5fusion.engines import load_engine

    engine = load_engine(model, "int8")
    engine.generate(**batch, max_new_tokens=24, num_beams=4)

- `load_engine` loads an engine by its name. The engine has transformers' `generate`.
- `choose_engine` says which engine runs on this processor if an engine is asked for by its name, and why.
- `ENGINES` holds the names of the engines, each with a description.

Names are loaded when they are first used, so that importing this package takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .choosing import choose_engine, load_engine
    from .names import ENGINES

__all__ = ["ENGINES", "choose_engine", "load_engine"]

_MODULE_OF = {"ENGINES": ".names", "choose_engine": ".choosing", "load_engine": ".choosing"}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

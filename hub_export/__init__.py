"""Export a trained model as a bundle, verify the bundle, and push it to the Hub.

    from t5fusion.hub_export import export, push

    export("runs/files", "bundles/describer")
    push("bundles/describer", "me/describer")

- `export` writes a bundle: a folder that anyone can load with transformers and peft.
- `verify` reloads a bundle as a reader would, and compares its outputs with the outputs of the trained model.
- `push` verifies a bundle, and sends it to the Hub in one commit.
- `OnnxT5WithFusion` runs the ONNX graphs of a bundle, if it was exported with `format="onnx"`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import export
    from .onnx_model import OnnxT5WithFusion
    from .upload import Pushed, push
    from .verification import Report, verify

__all__ = ["OnnxT5WithFusion", "Pushed", "Report", "export", "push", "verify"]

MODULE_OF = {
    "OnnxT5WithFusion": "onnx_model",
    "Pushed": "upload",
    "Report": "verification",
    "export": "bundle",
    "push": "upload",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name when it is first used, because the modules take seconds to import."""
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

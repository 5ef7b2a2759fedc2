"""Train, evaluate and generate, and make a trained adapter smaller.

These functions read files (JSONL, CSV, Parquet, Arrow) or a data set on the Hub, as the commands of the same names do:

    from t5fusion.finetune import Columns, TrainingOptions, train_file
    columns = Columns(text="filename", target="description", vector="vector")
    model = train_file("my.jsonl", columns, "runs/mine", TrainingOptions(epochs=2))

    from t5fusion.finetune import evaluate_file, generate_file
    print(evaluate_file("runs/mine", "test.jsonl", columns, vectors="all").measures)
    generate_file("runs/mine", "test.jsonl", columns, "runs/mine.jsonl")

For rows in memory, `prepare` makes the model's inputs, `train` trains, and `load_trained` loads the model and its
processor again, for `evaluate` and `generate_texts`. In transformers' own trainer,
`Seq2SeqTrainer(..., compute_metrics=rouge_metrics(processor))` scores the texts that it generates.

Names are loaded when they are first used, so that importing this package takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..common.run_folder import load_trained
    from .data import Columns
    from .evaluation import Evaluation, evaluate
    from .file_evaluation import evaluate_file
    from .file_generation import Generated, GenerationStopped, generate_file
    from .file_training import train_file
    from .generation import generate_texts
    from .inputs import prepare
    from .metrics import rouge_metrics
    from .options import Recipe, TrainingOptions
    from .run_config import read_run
    from .shrinking import Shrunk, shrink_adapter
    from .text_generator import TextGenerator
    from .trained_model import columns_for
    from .trainer import Interrupted
    from .training import train

__all__ = [
    "Columns",
    "Evaluation",
    "Generated",
    "GenerationStopped",
    "Interrupted",
    "Recipe",
    "Shrunk",
    "TextGenerator",
    "TrainingOptions",
    "columns_for",
    "evaluate",
    "evaluate_file",
    "generate_file",
    "generate_texts",
    "load_trained",
    "prepare",
    "read_run",
    "rouge_metrics",
    "shrink_adapter",
    "train",
    "train_file",
]

_MODULES = {
    "..common.run_folder": ("load_trained",),
    ".data": ("Columns",),
    ".evaluation": ("Evaluation", "evaluate"),
    ".file_evaluation": ("evaluate_file",),
    ".file_generation": ("Generated", "GenerationStopped", "generate_file"),
    ".file_training": ("train_file",),
    ".generation": ("generate_texts",),
    ".inputs": ("prepare",),
    ".metrics": ("rouge_metrics",),
    ".options": ("Recipe", "TrainingOptions"),
    ".run_config": ("read_run",),
    ".shrinking": ("Shrunk", "shrink_adapter"),
    ".text_generator": ("TextGenerator",),
    ".trained_model": ("columns_for",),
    ".trainer": ("Interrupted",),
    ".training": ("train",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

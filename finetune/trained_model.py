"""Load a trained model to evaluate it or to generate with it, and find the columns that it was trained with."""

from pathlib import Path

from torch import nn

from ..common.run_folder import find_trained, load_trained, trained_limits
from ..processing_t5fusion import T5FusionProcessor
from .data import Columns
from .parallel import processes
from .record import trained_columns


def columns_for(
    name: str | Path,
    text: str | None = None,
    target: str | None = None,
    lexical: str | None = None,
    vector: str | None = None,
    *,
    revision: str | None = None,
    vectors: bool = True,
) -> Columns:
    """Return the columns to evaluate or generate with: the given ones, and for the others the columns of the training.

    Args:
        name: Folder that training saved, bundle, or id of a repository on the Hub.
        text, target, lexical, vector: Names of columns, as for `Columns`. If `lexical` or `vector` is given, the other
            is not taken from the training.
        revision: Branch, tag or commit of the repository.
        vectors: Whether the model is given vectors. If not, neither `lexical` nor `vector` is taken from the training.

    Raises:
        ValueError: No text column is given, and the folder does not record the columns of the training.
        OSError: There is neither such a folder nor such a repository.
    """
    trained = trained_columns(find_trained(str(name), revision))
    if trained is None and text is None:
        raise ValueError(
            f"{name} does not record the columns that it was trained with. Name them: --text-column, --target-column, "
            "and --lexical-column or --vector-column if there was one."
        )
    if trained is None:
        return Columns(str(text), target, lexical, vector)
    if vectors and lexical is None and vector is None:
        lexical, vector = trained.lexical, trained.vector
    return Columns(text or trained.text, target or trained.target, lexical, vector)


def load_on_device(folder: Path) -> tuple[nn.Module, T5FusionProcessor, tuple[int, int]]:
    """Return a trained model on the device of this process, its processor, and the limits of its texts (tokens).

    Raises:
        ValueError: A file of the model is damaged.
        OSError: The base model cannot be loaded.
    """
    device = processes().device
    model, processor = load_trained(folder)
    return model.to(device), processor, trained_limits(folder)

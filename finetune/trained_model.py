"""Load a trained model to evaluate it or to generate with it, and find the columns that it was trained with."""

from collections.abc import Mapping
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
    vector: str | Mapping[str, str] | None = None,
    *,
    revision: str | None = None,
    vectors: bool = True,
) -> Columns:
    """Return the columns to evaluate or generate with: the given ones, and otherwise the columns of the training.

    Args:
        name: Folder that training saved, bundle, or id of a repository on the Hub.
        text, target, lexical, vector: The columns, as for `Columns`. If `vector` names columns for some kinds, the
            training says the columns for the other kinds. If the model has one kind, and `lexical` or `vector` is
            given, the other is not taken from the training.
        revision: Branch, tag or commit of the repository.
        vectors: Whether the model is given vectors. If not, neither `lexical` nor `vector` is taken from the training.

    Raises:
        ValueError: No column of texts or vectors is given, and the folder does not record the columns of the training.
        OSError: There is neither such a folder nor such a repository.
    """
    trained = trained_columns(find_trained(str(name), revision))
    if trained is None and text is None and not (vectors and (lexical or vector)):
        raise ValueError(
            f"{name} does not record the columns that it was trained with. Name them: --text-column, --target-column, "
            "and --lexical-column or --vector-column if there was one."
        )
    if trained is None:
        return Columns(text, target, lexical, vector)
    if vectors:
        lexical, vector = _columns_of_vectors(trained, lexical, vector)
    return Columns(text or trained.text, target or trained.target, lexical, vector)


def _columns_of_vectors(
    trained: Columns, lexical: str | None, vector: str | Mapping[str, str] | None
) -> tuple[str | None, str | Mapping[str, str] | None]:
    """Return `Columns.lexical` and `Columns.vector`: the given columns, and for other kinds the training's columns."""
    if not lexical and not vector:
        return trained.lexical, trained.vector
    if trained.lexical and trained.vector:  # The encoder has one kind, and columns the others.
        lexical, vector = lexical or trained.lexical, vector or trained.vector
    if isinstance(vector, Mapping) and isinstance(trained.vector, Mapping):
        vector = {**trained.vector, **vector}
    return lexical, vector


def load_on_device(folder: Path) -> tuple[nn.Module, T5FusionProcessor, tuple[int, int]]:
    """Return a trained model on the device of this process, its processor, and the limits of its texts (tokens).

    Raises:
        ValueError: A file of the model is damaged.
        OSError: The base model cannot be loaded.
    """
    device = processes().device
    model, processor = load_trained(folder)
    return model.to(device), processor, trained_limits(folder)

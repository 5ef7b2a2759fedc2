"""Load a trained model to evaluate it or to generate with it, and find the columns that it was trained with."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ..common.next_commands import input_columns
from ..common.run_files import RunFiles
from ..common.run_folder import find_trained, load_trained, trained_limits
from ..common.vector_file_names import is_vector_file, without_folder
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
    data: str | Path | None = None,
) -> Columns:
    """Return the columns to evaluate or generate with: the given ones, and otherwise the columns of the training.

    Args:
        name: Folder that training saved, bundle, or id of a repository on the Hub.
        text, target, lexical, vector: The columns, as for `Columns`. If `vector` names columns for some kinds, the
            training says the columns for the other kinds. If the model has one kind, and `lexical` or `vector` is
            given, the other is not taken from the training.
        revision: Branch, tag or commit of the repository.
        vectors: Whether the model is given vectors. If not, neither `lexical` nor `vector` is taken from the training.
        data: The file or data set that has the columns. Then NumPy files are taken from the training only if it is the
            file of the training.

    Raises:
        ValueError: No column of texts or vectors is given, and the folder does not record the columns of the training;
            or the vectors of the training are in a NumPy file, and `data` is a different file.
        OSError: There is neither such a folder nor such a repository.
    """
    folder = find_trained(str(name), revision)
    trained = trained_columns(folder)
    if trained is None and text is None and not (vectors and (lexical or vector)):
        inputs = " ".join(input_columns(RunFiles(folder).processor_config) or ["--text-column", "COLUMN"])
        raise ValueError(
            f"{name} does not record the columns that it was trained with. Name them: {inputs}, and for `evaluate` "
            "--target-column COLUMN."
        )
    if trained is None:
        return Columns(text, target, lexical, vector)
    given = Columns(vector=vector).by_kind
    if vectors:
        lexical, vector = _columns_of_vectors(trained, lexical, vector)
    columns = Columns(text or trained.text, target or trained.target, lexical, vector)
    if data is not None and not _is_of_training(data, folder):
        _check_no_vector_files(columns, given, str(data))
    return columns


def _is_of_training(data: str | Path, folder: Path) -> bool:
    """Return whether `data` is the file that the training of a run folder has read."""
    source = (RunFiles(folder).record.get("source") or {}).get("data")
    return source is not None and Path(data).is_file() and Path(data).resolve() == Path(source).resolve()


def _check_no_vector_files(columns: Columns, given: Mapping[str, str], data: str) -> None:
    """Raise ValueError if a NumPy file of the training would be read beside a different file.

    Args:
        columns: The columns to read.
        given: The columns by kind that the user named.
        data: The file to read.
    """
    for kind, file in columns.by_kind.items():
        if kind not in given and is_vector_file(file):
            option = f"--vector-column {'' if isinstance(columns.vector, str) else f'{kind}='}OTHER.npy"
            raise ValueError(
                f"{without_folder(file)} holds the vectors of the file that the model was trained on, not those of "
                f"{data}. Name a NumPy file with a row for each row of {data}, or a column: {option}."
            )


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

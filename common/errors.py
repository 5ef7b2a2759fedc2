"""Make sentences for error messages."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from ..naming_t5fusion import first_line, is_path


def cannot_be_loaded(what: str, error: Exception) -> ValueError:
    """Return the ValueError for something that cannot be loaded because its files are damaged or foreign.

    Args:
        what: The thing to load, as the subject of the sentence: "the adapter in runs/files".
        error: The error that a library raised.
    """
    return ValueError(
        f"{what} cannot be loaded ({type(error).__name__}: {first_line(error)}). A file is damaged, or belongs to "
        "a different kind of model. Save it again."
    )


def unusable_base(base_model: str, cause: str) -> OSError:
    """Return the OSError for a base model that cannot be loaded.

    Args:
        base_model: The user's name for it.
        cause: Why it cannot be loaded, in a few words. It is replaced if the name is a path that does not exist:
            transformers would explain what a valid id is.
    """
    if is_path(base_model) and not Path(base_model).exists():
        cause = "there is no such folder"
    return OSError(
        f"the base model {base_model} cannot be loaded ({cause}). Name a folder or a Hub id of a T5 with --base-model."
    )


def did_you_mean(name: object, known: Iterable[str], otherwise: str) -> str:
    """Return a hint for an unknown name: "did you mean `...`?" with the most similar known name.

    Args:
        name: The unknown name.
        known: The known names.
        otherwise: The hint if no known name is similar.
    """
    nearest = get_close_matches(str(name), list(known), 1)
    return f"did you mean `{nearest[0]}`?" if nearest else otherwise


def missing_column(column: str, existing: Iterable[str], use: str = "") -> ValueError:
    """Return the ValueError for a column that a data set does not have.

    Args:
        column: The name of the column.
        existing: The names of the columns that the data set has.
        use: A clause that says what the column was used for, with its comma; empty for none.
    """
    names = list(existing)
    nearest = get_close_matches(column, names, 1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(f"there is no column {column!r}{use}; the columns are {', '.join(names)}.{hint}")


def unreadable_weights(file: Path, cause: str) -> ValueError:
    """Return the ValueError for a weights file that cannot be read.

    Args:
        cause: What is wrong with the file, in a few words.
    """
    return ValueError(
        f"the weights in {file} cannot be read ({cause}). The file is damaged, or holds something else. Copy or save "
        "it again."
    )

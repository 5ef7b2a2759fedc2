"""The base model by the name that a user gives it: "tiny_t5", a folder, or an id on the Hub."""

from pathlib import Path

from transformers import AutoTokenizer

from ..loading_t5fusion import commit_of
from ..naming_t5fusion import EMBEDDED, name_of_embedded, resolve_embedded
from ..processing_t5fusion import T5FusionProcessor


def base_folder(base: str) -> str:
    """Where the base is: the embedded one's folder for "tiny_t5", else `base`, a folder by its full path."""
    if base == EMBEDDED:
        return resolve_embedded(base)
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def base_name(base: str) -> str:
    """As `base_folder`, but "tiny_t5" for the embedded base, which elsewhere lies in another folder."""
    return name_of_embedded(base_folder(base))


def base_error(base: str, error: Exception) -> OSError:
    """One sentence for the many ways in which transformers fails to load a model."""
    cause = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0].rstrip(".")
    if base.startswith((".", "/", "~")) and not Path(base).exists():  # of which transformers says what an id may be
        cause = "there is no such folder"
    return OSError(f"the base {base} cannot be loaded ({cause}). Name a folder or a Hub id of a T5 with --base.")


def make_processor(base: str, **recipe) -> T5FusionProcessor:
    """The base's tokenizer with a recipe of vectors (see `T5FusionProcessor`).

    Raises:
        OSError: there is no tokenizer there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_folder(base))
    except (OSError, ValueError) as error:
        raise base_error(base, error) from error
    return T5FusionProcessor(tokenizer, **recipe)


def base_commit(base: str) -> str | None:
    """The commit that the base is at now; None for a folder. OSError where it cannot be told."""
    try:
        return commit_of(base_folder(base), {})
    except OSError as error:
        raise base_error(base, error) from error

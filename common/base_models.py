"""Find a base model by the user's name for it: "tiny_t5_v2" for an embedded one, a folder, or a Hub id."""

from pathlib import Path

from transformers import AutoTokenizer

from ..loading_t5fusion import commit_of
from ..naming_t5fusion import EMBEDDED, first_line, name_to_record, resolve_embedded
from ..processing_t5fusion import T5FusionProcessor
from .errors import unusable_base


def base_source(base_model: str) -> str:
    """Return the path or the id from which transformers loads a base model.

    It is the absolute path of a folder (for "tiny_t5_v2", of the folder inside the package), or a Hub id.

    Raises:
        OSError: The base model is an embedded one, and the package t5fusion, which contains it, is not installed.
    """
    if base_model in EMBEDDED:
        return resolve_embedded(base_model)
    return str(Path(base_model).resolve()) if Path(base_model).is_dir() else base_model


def base_name(base_model: str) -> str:
    """Return the name to record in files: `base_source`, or the name of an embedded one, whose path may change."""
    return name_to_record(base_source(base_model))


def base_error(base_model: str, error: Exception) -> OSError:
    """Return an OSError that says in one sentence why a base model cannot be loaded, and what to do."""
    return unusable_base(base_model, first_line(error).partition(". ")[0].rstrip("."))


def make_processor(base_model: str, revision: str | None = None, **recipe) -> T5FusionProcessor:
    """Return the base model's tokenizer as a processor.

    Args:
        base_model: Folder, Hub id, or "tiny_t5_v2".
        revision: Branch, tag or commit of the base model on the Hub.
        **recipe: Fields of `T5FusionProcessor`.

    Raises:
        OSError: The base model has no tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_source(base_model), revision=revision or "main")
    except (OSError, ValueError) as error:
        raise base_error(base_model, error) from error
    return T5FusionProcessor(tokenizer, **recipe)


def base_commit(base_model: str) -> str | None:
    """Return the base model's current commit on the Hub, or None for a folder.

    Raises:
        OSError: The Hub does not answer, or does not know the id.
    """
    try:
        return commit_of(base_source(base_model), {})
    except OSError as error:
        raise base_error(base_model, error) from error

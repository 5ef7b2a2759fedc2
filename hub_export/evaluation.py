"""Keep what `evaluate` measured of a bundle: in its card, and when the bundle is replaced."""

from collections.abc import Callable
from pathlib import Path

from ..common.run_files import EVALUATION
from ..common.writing import replace_text
from .card import CARD, with_evaluation
from .manifest import MANIFEST, as_json, file_digest, is_weights, json_digest, read_manifest


def keep_evaluation(bundle: Path) -> None:
    """Fill in the card of a bundle from the evaluation.json beside it, so that `push` sends the results.

    Raises:
        ValueError: The folder is not a bundle, or its card has a broken marker or unreadable metadata. It then stays as
            it was.
    """
    manifest = read_manifest(bundle)
    replace_text(bundle / CARD, with_evaluation(bundle, manifest["kind"]))
    manifest["files"][CARD] = file_digest(bundle / CARD)
    replace_text(bundle / MANIFEST, as_json(manifest | {"digest": json_digest(manifest)}))


def evaluation_still_holds(bundle: Path, new: Path, say: Callable[[str], None]) -> bool:
    """Return whether the evaluation.json of a bundle describes the new bundle too: whether their weights are equal."""
    if not (bundle / EVALUATION).exists():
        return False
    try:
        weights = {name: value for name, value in read_manifest(bundle)["files"].items() if is_weights(name)}
    except ValueError:  # The manifest is damaged, so nobody knows which weights were evaluated.
        weights = {}
    same = weights == {file.name: file_digest(file) for file in new.iterdir() if is_weights(file.name)}
    if not same:
        say(f"{bundle / EVALUATION} describes the weights that are replaced, and is removed. Evaluate the new ones.")
    return same

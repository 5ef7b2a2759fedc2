"""The evaluation of a bundle: write it into the card, and keep it when an export replaces the bundle."""

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


def evaluation_still_holds(bundle: Path, new_bundle: Path, say: Callable[[str], None]) -> bool:
    """Return whether a bundle has an evaluation.json that holds for the new bundle too.

    It holds if both bundles have the same weights.

    Args:
        bundle: The bundle that is replaced. It need not exist.
        new_bundle: The bundle that replaces it.
        say: Function that gets a line if the evaluation no longer holds.
    """
    if not (bundle / EVALUATION).exists():
        return False
    try:
        weights = {name: value for name, value in read_manifest(bundle)["files"].items() if is_weights(name)}
    except ValueError:  # A damaged manifest does not say which weights were evaluated.
        weights = {}
    same = weights == {file.name: file_digest(file) for file in new_bundle.iterdir() if is_weights(file.name)}
    if not same:
        say(f"{bundle / EVALUATION} describes the weights that are replaced, and is removed. Evaluate the new ones.")
    return same

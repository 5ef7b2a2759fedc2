"""What a reader of a bundle types: the line that installs the packages, and the lines of Python that call the model.

The card and `push` show them.
"""

from typing import Any, NamedTuple


class ReaderCall(NamedTuple):
    """A reader's call of the pipeline or the processor."""

    vector_lines: str  # the lines that make the vectors; empty if the reader passes none
    arguments: str  # the arguments of the call
    passes_text: bool  # whether a text is among them


def install_line(needs_peft: bool, encoder: str | None) -> str:
    """Return the command that installs the packages that a reader needs.

    Args:
        needs_peft: Whether the reader loads an adapter, or trains one.
        encoder: The encoder that makes the vectors; None if there is none.
    """
    packages = ["torch", '"transformers>=5.0"']
    packages += ['"peft>=0.21.2"'] if needs_peft else []
    packages += ["sentence-transformers"] if encoder else []
    return " ".join(["pip install", *packages])


def reader_call(recipe: dict[str, Any], encoder: str | None) -> ReaderCall:
    """Return how a reader calls the model.

    Args:
        recipe: The fields of the bundle's processor.
        encoder: The encoder that readers can load; None if there is none.
    """
    kinds, source = recipe.get("vectors") or [], recipe.get("lexical_source", "text")
    reads_text = "{text}" in recipe.get("template", "{text}")
    vector_lines, given = "", []
    if encoder and source == "given":
        given.append('lexical_texts=["what the vector is made of"]')
    if source != "none" and (not encoder or len(kinds) > 1):
        vector_lines = _vector_lines(kinds[1:] if encoder else kinds, recipe, "text" if reads_text else "row")
        given.append("lexical_embeds=vectors")
    passes_text = reads_text or not given or bool(encoder and source == "text")
    return ReaderCall(vector_lines, ", ".join(['["app_config"]'] * passes_text + given), passes_text)


def _vector_lines(given_kinds: list[dict[str, Any]], recipe: dict[str, Any], unit: str) -> str:
    """Return the lines that make a vector of each kind that the reader passes, for one text or row (the unit)."""
    if len(recipe.get("vectors") or []) < 2:
        width = recipe["lexical_dim"]
        return f"vectors = torch.randn(1, {width})  # replace this with your own vectors, one for each {unit}"
    first = f"vectors = {{  # replace these with your own vectors, one of each kind for each {unit}"
    return "\n".join([first, *(f'    "{kind["name"]}": torch.randn(1, {kind["dim"]}),' for kind in given_kinds), "}"])

"""The kinds of vectors that a model reads: for each kind its width, its number of tokens and its projector."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from typing import Any, NamedTuple

LEXICAL_TOKEN = "<lexical>"
DEFAULT_KIND = "lexical"  # the name of the one kind of a model that was built without `vectors`
DEFAULT_DIM = 384  # the width of the vectors that all-MiniLM-L6-v2 makes
PROJECTORS = ("linear", "mlp")
SCALES = ("standard", "log", None)
NAME_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class VectorKind:
    """One kind of vectors: `VectorKind(dim=512, tokens=8, projector="mlp")`.

    Args:
        dim: Width of a vector.
        tokens: Number of token embeddings that a vector becomes.
        projector: "linear" is one linear layer. "mlp" is linear, GELU, linear, as in LLaVA-1.5 and vec2text.
        hidden: Width between the two layers of an "mlp"; None for the width of a token embedding.
        dropout: Dropout rate between the two layers of an "mlp".
        scale: "standard" is for raw numbers: `fit_fusion` finds the mean and the standard deviation of each
            dimension, and the fusion layer applies them. "log" is for dimensions that span orders of magnitude, such as
            prices and counts: it does the same to their logarithms. None is for embeddings that an encoder has scaled:
            a "linear" projector then reads the direction of a vector, not its norm.

    Raises:
        ValueError: A field has the wrong type, or is out of range.
    """

    dim: int
    tokens: int = 1
    projector: str = "linear"
    hidden: int | None = None
    dropout: float = 0.0
    scale: str | None = "standard"

    def __post_init__(self) -> None:
        for name in ("dim", "tokens", *(["hidden"] if self.hidden is not None else [])):
            object.__setattr__(self, name, check_positive(name, getattr(self, name)))  # The class is frozen.
        if self.projector not in PROJECTORS:
            raise ValueError(f"`projector` is {self.projector!r}; expected {' or '.join(map(repr, PROJECTORS))}.")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` is {self.dropout!r}; expected a number from 0 to below 1.")
        if self.projector == "linear" and (self.hidden is not None or self.dropout):
            raise ValueError("`hidden` and `dropout` were given for a linear projector; they need `projector='mlp'`.")
        if self.scale not in SCALES:
            raise ValueError(f"`scale` is {self.scale!r}; expected {', '.join(map(repr, SCALES[:-1]))} or None.")

    def to_dict(self) -> dict[str, Any]:
        """Return `dim`, and the fields that differ from their defaults.

        In this saved form, a missing `scale` means None, because kinds that were saved before there were scales have
        none.
        """
        defaults = {field.name: field.default for field in fields(self)} | {"scale": None}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


class Placeholder(NamedTuple):
    """The token whose place the vectors of a kind take."""

    kind: str
    token: str
    token_id: int
    tokens: int  # placeholders per vector

    def __str__(self) -> str:
        """Return what messages call it. The token of the first kind does not name its kind."""
        kind = f"kind {self.kind!r}, " if self.token == LEXICAL_TOKEN and self.kind != DEFAULT_KIND else ""
        return f"{self.token} ({kind}id {self.token_id})"


def read_kinds(vectors: Any) -> dict[str, VectorKind]:
    """Return kinds by name from the argument `vectors` of a config, a model or a processor.

    Args:
        vectors: Mapping from names to widths, `VectorKind`s or dicts of their fields, in the order in which the kinds
            stand before the text; or the list that `list_kinds` returns. A missing `scale` means "standard" in a
            mapping and None in a list, because the kinds in older files had no scales.

    Raises:
        ValueError: `vectors` is something else or empty, or a name or a field is wrong.
    """
    if isinstance(vectors, list) and all(isinstance(saved, dict) and "name" in saved for saved in vectors):
        vectors = {
            saved["name"]: {"scale": None} | {key: saved[key] for key in saved if key != "name"} for saved in vectors
        }
    if not isinstance(vectors, Mapping) or not vectors:
        raise ValueError(
            f"`vectors` is {vectors!r}; expected a width for each kind, such as {{'item': 64, 'user': 128}}."
        )
    return {check_name(name): _read_kind(name, given) for name, given in vectors.items()}


def plain_kind(dim: int) -> dict[str, VectorKind]:
    """Return the one kind of a model that was built without `vectors`: embeddings of `dim` numbers."""
    return {DEFAULT_KIND: VectorKind(dim, scale=None)}


def list_kinds(kinds: Mapping[str, VectorKind]) -> list[dict[str, Any]]:
    """Return kinds as a list for a JSON file: for each its name, its width and the fields that differ from defaults.

    (A dict would lose its order, because transformers sorts the keys of what it saves.)
    """
    return [{"name": name} | kind.to_dict() for name, kind in kinds.items()]


def _read_kind(name: str, given: Any) -> VectorKind:
    """Return one kind from a width, a `VectorKind` or a dict of its fields.

    Raises:
        ValueError: It is something else, or a field is wrong. The message names the kind.
    """
    if isinstance(given, VectorKind):
        return given
    try:
        return VectorKind(**given) if isinstance(given, Mapping) else VectorKind(given)
    except (TypeError, ValueError) as error:
        known = ", ".join(f"`{field.name}`" for field in fields(VectorKind)[1:])
        cause: Any = error
        if isinstance(error, TypeError):
            found = f"it has the fields {', '.join(map(repr, given))}" if "dim" in given else "it has no `dim`"
            cause = f"{found}; expected `dim`, its width, and optionally {known}."
        raise ValueError(f"kind {name!r} in `vectors`: {cause}") from None


def check_name(name: Any) -> str:
    """Return the name of a kind.

    Raises:
        ValueError: It is not a letter or `_`, followed by ASCII letters, digits, `_` and `-`. Only these fit both in
            the name of a weight and in a token.
    """
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise ValueError(
            f"`vectors` names a kind {name!r}; expected ASCII letters, digits, `_` and `-`, and no digit or `-` first."
        )
    return name


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 row", "2,000 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def token_of(name: str, position: int) -> str:
    """Return the placeholder of a kind: `<lexical>` for the first kind, `<lexical:NAME>` for the others."""
    return LEXICAL_TOKEN if position == 0 else f"{LEXICAL_TOKEN[:-1]}:{name}>"


def check_positive(name: str, value: Any) -> int:
    """Return the value of a field, which must be a positive integer.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"`{name}` is {value!r}; expected a positive integer.")
    return int(value)  # NumPy has integers of its own.


__all__ = ["DEFAULT_DIM", "DEFAULT_KIND", "LEXICAL_TOKEN", "VectorKind"]

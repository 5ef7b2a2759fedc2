"""The vectors and placeholders of one row: reading and checks that the processor, the collator and `fit_fusion` share.

The placeholders of a row's vectors stand *before* its text, `<lexical> ... <lexical> tokens of the text </s>`, in the
order of the kinds, unless the text itself holds them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AddedToken

from .configuration_t5fusion import PLACED_TOKEN_IDS
from .kinds_t5fusion import DEFAULT_KIND, LEXICAL_TOKEN, Placeholder, VectorKind, counted, token_of

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.floating[Any]]
RowVectors = dict[str, Vectors]  # the vectors of one row by kind, (vectors, dim) each

IGNORED = -100  # the label id that losses ignore
# The norm layer adds 1e-6 to the mean square of a projected vector. So embeddings shrink if the vector's norm is below
# about 0.01, and vanish below 1e-6. The square of a vector of more than 1e18 would overflow.
SMALLEST_NORM, LARGEST_NORM = 1e-6, 1e18
# What to do about (n,) numbers in a row whose kind is one number wide.
SEVERAL_NUMBERS = ". For several vectors of one number each, give the shape (vectors, 1): `array[:, None]`"
NO_TEXT = "no token of text and no vector; expected at least one of them. Remove the row, or give it text"


def add_placeholders(tokenizer: Any, kinds: Mapping[str, VectorKind]) -> dict[str, Placeholder]:
    """Add each kind's placeholder to the tokenizer, in place, if it is missing. Return the placeholders by kind.

    A `<lexical>` that the tokenizer has as an ordinary token becomes a special one and keeps its id.

    Raises:
        ValueError: The ids of the placeholders are not consecutive, as they are in the model.
    """
    placeholders: dict[str, Placeholder] = {}
    for position, (name, kind) in enumerate(kinds.items()):
        token = token_of(name, position)
        token_id = _add_special_token(tokenizer, token)
        placeholders[name] = Placeholder(name, token, token_id, kind.tokens)
        expected = next(iter(placeholders.values())).token_id + position
        if token_id != expected:
            raise ValueError(
                f"{token} is token {token_id} of the tokenizer; expected {expected}, because the placeholders of all "
                f"kinds follow {LEXICAL_TOKEN}. Make DataCollatorWithFusion or T5FusionProcessor, with all kinds, "
                "with the base model's tokenizer before adding tokens to it."
            )
    # By this id, the model recognises rows whose tokenizer gives `<lexical>` an id that is not the model's.
    PLACED_TOKEN_IDS.add(next(iter(placeholders.values())).token_id)
    return placeholders


def _add_special_token(tokenizer: Any, token: str) -> int:
    """Add a special token to the tokenizer, in place, if it is missing, and return its id."""
    token_id = tokenizer.get_added_vocab().get(token)
    if token_id is None or not tokenizer.added_tokens_decoder[token_id].special:
        # `add_special_tokens` would replace T5's additional special tokens, <extra_id_*>, and the name of its argument
        # differs between releases of transformers.
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
    return int(tokenizer.convert_tokens_to_ids(token))


def insert_placeholders(
    ids: Ids,
    mask: Ids,
    counts: Mapping[str, int],
    placeholders: Mapping[str, Placeholder],
    row: int = 0,
    field: str = "input_ids",
) -> tuple[Ids, Ids]:
    """Return `ids` and `mask`, int64 (length,), with all placeholders of the row's vectors.

    If `ids` hold no placeholder of a kind, all placeholders of that kind come in front. If they hold one per vector,
    each is repeated where it stands, as often as its kind has tokens.

    Args:
        ids: Token ids of the row.
        mask: The attention mask of the ids.
        counts: Number of the row's vectors, by kind.
        placeholders: The placeholders by kind.
        row: Index of the row, for the message.
        field: Name of the row's field, for the message.

    Raises:
        ValueError: `ids` hold some placeholders of a kind, but neither one per vector nor one per token.
    """
    in_front = []
    for name, placeholder in placeholders.items():
        count = counts.get(name, 0)
        present = int(np.count_nonzero(ids == placeholder.token_id))
        if present == 0:
            in_front += [placeholder.token_id] * (count * placeholder.tokens)
        elif present == count:
            repeats = np.where(ids == placeholder.token_id, placeholder.tokens, 1)
            ids, mask = np.repeat(ids, repeats), np.repeat(mask, repeats)
        elif present != count * placeholder.tokens:
            raise bad_row(row, field, _wrong_count(placeholder, present, count))
    front = np.array(in_front, dtype=np.int64)
    return np.concatenate([front, ids]), np.concatenate([np.ones_like(front), mask])


def _wrong_count(placeholder: Placeholder, present: int, count: int) -> str:
    """Return what is wrong with a row that holds `present` placeholders for `count` vectors of a kind."""
    token = placeholder.token
    expected = f"{count}, one per vector"
    remedy = f"Give {counted(present, 'vector')}, or leave {token} out: it is added for you"
    if count == 0:
        remedy = f"Give the row a vector, or take {token} out of its text"
    elif placeholder.tokens > 1:
        expected += f", or {count * placeholder.tokens}, one per token"
        remedy = f"Write {token} once for each vector, or leave it out: it is added for you"
    return f"{counted(present, 'placeholder')} {placeholder}; expected {expected}. {remedy}"


def vectors_of_row(index: int, value: Any, kinds: Mapping[str, VectorKind], knows_width: bool = True) -> RowVectors:
    """Return the vectors of one row by kind, float32 (vectors, dim) each, or (0, 0) for a kind without vectors.

    Args:
        index: Index of the row, for the message.
        value: The vectors as `vectors_of_one_kind` takes them, if there is one kind; or a mapping of these by kind; or
            None.
        kinds: The kinds by name.
        knows_width: Whether the widths of the kinds are known.

    Raises:
        ValueError: The vectors of several kinds are not given by kind, a kind is unknown, or `vectors_of_one_kind`
            refuses the vectors of a kind.
    """
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        if len(kinds) > 1:
            expected = f"a dict of vectors by kind: {', '.join(map(repr, kinds))}"
            raise bad_row(index, "lexical_embeds", f"of type {type(value).__name__}; expected {expected}")
        value = dict.fromkeys(kinds, value)
    check_kinds(index, value, kinds)
    return {
        name: vectors_of_one_kind(index, value.get(name), kind, field_of(name), knows_width)
        for name, kind in kinds.items()
    }


def check_kinds(index: int | None, by_kind: Mapping[str, Any], kinds: Mapping[str, VectorKind]) -> None:
    """Check that a mapping by kind names only known kinds.

    Args:
        index: Index of the row, for the message; None for a mapping of whole columns.
        by_kind: The mapping.
        kinds: The kinds by name.

    Raises:
        ValueError: It names an unknown kind.
    """
    for name in by_kind:
        if name not in kinds:
            problem = f"names the kind {name!r}; expected {', '.join(map(repr, kinds))}"
            if tuple(kinds) == (DEFAULT_KIND,):
                problem += ". Give `vectors=` to the model and the processor, and the processor to the collator"
            if index is None:
                raise ValueError(f"`lexical_embeds` {problem}.")
            raise bad_row(index, "lexical_embeds", problem)


def field_of(kind: str) -> str:
    """Return what messages call the vectors of a kind: the argument, with the kind's name if it has one of its own."""
    return "lexical_embeds" if kind == DEFAULT_KIND else f"lexical_embeds[{kind!r}]"


def vectors_of_one_kind(index: int, value: Any, kind: VectorKind, field: str, knows_width: bool = True) -> Vectors:
    """Return one row's vectors of a kind, float32 (vectors, dim), or (0, 0) if it has no vectors.

    Args:
        index: Index of the row, for the message.
        value: Numbers, (dim,) for one vector or (vectors, dim) for several, as list, array or tensor; or None. If the
            kind is one number wide, a single number is one vector.
        kind: The kind. If it has a scale, the numbers may have any magnitude.
        field: What the message calls the vectors.
        knows_width: Whether the width of the kind is known.

    Raises:
        ValueError: The shape of the numbers is wrong, or they are not finite; or, without a scale, a vector's norm is
            outside 1e-6 to 1e18.
    """
    try:
        array = np.zeros((0, 0)) if value is None else as_array(value)
    except ValueError:
        raise bad_row(index, field, "vectors of unequal width; expected one width") from None
    if array.size == 0:
        return np.zeros((0, 0), dtype=np.float32)
    # A single bool is refused: `lexical_embeds=False` means "no vectors".
    if array.ndim == 0 and array.dtype.kind in "iuf" and (kind.dim == 1 or not knows_width):
        array = array.reshape(1)
    if array.ndim not in (1, 2) or array.dtype.kind not in "biuf":
        expected = "numbers of shape (dim,) or (vectors, dim). Give the vectors of one row, as numbers"
        raise bad_row(index, field, f"{array.dtype} of shape {array.shape}; expected {expected}")
    exact = array.astype(np.float64).reshape(-1, array.shape[-1])
    with np.errstate(over="ignore"):  # A number too large for float32 becomes infinite, which is reported below.
        vectors = exact.astype(np.float32)
    if not np.isfinite(vectors).all():
        count = int(np.count_nonzero(~np.isfinite(vectors)))
        found = f"{counted(count, 'number')} {'is' if count == 1 else 'are'} NaN or infinite"
        raise bad_row(
            index,
            field,
            f"{found}; expected finite numbers. Compute the vector again, give None for no vector, or remove the row",
        )
    for vector in exact:
        if kind.scale is None and not has_readable_norm(vector):
            norm = np.linalg.norm(vector)
            expected = f"{SMALLEST_NORM:g} to {LARGEST_NORM:g}"
            remedy = "Normalise all vectors, or give their kind `scale='standard'`"
            raise bad_row(index, field, f"a vector of Euclidean norm {norm:.3g}; expected {expected}. {remedy}")
    return vectors


def has_readable_norm(vector: npt.NDArray[Any]) -> bool:
    """Return whether a vector, numbers (dim,), is neither too small nor too large for the fusion layer.

    A vector of zeros, which pads a row, is readable.
    """
    exact = vector.astype(np.float64)
    return bool(SMALLEST_NORM <= np.linalg.norm(exact) <= LARGEST_NORM or not exact.any())


def as_array(value: Any) -> npt.NDArray[Any]:
    """Return a number, list, array or tensor, or a list of tensors, as a NumPy array.

    Raises:
        ValueError: The items of a list differ in length.
    """
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, torch.Tensor) for item in value):
        return np.stack([as_array(item) for item in value])
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        needs_cast = value.is_floating_point() and value.dtype != torch.float64  # NumPy has no bfloat16.
        value = (value.float() if needs_cast else value).numpy()
    return np.asarray(value)


def bad_row(index: int, field: str, message: str) -> ValueError:
    """Return the error that names a row of the batch and its field.

    Args:
        index: Index of the row.
        field: Name of the field.
        message: What is wrong, what was expected and what to do, without the last full stop.
    """
    return ValueError(f"row {index} of the batch, `{field}`: {message}.")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Check that `value`, an argument called `name`, is one of `choices`.

    Raises:
        ValueError: It is not.
    """
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; expected one of {', '.join(map(repr, choices))}.")

"""One row's vectors and placeholders: what the processor, the collator and `fit_fusion` share to read and check them.

The placeholders of a row's vectors stand *before* its text: `<lexical> ... <lexical> tokens of the text </s>`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AddedToken

from .configuration_t5fusion import LEXICAL_TOKEN, PLACED_TOKEN_IDS

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.floating[Any]]

IGNORED = -100  # the label id that losses ignore
# The fusion layer adds 1e-6 to the mean square of a projected vector, so a smaller vector would become zero. A larger
# one would overflow when it is squared.
SMALLEST_NORM, LARGEST_NORM = 1e-6, 1e18
NO_TEXT = "no token of text; expected at least one. Remove the row, or give it text"


def add_lexical_token(tokenizer: Any) -> int:
    """Add the special token `<lexical>` to the tokenizer, in place, if it is missing, and return its id.

    A `<lexical>` that the tokenizer has as an ordinary token becomes a special one and keeps its id.
    """
    token_id = tokenizer.get_added_vocab().get(LEXICAL_TOKEN)
    if token_id is None or not tokenizer.added_tokens_decoder[token_id].special:
        # `add_special_tokens` would replace T5's additional special tokens, <extra_id_*>, and the name of its argument
        # differs between releases of transformers.
        tokenizer.add_tokens([AddedToken(LEXICAL_TOKEN, special=True, normalized=False)], special_tokens=True)
    token_id = int(tokenizer.convert_tokens_to_ids(LEXICAL_TOKEN))
    PLACED_TOKEN_IDS.add(token_id)  # so that the model can report another id
    return token_id


def place_lexical(ids: Ids, count: int, lexical_id: int, row: int = 0, field: str = "input_ids") -> Ids:
    """Return `ids`, int64 (length,), with `count` placeholders in front, or unchanged if they hold `count` already.

    Args:
        ids: Token ids of the row.
        count: Number of vectors of the row.
        lexical_id: The placeholder's id.
        row: Index of the row, for the message.
        field: Name of the row's field, for the message.

    Raises:
        ValueError: `ids` hold some placeholders, but not `count`.
    """
    present = int(np.count_nonzero(ids == lexical_id))
    if present == count:
        return ids
    if present:
        remedy = f"Give as many vectors, or leave {LEXICAL_TOKEN} out: it is added for you"
        raise bad_row(row, field, f"{present} placeholders {LEXICAL_TOKEN}; expected {count}, one per vector. {remedy}")
    return np.concatenate([np.full(count, lexical_id, dtype=np.int64), ids])


def vectors_of_row(index: int, value: Any) -> Vectors:
    """Return the vectors of one row, float32 (vectors, dim), or (0, 0) if it has no vectors.

    Args:
        index: Index of the row, for the message.
        value: Numbers, (dim,) for one vector or (vectors, dim) for several, as list, array or tensor; or None.

    Raises:
        ValueError: The numbers have another shape, are not finite, or a vector's norm is outside 1e-6 to 1e18.
    """
    field = "lexical_embeds"
    try:
        array = np.zeros((0, 0)) if value is None else as_array(value)
    except ValueError:
        raise bad_row(index, field, "vectors of unequal width; expected one width") from None
    if array.size == 0:
        return np.zeros((0, 0), dtype=np.float32)
    if array.ndim not in (1, 2) or array.dtype.kind not in "biuf":
        expected = "numbers of shape (dim,) or (vectors, dim). Give the vectors of one row, as numbers"
        raise bad_row(index, field, f"{array.dtype} of shape {array.shape}; expected {expected}")
    exact = array.astype(np.float64).reshape(-1, array.shape[-1])
    with np.errstate(over="ignore"):  # A number too large for float32 becomes infinite, which is reported below.
        vectors = exact.astype(np.float32)
    if not np.isfinite(vectors).all():
        count = np.count_nonzero(~np.isfinite(vectors))
        raise bad_row(
            index,
            field,
            f"{count} numbers that are NaN or infinite; expected finite ones. Encode it again, or remove the row",
        )
    for vector in exact:
        if not has_readable_norm(vector):
            norm = np.linalg.norm(vector)
            expected = f"{SMALLEST_NORM:g} to {LARGEST_NORM:g}, within which the model can tell vectors apart"
            raise bad_row(
                index, field, f"a vector of Euclidean norm {norm:.3g}; expected {expected}. Scale all vectors"
            )
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

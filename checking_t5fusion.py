"""Checks of a batch: its vectors, its placeholders, and whether they belong together."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from .configuration_t5fusion import PLACED_TOKEN_IDS
from .kinds_t5fusion import DEFAULT_KIND, LEXICAL_TOKEN, Placeholder, VectorKind, counted, token_of

LexicalEmbeds = torch.Tensor | Mapping[str, torch.Tensor]  # the vectors of one kind, or of several by name


def vectors_by_kind(lexical_embeds: LexicalEmbeds | None, kinds: Mapping[str, VectorKind]) -> dict[str, torch.Tensor]:
    """Return the vectors of each kind that has some.

    Args:
        lexical_embeds: A tensor, if there is one kind; or tensors by kind, where None stands for no vectors.
        kinds: The model's kinds by name.

    Raises:
        ValueError: A tensor was given to a model with several kinds, or the model has no kind of that name.
    """
    if lexical_embeds is None:
        return {}
    names = ", ".join(map(repr, kinds))
    if not isinstance(lexical_embeds, Mapping):
        if len(kinds) > 1:
            raise ValueError(
                f"`lexical_embeds` is one tensor, and the model reads several kinds of vectors: {names}. Pass a dict "
                "of tensors by kind."
            )
        return dict.fromkeys(kinds, lexical_embeds)
    unknown = [name for name in lexical_embeds if name not in kinds]
    if unknown:
        raise ValueError(
            f"`lexical_embeds` has the kind {unknown[0]!r}; expected {names}, the model's `config.vectors`."
        )
    return {name: vectors for name, vectors in lexical_embeds.items() if vectors is not None}


def check_token_id(
    input_ids: torch.Tensor, lexical_embeds: torch.Tensor | None, token_id: int, pad_token_id: int | None
) -> None:
    """Check that the rows come from a tokenizer in which `<lexical>` has the model's `token_id`.

    There is no check in compiled graphs, nor if every tokenizer of this process gives `<lexical>` the id `token_id`.

    Args:
        input_ids: int64 (batch, length).
        lexical_embeds: Float (batch, lexical_dim) or (batch, vectors, lexical_dim), or None.
        token_id: The model's `config.lexical_token_id`.
        pad_token_id: Id of the padding, or None.

    Raises:
        ValueError: A row with a vector begins, after its padding, with another tokenizer's placeholder.
    """
    if torch.compiler.is_compiling() or lexical_embeds is None or input_ids.is_meta or lexical_embeds.is_meta:
        return
    other_ids = PLACED_TOKEN_IDS - {token_id}
    # `check_vectors` reports a wrong shape.
    has_rows = lexical_embeds.dim() > 1 and lexical_embeds.shape[:1] == input_ids.shape[:1]
    if not other_ids or not has_rows or input_ids.shape[1] == 0:
        return
    has_vector = (lexical_embeds != 0).flatten(1).any(1).tolist()
    is_padding = input_ids == (-1 if pad_token_id is None else pad_token_id)
    first_position = (~is_padding).int().argmax(1, keepdim=True)
    first_ids = input_ids.gather(1, first_position).squeeze(1).tolist()
    has_placeholder = (input_ids == token_id).any(1).tolist()
    for row, first_id in enumerate(first_ids):
        # A smaller id may be the placeholder of a different tokenizer, or a word of this model's. It is a word if the
        # row holds this model's own placeholder too.
        is_word = first_id < token_id and token_id in PLACED_TOKEN_IDS and has_placeholder[row]
        if has_vector[row] and first_id in other_ids and not is_word:
            raise ValueError(
                f"row {row} begins with token {first_id}, which is {LEXICAL_TOKEN} in the tokenizer; in the model it "
                f"is token {token_id}. Make DataCollatorWithFusion or T5FusionProcessor with the tokenizer before "
                f"adding tokens to it, or build the model with `T5WithFusion(..., lexical_token_id={first_id})`."
            )


def check_batch(
    vectors: Mapping[str, torch.Tensor],
    placeholder_masks: Mapping[str, torch.Tensor],
    kinds: Mapping[str, VectorKind],
    first_id: int,
) -> dict[str, torch.Tensor]:
    """Return the vectors of each kind as (batch, vectors, dim), after checking that they fit their placeholders.

    Args:
        vectors: The vectors of each kind that has some, as `vectors_by_kind` returns them.
        placeholder_masks: A mask of each kind's placeholders, bool (batch, length).
        kinds: The model's kinds by name.
        first_id: Id of the first kind's placeholder.

    Raises:
        ValueError, RuntimeError: See `check_vectors` and `check_placeholders`.
    """
    vectors = {
        name: check_vectors(given, placeholder_masks[name], kinds[name], name) for name, given in vectors.items()
    }
    for position, (name, kind) in enumerate(kinds.items()):
        placeholder = Placeholder(name, token_of(name, position), first_id + position, kind.tokens)
        check_placeholders(placeholder_masks[name], vectors.get(name), placeholder)
    return vectors


def check_vectors(
    lexical_embeds: torch.Tensor, is_placeholder: torch.Tensor, kind: VectorKind, name: str
) -> torch.Tensor:
    """Return vectors of one kind as (batch, vectors, width).

    Args:
        lexical_embeds: Vectors, which should be float (batch, width) or (batch, vectors, width).
        is_placeholder: Bool (batch, length), on the device of the input.
        kind: The kind of the vectors.
        name: Name of the kind, for the message.

    Raises:
        ValueError: The vectors are not floating point, on a different device, or of the wrong shape.
    """
    batch, width = is_placeholder.shape[0], kind.dim
    given = "`lexical_embeds`" if name == DEFAULT_KIND else f"`lexical_embeds[{name!r}]`"
    if not lexical_embeds.is_floating_point():
        raise ValueError(f"{given} are {lexical_embeds.dtype}; expected floating point numbers. Use `.float()`.")
    if lexical_embeds.device != is_placeholder.device:
        raise ValueError(
            f"{given} are on {lexical_embeds.device}; expected {is_placeholder.device}, where the input is. "
            f"Use `.to({str(is_placeholder.device)!r})`."
        )
    if lexical_embeds.dim() not in (2, 3) or lexical_embeds.shape[0] != batch:
        is_column = width == 1 and lexical_embeds.shape == (batch,)
        raise ValueError(
            f"{given} have the shape {tuple(lexical_embeds.shape)}; expected ({batch}, {width}) or ({batch}, "
            f"vectors, {width}): one entry for each row of the batch.{' Use `.unsqueeze(1)`.' if is_column else ''}"
        )
    if lexical_embeds.shape[-1] != width:
        found = lexical_embeds.shape[-1]
        field, built_with = "config.lexical_dim", f"lexical_dim={found}"
        if name != DEFAULT_KIND:
            field, built_with = "config.vectors", f"vectors={{{name!r}: {found}, ...}}"
        raise ValueError(
            f"{given} are {found} numbers wide; expected {width} (`{field}`). Use the encoder that made the training "
            f"vectors, or build the model with `{built_with}`."
        )
    return lexical_embeds if lexical_embeds.dim() == 3 else lexical_embeds.unsqueeze(1)


def check_placeholders(is_placeholder: torch.Tensor, vectors: torch.Tensor | None, placeholder: Placeholder) -> None:
    """Check that each vector of a kind has its placeholders, and each placeholder a vector.

    On a GPU, the program would have to wait for the numbers, and a compiled graph cannot raise this error. In both
    cases, torch asserts on the device that the numbers match.

    Args:
        is_placeholder: Bool (batch, length).
        vectors: Float (batch, vectors, dim), or None.
        placeholder: The kind's placeholder.

    Raises:
        ValueError: They do not match. The message says where, and what to do.
        RuntimeError: They do not match, on a GPU or in a compiled graph. On a GPU, a later call raises it.
    """
    placeholder_counts = is_placeholder.sum(1)
    vector_counts = torch.zeros_like(placeholder_counts)  # without padding
    padded_count = 0 if vectors is None else vectors.shape[1]
    if vectors is not None and padded_count > 0:
        # Vectors of zeros at the end of a row are padding.
        position = torch.arange(1, padded_count + 1, device=vectors.device)
        vector_counts = ((vectors != 0).any(-1) * position).amax(1)
    tokens = placeholder.tokens
    mismatch = (placeholder_counts < vector_counts * tokens) | (placeholder_counts > padded_count * tokens)
    mismatch = mismatch | (placeholder_counts % tokens != 0)
    if is_placeholder.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(
            ~mismatch.any(),
            f"{placeholder.token} placeholders and vectors differ in number. Use DataCollatorWithFusion or "
            "T5FusionProcessor, which place them. On a CPU, this error says where.",
        )
    elif mismatch.any():
        row = int(mismatch.nonzero()[0])
        # If there are too few placeholders, the message names the row's vectors without padding. Otherwise it names all
        # places for vectors: vectors of zeros may be vectors too.
        reported_vectors = int(vector_counts[row])
        if int(placeholder_counts[row]) >= reported_vectors * tokens:
            reported_vectors = padded_count
        any_placeholder = bool(placeholder_counts.any())
        counts = RowCounts(row, int(placeholder_counts[row]), reported_vectors, padded_count, any_placeholder)
        raise ValueError(_mismatch_message(counts, placeholder))


class RowCounts(NamedTuple):
    """The numbers of a row whose vectors and placeholders do not match."""

    row: int
    placeholders: int
    vectors: int  # number of vectors that the message names
    padded_count: int  # number of vectors of every row, with padding
    any_placeholder: bool  # whether any row of the batch has a placeholder


def _mismatch_message(counts: RowCounts, placeholder: Placeholder) -> str:
    """Return what is wrong with a row's number of placeholders, and what to do."""
    found = f"row {counts.row} holds {counted(counts.placeholders, 'placeholder')} {placeholder}"
    if counts.padded_count == 0:
        return f"{found}, but no vectors were given. Pass them as `lexical_embeds`, or leave the placeholders out."
    if not counts.any_placeholder:
        return (
            f"`lexical_embeds` were given, but no row holds a placeholder {placeholder}. Use "
            "DataCollatorWithFusion or T5FusionProcessor, which place it."
        )
    expected = f"{counted(placeholder.tokens, 'placeholder')} per vector"
    return (
        f"{found} for {counted(counts.vectors, 'vector')}; expected {expected}. "
        "Use DataCollatorWithFusion or T5FusionProcessor, which place them; a row with fewer vectors than others is "
        "padded with zeros."
    )

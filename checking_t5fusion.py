"""Checks of a batch: its vectors, its placeholders, and whether they belong together."""

import torch

from .configuration_t5fusion import LEXICAL_TOKEN, PLACED_TOKEN_IDS


def check_token_id(
    input_ids: torch.Tensor, lexical_embeds: torch.Tensor | None, token_id: int, pad_token_id: int | None
) -> None:
    """Check that the rows come from a tokenizer in which `<lexical>` has the model's `token_id`.

    The check is left out in compiled graphs, and if every tokenizer of this process uses `token_id`.

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
    # If the batch sizes differ, `check_vectors` reports that.
    if not other_ids or lexical_embeds.shape[:1] != input_ids.shape[:1] or input_ids.shape[1] == 0:
        return
    has_vector = (lexical_embeds != 0).flatten(1).any(1).tolist()
    is_padding = input_ids == (-1 if pad_token_id is None else pad_token_id)
    first_position = (~is_padding).int().argmax(1, keepdim=True)
    first_ids = input_ids.gather(1, first_position).squeeze(1).tolist()
    has_placeholder = (input_ids == token_id).any(1).tolist()
    for row, first_id in enumerate(first_ids):
        # In this model's vocabulary, a smaller id may be a word, although another model's tokenizer uses it as its
        # placeholder. It is a word if the row holds this model's own placeholder too.
        is_word = first_id < token_id and token_id in PLACED_TOKEN_IDS and has_placeholder[row]
        if has_vector[row] and first_id in other_ids and not is_word:
            raise ValueError(
                f"row {row} begins with token {first_id}, which is {LEXICAL_TOKEN} in the tokenizer; in the model it "
                f"is token {token_id}. Put DataCollatorWithFusion or T5FusionProcessor on the tokenizer before adding "
                f"tokens to it, or build the model with `T5WithFusion(..., lexical_token_id={first_id})`."
            )


def check_vectors(lexical_embeds: torch.Tensor, is_placeholder: torch.Tensor, width: int) -> torch.Tensor:
    """Return `lexical_embeds` as (batch, vectors, width).

    Args:
        lexical_embeds: Vectors, which should be float (batch, width) or (batch, vectors, width).
        is_placeholder: Bool (batch, length), on the device of the input.
        width: The model's `config.lexical_dim`.

    Raises:
        ValueError: The vectors have another dtype, device or shape.
    """
    batch = is_placeholder.shape[0]
    if not lexical_embeds.is_floating_point():
        raise ValueError(
            f"`lexical_embeds` are {lexical_embeds.dtype}; expected floating point numbers. Use `.float()`."
        )
    if lexical_embeds.device != is_placeholder.device:
        raise ValueError(
            f"`lexical_embeds` are on {lexical_embeds.device}; expected {is_placeholder.device}, where the input is. "
            f"Use `.to({str(is_placeholder.device)!r})`."
        )
    if lexical_embeds.dim() not in (2, 3) or lexical_embeds.shape[0] != batch:
        raise ValueError(
            f"`lexical_embeds` have the shape {tuple(lexical_embeds.shape)}; expected ({batch}, {width}) or ({batch}, "
            f"vectors, {width}): one entry for each row of the batch."
        )
    if lexical_embeds.shape[-1] != width:
        raise ValueError(
            f"`lexical_embeds` are {lexical_embeds.shape[-1]} numbers wide; expected {width} (`config.lexical_dim`). "
            "Use the encoder that made the training vectors, or build the model with "
            f"`lexical_dim={lexical_embeds.shape[-1]}`."
        )
    return lexical_embeds if lexical_embeds.dim() == 3 else lexical_embeds.unsqueeze(1)


def check_placeholders(is_placeholder: torch.Tensor, lexical_embeds: torch.Tensor | None, token_id: int) -> None:
    """Check that each vector has a placeholder and each placeholder a vector.

    Reading the numbers back from a GPU would make the program wait, and a compiled graph cannot raise errors. There, an
    assertion on the device replaces the error.

    Args:
        is_placeholder: Bool (batch, length).
        lexical_embeds: Float (batch, vectors, lexical_dim), or None.
        token_id: The placeholder's id, for the message.

    Raises:
        ValueError: They do not match. The message names the row and both numbers.
        RuntimeError: The same, in a compiled graph. (On a GPU, the error comes with a later call.)
    """
    placeholder_counts = is_placeholder.sum(1)
    vector_counts = torch.zeros_like(placeholder_counts)  # without padding
    padded_count = 0 if lexical_embeds is None else lexical_embeds.shape[1]
    if lexical_embeds is not None and padded_count > 0:
        # The vectors of zeros behind a row's last other vector are padding.
        position = torch.arange(1, padded_count + 1, device=lexical_embeds.device)
        vector_counts = ((lexical_embeds != 0).any(-1) * position).amax(1)
    mismatch = (placeholder_counts < vector_counts) | (placeholder_counts > padded_count)
    if is_placeholder.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(~mismatch.any(), f"{LEXICAL_TOKEN} placeholders and lexical vectors do not agree in number")
    elif mismatch.any():
        row = int(mismatch.nonzero()[0])
        raise ValueError(_mismatch_message(placeholder_counts, vector_counts, row, padded_count, token_id))


def _mismatch_message(
    placeholder_counts: torch.Tensor, vector_counts: torch.Tensor, row: int, padded_count: int, token_id: int
) -> str:
    """Return what is wrong with the number of placeholders of `row`, and what to do.

    Args:
        placeholder_counts: Number of placeholders of each row, int64 (batch,).
        vector_counts: Number of vectors of each row, without padding, int64 (batch,).
        row: Index of the row.
        padded_count: Number of vectors of every row, with padding.
        token_id: The placeholder's id.
    """
    placeholders = int(placeholder_counts[row])
    if padded_count == 0:
        return (
            f"row {row} holds {placeholders} placeholders {LEXICAL_TOKEN} (id {token_id}), but no vectors were given. "
            "Pass them as `lexical_embeds`, or leave the placeholders out."
        )
    if not placeholder_counts.any():
        return (
            f"`lexical_embeds` were given, but no row holds a placeholder {LEXICAL_TOKEN} (id {token_id}). Use "
            "DataCollatorWithFusion or T5FusionProcessor, which place it."
        )
    vectors = int(vector_counts[row])
    count = vectors if placeholders < vectors else padded_count
    return (
        f"row {row} holds {placeholders} placeholders {LEXICAL_TOKEN} (id {token_id}) for {count} vectors; expected "
        "one placeholder per vector. Use DataCollatorWithFusion or T5FusionProcessor, which place them; a row with "
        "fewer vectors than others is padded with zeros."
    )

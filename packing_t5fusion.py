"""Several rows in one sequence, for training: which rows share a sequence, and the masks that keep them apart.

T5 knows only relative positions. So a row in the middle of a sequence computes what it computes alone, if its tokens
attend to no other row: not in the encoder, nor in the decoder, nor from one to the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

ROOM = 64  # Up to this length of a sequence, attention is a small part of a training step.


def share_sequences(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return which rows share a sequence: for each sequence, the indices of its rows, in ascending order.

    The text of a sequence is at most as long as the longest text of a row, or `ROOM` if all texts are shorter. The same
    holds for labels. A longer sequence would be slow, because attention costs as much as the square of the length.

    Args:
        sizes: For each row, the length of its text with the placeholders, and the length of its labels.
    """
    capacity = tuple(max(ROOM, *lengths) for lengths in zip(*sizes, strict=True))
    shared: list[list[int]] = []
    space: list[tuple[int, ...]] = []  # what is left in each sequence, for text and labels
    # The longest rows come first, each in the first sequence that has space for it.
    for row in sorted(range(len(sizes)), key=lambda row: (-sum(sizes[row]), row)):
        fits = (index for index, left in enumerate(space) if sizes[row][0] <= left[0] and sizes[row][1] <= left[1])
        sequence = next(fits, len(space))
        if sequence == len(space):
            shared.append([])
            space.append(capacity)
        shared[sequence].append(row)
        space[sequence] = (space[sequence][0] - sizes[row][0], space[sequence][1] - sizes[row][1])
    return sorted(sorted(rows) for rows in shared)


class PackedMasks(NamedTuple):
    """Masks that are added to attention scores, float (sequences, 1, queries, keys): 0, or a large negative number."""

    encoder: torch.Tensor
    decoder: torch.Tensor
    cross: torch.Tensor


def packed_masks(row_ids: torch.Tensor, target_row_ids: torch.Tensor, dtype: torch.dtype) -> PackedMasks:
    """Return the masks that keep rows in one sequence apart.

    Args:
        row_ids: For each token of text, the number of its row within the sequence, from 1; 0 for padding: int64
            (sequences, length).
        target_row_ids: The same for the labels, int64 (sequences, labels).
        dtype: Dtype of the masks.
    """
    length = target_row_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=target_row_ids.device).tril()
    own_text = target_row_ids.unsqueeze(2) == row_ids.unsqueeze(1)
    # Every position needs something to attend to. In self-attention, padding attends to padding. In cross-attention,
    # padding of the labels attends to the whole text, because the text may have no padding. No loss reads padding.
    is_padding = (target_row_ids == 0).unsqueeze(2)
    return PackedMasks(
        encoder=_additive_mask(row_ids.unsqueeze(2) == row_ids.unsqueeze(1), dtype),
        decoder=_additive_mask((target_row_ids.unsqueeze(2) == target_row_ids.unsqueeze(1)) & causal, dtype),
        cross=_additive_mask(own_text | is_padding, dtype),
    )


def _additive_mask(may_attend: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask to add to attention scores, float (sequences, 1, queries, keys).

    Args:
        may_attend: Whether a query may attend to a key, bool (sequences, queries, keys).
        dtype: Dtype of the mask.
    """
    # The smallest fp32 would become infinite where autocast turns the mask into bf16.
    smallest = max(torch.finfo(dtype).min, torch.finfo(torch.bfloat16).min)
    mask = torch.zeros(may_attend.shape, dtype=dtype, device=may_attend.device)
    return mask.masked_fill_(~may_attend, smallest).unsqueeze(1)


def restart_rows(decoder_input_ids: torch.Tensor, target_row_ids: torch.Tensor, start: int) -> torch.Tensor:
    """Return decoder inputs, int64 (sequences, labels), in which each row begins with the token `start`.

    Args:
        decoder_input_ids: Labels that were shifted right over the whole sequence. A row in it begins with the last
            token of the row before.
        target_row_ids: For each label, the number of its row within the sequence, int64 (sequences, labels).
        start: The first id of a decoder's input.
    """
    begins = target_row_ids[:, 1:] != target_row_ids[:, :-1]
    return torch.cat([decoder_input_ids[:, :1], decoder_input_ids[:, 1:].masked_fill(begins, start)], dim=1)

"""Greedy decoding whose finished rows leave the batch."""

from typing import Any

import torch
from transformers.generation import logits_process
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from .decoder_cache import MEMORY, Cache
from .packed_decoder import PackedDecoder

SHRINK_BELOW = 0.75  # Ended rows leave the cache when at most this share of its rows still runs.
BLOCK = 128  # logits in a block: `first_largest` first finds the block that holds the largest logit
ROW_BY_ROW = (  # logits processors that treat each row separately, so that rows can leave the batch
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
    logits_process.SuppressTokensLogitsProcessor,
)


def can_decode(
    logits_processor: Any, stopping_criteria: Any, generation_config: Any, synced_gpus: Any = False,
    streamer: Any = None, **model_kwargs: Any,
) -> bool:  # fmt: skip
    """Return whether `decode_greedily` gives what transformers gives for these arguments of its `_sample`."""
    return (
        not generation_config.do_sample
        and not generation_config.return_dict_in_generate
        and not synced_gpus
        and streamer is None
        and all(type(each) in ROW_BY_ROW for each in logits_processor)
        and all(type(each) in (EosTokenCriteria, MaxLengthCriteria) for each in stopping_criteria)
    )


def decode_greedily(
    decoder: PackedDecoder,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    encoder_outputs: Any,
    past_key_values: Cache,
    **unused: Any,
) -> torch.Tensor:
    """Return the generated sequences, int64 (rows, length), as transformers' `_sample` does.

    Args:
        decoder: The decoder.
        input_ids: int64 (rows, 1 or more), the first tokens of the decoder.
        logits_processor: The logits processors, all of classes in `ROW_BY_ROW`.
        stopping_criteria: The greatest length, and perhaps the tokens that end a row.
        generation_config: The generation config of this call.
        encoder_outputs: The encoder's output.
        past_key_values: An empty cache.
        unused: Further arguments of `_sample`.
    """
    memory, cache = encoder_outputs[MEMORY], past_key_values
    cache.start(memory.repeat(len(input_ids) // len(memory)), beams=1)
    ends = [each.eos_token_id for each in stopping_criteria if isinstance(each, EosTokenCriteria)]
    first, longest = input_ids.shape[1], stopping_criteria.max_length
    pad = generation_config._pad_token_tensor if ends else 0
    sequences = input_ids.new_zeros(len(input_ids), longest) + pad
    sequences[:, :first] = input_ids
    for token in range(first - 1):
        decoder.step(input_ids[:, token], cache)
    rows = torch.arange(len(input_ids))  # the rows in the cache
    running = torch.ones_like(rows, dtype=torch.bool)  # which of these rows have not ended
    for length in range(first, longest):
        logits = decoder.step(sequences[rows, length - 1], cache)
        tokens = first_largest(logits_processor(sequences[rows, :length], logits))
        sequences[rows[running], length] = tokens[running]
        if not ends:
            continue
        running &= ~torch.isin(tokens, torch.cat(ends))
        if not running.any():
            return sequences[:, : length + 1]
        if running.sum() <= SHRINK_BELOW * len(rows):
            kept = running.nonzero()[:, 0]
            cache.keep(kept)
            rows, running = rows[kept], running[kept]
    return sequences


def first_largest(logits: torch.Tensor) -> torch.Tensor:
    """Return the index of each row's largest logit; of several, the first. This is faster than `argmax`."""
    if logits.shape[1] % BLOCK:
        return logits.argmax(-1)
    blocks = logits.unflatten(1, (-1, BLOCK))
    block = blocks.amax(-1).argmax(-1)
    return block * BLOCK + blocks[torch.arange(len(logits)), block].argmax(-1)

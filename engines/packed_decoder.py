"""T5's decoder over packed matrices, one token at a time."""

import copy
from typing import Any

import torch
from torch.nn import functional as F

from .decoder_cache import FIRST_CAPACITY, Cache
from .packed_layers import FeedForward, Norm, Packing


class Attention:
    """An attention layer of the decoder, with its norm and its residual connection."""

    def __init__(self, layer: Any, attention: Any, packing: Packing, is_cross: bool):
        self.heads, self.size = attention.n_heads, attention.key_value_proj_dim
        # In cross-attention, the memory holds the keys and values, so `qkv` is only the matrix q.
        matrices = (attention.q,) if is_cross else (attention.q, attention.k, attention.v)
        self.matrix_count = len(matrices)
        self.norm, self.qkv = Norm(layer.layer_norm), packing.matrix(*matrices, norm=layer.layer_norm)
        self.o = packing.matrix(attention.o)

    def project(self, hidden: torch.Tensor, beams: int) -> torch.Tensor:
        """Return queries, and in self-attention also keys and values: (1 or 3, rows, heads, beams, size)."""
        projected = self.qkv(self.norm(hidden)).view(-1, beams, self.matrix_count, self.heads, self.size)
        return projected.permute(2, 0, 3, 1, 4)

    def add_to(
        self, hidden: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor
    ) -> None:
        """Add the layer's output to hidden states, float32 (rows * beams, width).

        Args:
            hidden: The hidden states.
            queries: (rows, heads, beams, size).
            keys, values: (rows, heads, length, size). The first two dimensions can be joined without a copy.
            bias: Added to the scores: float (rows or 1, heads or 1, 1, length), or with several beams (rows * heads,
                beams, length).
        """
        if queries.shape[2] == 1:
            attended = F.scaled_dot_product_attention(queries, keys, values, bias, scale=1.0)
        else:  # For a few queries, this is faster than the function above.
            scores = torch.baddbmm(bias, queries.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2))
            attended = torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(queries.shape).transpose(1, 2)
        hidden += self.o(attended.reshape(len(hidden), -1))


class DecoderBlock:
    """A block of the decoder."""

    def __init__(self, block: Any, packing: Packing):
        own, cross, feed_forward = block.layer
        self.own = Attention(own, own.SelfAttention, packing, is_cross=False)
        self.cross = Attention(cross, cross.EncDecAttention, packing, is_cross=True)
        self.feed_forward = FeedForward(feed_forward, packing)


class PackedDecoder:
    """T5's decoder and its head.

    Args:
        decoder: The `T5Stack`.
        head: The matrix that computes the logits.
        embeddings: The embedding table, float32 (vocabulary, width).
        scale: A number that the decoder's outputs are multiplied by before the head.
        packing: Packs the matrices.
    """

    def __init__(self, decoder: Any, head: Any, embeddings: torch.Tensor, scale: float, packing: Packing):
        self.embeddings = embeddings
        self.blocks = [DecoderBlock(block, packing) for block in decoder.block]
        self.norm = Norm(decoder.final_layer_norm)
        self.head = packing.matrix(head, norm=decoder.final_layer_norm, scale=scale)
        # T5 keeps the table of the bias in the attention of its first block.
        self.attention_of_bias = copy.deepcopy(decoder.block[0].layer[0].SelfAttention)
        self.bias = torch.empty(0, 0)

    def bias_to(self, length: int) -> torch.Tensor:
        """Return T5's bias for the last of `length` tokens, float (heads, length)."""
        if self.bias.shape[1] < length:
            most = max(FIRST_CAPACITY, 2 * length)
            # transformers 5.0 cannot compute the last row alone.
            bias = self.attention_of_bias.compute_bias(most, most)
            self.bias = bias[0, :, -1].float().to(self.blocks[0].own.qkv.dtype).contiguous()
        return self.bias[:, self.bias.shape[1] - length :]

    def step(self, tokens: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Return the logits, float32 (rows * beams, vocabulary), after one more token per beam.

        Args:
            tokens: int64 (rows * beams,).
            cache: The cache of the earlier tokens. The new tokens are added to it.
        """
        assert cache.memory is not None
        hidden = F.embedding(tokens, self.embeddings)
        beams, padding = cache.beams, cache.padding
        bias = cache.add_token(self.bias_to(cache.length + 1))
        end = cache.length * beams
        for layer, block in enumerate(self.blocks):
            projected = block.own.project(hidden, beams)
            generated = cache.generated[layer, :, :, :, :end]
            generated[:, :, :, end - beams :] = projected[1:]
            block.own.add_to(hidden, projected[0], generated[0], generated[1], bias)
            keys, values = cache.memory.keys_and_values[layer]
            block.cross.add_to(hidden, block.cross.project(hidden, beams)[0], keys, values, padding)
            block.feed_forward.add_to(hidden)
        return self.head(self.norm(hidden)).float()

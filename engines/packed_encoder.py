"""T5's encoder over packed matrices."""

import copy
from typing import Any

import torch
from torch.nn import functional as F

from .decoder_cache import LOWEST, Memory
from .packed_layers import FeedForward, Norm, Packing


class EncoderBlock:
    """A block of the encoder."""

    def __init__(self, block: Any, packing: Packing):
        layer, feed_forward = block.layer
        attention = layer.SelfAttention
        self.heads, self.size = attention.n_heads, attention.key_value_proj_dim
        self.norm = Norm(layer.layer_norm)
        self.qkv = packing.matrix(attention.q, attention.k, attention.v, norm=layer.layer_norm)
        self.o = packing.matrix(attention.o)
        self.feed_forward = FeedForward(feed_forward, packing)

    def add_to(self, hidden: torch.Tensor, bias: torch.Tensor) -> None:
        """Replace the block's input, hidden states, float32 (rows, length, width), by its output, in place."""
        rows, length = hidden.shape[:2]
        projected = self.qkv(self.norm(hidden)).view(rows, length, 3, self.heads, self.size)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values, bias, scale=1.0)
        hidden += self.o(attended.transpose(1, 2).reshape(rows, length, -1))
        self.feed_forward.add_to(hidden)


class PackedEncoder:
    """T5's encoder, from the embeddings to the memory that the decoder reads.

    Args:
        encoder, decoder: The `T5Stack`s. The decoder's matrices for cross-attention make the memory.
        packing: Packs the matrices.
    """

    def __init__(self, encoder: Any, decoder: Any, packing: Packing):
        self.blocks = [EncoderBlock(block, packing) for block in encoder.block]
        self.norm, self.norm_weight = (
            Norm(encoder.final_layer_norm),
            encoder.final_layer_norm.weight.detach().float().clone(),
        )
        # T5 keeps the table of the bias in the attention of its first block.
        self.attention_of_bias = copy.deepcopy(encoder.block[0].layer[0].SelfAttention)
        crosses = [block.layer[1].EncDecAttention for block in decoder.block]
        matrices = [matrix for cross in crosses for matrix in (cross.k, cross.v)]
        self.cross = packing.matrix(*matrices, norm=encoder.final_layer_norm)
        self.heads, self.size = crosses[0].n_heads, crosses[0].key_value_proj_dim

    def __call__(self, embeddings: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, Memory]:
        """Return the last hidden states, float32 (rows, length, width), and the decoder's memory.

        Args:
            embeddings: float (rows, length, width).
            mask: (rows, length), 1 for tokens and 0 for padding; None for no padding.
        """
        hidden = embeddings.to(torch.float32, copy=True)
        rows, length = hidden.shape[:2]
        padding = torch.zeros(rows, 1, 1, length)
        if mask is not None:
            padding.masked_fill_(mask[:, None, None] == 0, LOWEST)
        bias = self.attention_of_bias.compute_bias(length, length).float() + padding
        bias = bias.to(self.blocks[0].qkv.dtype)
        for block in self.blocks:
            block.add_to(hidden, bias)
        normed = self.norm(hidden)
        return normed * (self.norm_weight * hidden.shape[-1] ** 0.5), self.memory_of(normed, padding)

    def memory_of(self, normed: torch.Tensor, padding: torch.Tensor) -> Memory:
        """Return keys and values for the decoder's cross-attention."""
        rows, length = normed.shape[:2]
        projected = self.cross(normed).view(rows, length, -1, 2, self.heads, self.size)
        pairs = projected.permute(2, 3, 0, 4, 1, 5).contiguous()  # (layers, 2, rows, heads, length, size)
        return Memory(pairs, padding.to(pairs.dtype))

"""Keys and values that the decoder reads: those of the encoder's output, and those of earlier tokens."""

import torch
import transformers

MEMORY = "memory"  # the entry of the encoder's output that holds a `Memory`
LOWEST = torch.finfo(torch.bfloat16).min  # added to scores that must not count; float32 can hold it too
FIRST_CAPACITY = 32  # the number of tokens for which a new cache has room


class Memory:
    """Keys and values for cross-attention, computed once per row.

    Args:
        keys_and_values: float (layers, 2, rows, heads, length, size).
        padding: float (rows, 1, 1, length), 0 for tokens and `LOWEST` for padding.
    """

    def __init__(self, keys_and_values: torch.Tensor, padding: torch.Tensor):
        self.keys_and_values, self.padding = keys_and_values, padding

    def __len__(self) -> int:
        return len(self.padding)

    def repeat(self, times: int) -> "Memory":
        """Return the memory with each row repeated `times` times, next to each other."""
        return self if times == 1 else self.keep(torch.arange(len(self)).repeat_interleave(times))

    def keep(self, kept: torch.Tensor) -> "Memory":
        """Return the memory of the rows with the indices `kept`."""
        return Memory(self.keys_and_values[:, :, kept], self.padding[kept])


class Cache(transformers.Cache):
    """Keys and values of the tokens generated so far.

    A row of the memory has one or several beams, which share one store of keys and values. Each step adds the keys and
    values of all beams, and a beam attends only to its own ancestors. So when beams are chosen anew, nothing is copied.

    Attributes, which `start` sets for each batch:
        memory: Keys and values of the encoder's output.
        beams: The number of beams of each row.
        capacity: The number of tokens for which there is room.
        generated: The store, float (layers, 2, rows, heads, capacity * beams, size): the keys (0) and values (1) of all
            beams' first tokens, then those of their second tokens, and so on.
        padding: The memory's padding, in the shape of the attention scores.
        beam_numbers: int64 (rows, beams, 1), the number of each beam in its row. Only with several beams.
        ancestors: int64 (rows, beams, length), for each beam and token the beam that generated it. Only with several
            beams.
    """

    is_compileable = False  # transformers reads this attribute.

    def __init__(self) -> None:
        super().__init__(layers=[])  # In the layers of transformers, beams cannot share keys.
        self.memory: Memory | None = None
        self.length = 0

    def start(self, memory: Memory, beams: int) -> None:
        """Prepare for the first token of a batch."""
        layers, _, rows, heads, _, size = memory.keys_and_values.shape
        self.memory, self.beams, self.capacity = memory, beams, FIRST_CAPACITY
        self.generated = memory.keys_and_values.new_empty(layers, 2, rows, heads, self.capacity * beams, size)
        self.padding = memory.padding
        # With several beams, scores have the shape (rows * heads, beams, length), because `baddbmm` multiplies batches
        # of matrices. So the padding gets this shape too.
        if beams > 1:
            self.padding = self.padding.expand(-1, heads, beams, -1).flatten(0, 1)
            self.beam_numbers = torch.arange(beams).view(1, beams, 1).expand(rows, beams, 1)
            self.ancestors = self.beam_numbers[:, :, :0]

    def get_seq_length(self, layer: int = 0) -> int:
        """Return the number of tokens. transformers calls this method."""
        return self.length

    def add_token(self, bias: torch.Tensor) -> torch.Tensor:
        """Make room for one more token, and return the bias of its attention scores.

        Args:
            bias: float (heads, length), T5's bias for the distance to each token. The new token is the last.

        Returns:
            float (1, heads, 1, length), or with several beams (rows * heads, beams, length * beams).
        """
        if self.length == self.capacity:
            self.generated = torch.cat([self.generated, torch.empty_like(self.generated)], 4)
            self.capacity *= 2
        self.length += 1
        if self.beams == 1:
            return bias[None, :, None]
        self.ancestors = torch.cat([self.ancestors, self.beam_numbers], 2)
        rows, beams, length = self.ancestors.shape
        is_other = torch.ones(rows, beams, length, beams, dtype=torch.bool)
        is_other.scatter_(3, self.ancestors[..., None], False)
        scores = bias.repeat_interleave(beams, 1)[:, None].expand(rows, -1, beams, -1)
        return scores.masked_fill(is_other.view(rows, 1, beams, -1), LOWEST).flatten(0, 1)

    def reorder_cache(self, chosen: torch.Tensor) -> None:
        """Let each beam continue from a chosen beam of its row. transformers calls this method.

        Args:
            chosen: int (rows * beams,), the beams to continue from, counted over all rows.
        """
        if self.beams > 1:
            chosen = chosen.view(-1, self.beams, 1).long() % self.beams
            self.ancestors = self.ancestors.gather(1, chosen.expand_as(self.ancestors))

    def keep(self, kept: torch.Tensor) -> None:
        """Drop all rows except those with the indices `kept`. Each row must have one beam."""
        assert self.memory is not None
        self.memory = self.memory.keep(kept)
        self.generated, self.padding = self.generated[:, :, kept], self.memory.padding

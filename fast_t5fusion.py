"""Faster training steps on a CPU.

`T5WithFusion.forward` runs in the context `fast_step(model, device)`. While a model trains on a CPU, this context
replaces some of torch's functions. In every precision, it replaces one:

- Dropout draws 16 random bits for a number, where torch draws a whole random float.

In bf16 autocast, it replaces more. The results equal torch's own within the rounding of bf16:

- The matrices of frozen weights are cast once, instead of in every step.
- Attention over short rows multiplies matrices: its backward pass is faster than the fused kernel's.
- The loss reads the logits in parts, so that they are never all in memory as fp32.
- T5's `gelu_new` is one kernel, where transformers computes it in eight steps.

Outside of training, with gradient checkpointing, in compiled graphs and on GPUs, nothing is replaced.
"""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.activations import NewGELUActivation

LONGEST_ATTENTION = 256  # positions; for longer rows, torch's own kernel is faster and needs less memory
PART = 64  # rows of logits that are in memory as fp32 at a time
DRAW_VALUES = 2**16  # the number of values of the random integer that decides whether dropout keeps a number
SAMPLES = 64  # numbers of a frozen weight that show whether it has changed

_step = threading.local()  # `_step.in_bf16` is True inside of a `FastStep` in bf16


class FastStep(TorchFunctionMode):
    """The context of a forward pass in training. It replaces the functions that the module's docstring names."""

    def __init__(self, in_bf16: bool) -> None:
        super().__init__()
        self.in_bf16 = in_bf16
        self.replaced: dict[Any, Any] = {F.dropout: dropout}
        if in_bf16:
            self.replaced |= {
                F.linear: linear,
                F.scaled_dot_product_attention: attention,
                F.cross_entropy: cross_entropy,
            }

    def __enter__(self) -> Any:
        _step.in_bf16 = self.in_bf16
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        _step.in_bf16 = False
        return super().__exit__(*error)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.replaced.get(function, function)(*args, **(kwargs or {}))


def fast_step(model: Any, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of a forward pass: a `FastStep` if the model trains on a CPU, otherwise an empty context.

    Args:
        model: A `T5WithFusion`.
        device: The device of the inputs.
    """
    trains = model.fast_training and model.training and torch.is_grad_enabled()
    if not trains or device.type != "cpu" or torch.compiler.is_compiling():
        return nullcontext()
    # Checkpointing repeats a part of the forward pass, outside of this context, and must draw the same numbers.
    if model.is_gradient_checkpointing or _is_sharded(model):
        return nullcontext()
    return FastStep(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)


def _is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP has split the weights over the processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return any(type(parameter) is not nn.Parameter for parameter in model.parameters())


def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Return `F.dropout` of the input, with different random numbers from the same generator.

    `p` is rounded to a multiple of 1 / 65536, and what stays is scaled so that its expected value is the input.
    """
    dropped = round(p * DRAW_VALUES)
    if not training or not 0 < dropped < DRAW_VALUES or input.device.type != "cpu" or inplace:
        return F.dropout(input, p, training, inplace)
    # A draw of 64 bits takes as long as one of 8, and decides about four numbers.
    draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    # `out` saves the pass that would turn bools into numbers.
    mask = torch.empty(input.shape, dtype=input.dtype)
    torch.ge(draws[: input.numel()].view(input.shape), dropped - DRAW_VALUES // 2, out=mask)
    return input * mask.mul_(DRAW_VALUES / (DRAW_VALUES - dropped))


class FrozenCopy(NamedTuple):
    """The copy of a frozen weight, with what shows a later step whether the weight has changed since."""

    state: tuple[int, int]  # the weight's version and address
    sample: torch.Tensor  # some of the weight's numbers
    weight: torch.Tensor  # the copy in bf16


_copies: Any = WeakTensorKeyDictionary()  # the `FrozenCopy` of each frozen weight


def forget_copies() -> None:
    """Free the bf16 copies of frozen weights. The next training step makes them again."""
    _copies.clear()


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `F.linear`, with a bf16 copy of the weight if it is frozen. Autocast itself makes a copy in each step."""
    if type(weight) is nn.Parameter and not weight.requires_grad and weight.dtype == torch.float32:
        weight = _bf16_copy(weight)
    return F.linear(input, weight, bias)


def _bf16_copy(weight: torch.Tensor) -> torch.Tensor:
    """Return a frozen weight in bf16: the copy of an earlier step, if the weight has not changed since."""
    # When PEFT merges an adapter, it changes `weight.data`, and torch does not count that in `_version`. So some of the
    # weight's numbers are compared too.
    sample = weight.detach().view(-1)[:: max(1, weight.numel() // SAMPLES)] if weight.is_contiguous() else weight
    state = (weight._version, weight.data_ptr())
    frozen: FrozenCopy | None = _copies.get(weight)
    if frozen is None or frozen.state != state or not torch.equal(frozen.sample, sample):
        frozen = _copies[weight] = FrozenCopy(state, sample.clone(), weight.detach().bfloat16())
    return frozen.weight


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **others: Any,
) -> torch.Tensor:
    """Return what `F.scaled_dot_product_attention` returns, float (batch, heads, length, width).

    In bf16, with a mask that is added to unscaled scores (as T5 has) and at most `LONGEST_ATTENTION` positions, this
    function multiplies matrices. Any other attention is left to torch.
    """
    batch, heads, length, _ = query.shape
    is_short = max(length, key.shape[2]) <= LONGEST_ATTENTION
    is_bf16 = query.dtype == key.dtype == value.dtype == torch.bfloat16
    is_added = attn_mask is not None and attn_mask.is_floating_point() and not is_causal
    if not (is_short and is_bf16 and is_added and scale == 1 and not others):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **others)
    queries, keys, values = (states.reshape(batch * heads, -1, states.shape[-1]) for states in (query, key, value))
    assert attn_mask is not None  # for mypy
    bias = attn_mask.to(query.dtype).expand(batch, heads, -1, -1).reshape(batch * heads, length, -1)
    with torch.autocast("cpu", enabled=False):  # The softmax computes in fp32 anyway. Autocast would return fp32 too.
        weights = torch.softmax(torch.baddbmm(bias, queries, keys.transpose(1, 2)), -1)
        return torch.bmm(dropout(weights, dropout_p), values).view(batch, heads, length, -1)


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return `F.cross_entropy`. bf16 logits, (rows, vocabulary), are read in parts. Other cases are left to torch."""
    is_plain = (weight, size_average, reduce, reduction, label_smoothing) == (None, None, None, "mean", 0.0)
    if is_plain and input.dim() == 2 and input.dtype == torch.bfloat16:
        loss: torch.Tensor = CrossEntropyInParts.apply(input, target, ignore_index)
        return loss
    return F.cross_entropy(
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing=label_smoothing
    )


class CrossEntropyInParts(torch.autograd.Function):
    """Mean cross-entropy, fp32 (), of bf16 logits (rows, vocabulary). Only a part of them is in fp32 at a time."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, ignored: int) -> torch.Tensor:
        """Return the mean over the labels, int64 (rows,), that are not `ignored`."""
        count = (labels != ignored).sum()
        ctx.save_for_backward(logits, labels, count)
        ctx.ignored = ignored
        parts = zip(logits.split(PART), labels.split(PART), strict=True)
        sums = [F.cross_entropy(part.float(), own, ignore_index=ignored, reduction="sum") for part, own in parts]
        return torch.stack(sums).sum() / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of the logits: (probabilities - one-hot labels) / count, bf16 (rows, vocabulary)."""
        logits, labels, count = ctx.saved_tensors
        result = torch.empty_like(logits)
        is_learnt = (labels != ctx.ignored).unsqueeze(1)
        scale = is_learnt * (gradient / count)
        targets = labels.unsqueeze(1).where(is_learnt, 0)
        for part, own, factor, out in zip(
            *(each.split(PART) for each in (logits, targets, scale, result)), strict=True
        ):
            difference = torch.softmax(part, -1, dtype=torch.float32)
            difference.scatter_add_(1, own, torch.full_like(own, -1, dtype=torch.float32))
            torch.mul(difference, factor, out=out)
        return result, None, None


class TrainingGelu(NewGELUActivation):
    """`gelu_new`, in one kernel if the model trains in bf16 on a CPU, and otherwise as transformers computes it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the activation, in the shape of the input."""
        if getattr(_step, "in_bf16", False):
            return F.gelu(input, approximate="tanh")
        output: torch.Tensor = super().forward(input)
        return output


def use_training_gelu(model: nn.Module) -> None:
    """Give a T5's feed-forward layers the activation that is fast in training. Other activations stay."""
    for module in model.modules():
        if type(getattr(module, "act", None)) is NewGELUActivation:
            module.act = TrainingGelu()

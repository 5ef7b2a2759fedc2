"""PEFT's `add_weighted_adapter` for adapters that hold the fusion layer.

PEFT combines what adapters add to the base model's matrices, but not layers that train as a whole, such as the fusion
layer. If two adapters hold such a layer, PEFT refuses to combine them. If only one does, the new adapter gets an
untrained layer, without a message.

Here, what an adapter adds to the fusion layer is the difference between its copy of the layer and the base model's
layer. PEFT's own functions combine these differences, by the method that the call names.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper, merge_utils
from torch import Tensor, nn


def add_weighted(
    tuner: Any,
    fusion: ModulesToSaveWrapper,
    adapters: Sequence[str],
    weights: Sequence[float],
    *args: Any,
    **kwargs: Any,
) -> None:
    """Call `tuner.add_weighted_adapter(adapters, weights, ...)`, and combine the fusion layers of the adapters as well.

    The new adapter's layer is the base model's plus the combined differences. If the weights sum up to 1 and the
    `combination_type` is "svd", "cat" or "linear", that is the weighted mean of the layers.

    Args:
        tuner: PEFT's tuner, the `base_model` of a `PeftModel`.
        fusion: The fusion layer with the adapters' copies.
        adapters: Names of the adapters.
        weights: One factor per adapter.
        *args, **kwargs: Further arguments of the tuner's method, first the new adapter's name.

    Raises:
        ValueError: The adapters scale their vectors differently.
    """
    # PEFT copies the config of the first adapter, so an adapter that holds the layer has to come first.
    pairs = sorted(zip(adapters, weights, strict=True), key=lambda pair: pair[0] not in fusion.modules_to_save)
    names, factors = [name for name, _ in pairs], [weight for _, weight in pairs]
    call = inspect.signature(tuner.add_weighted_adapter).bind(names, factors, *args, **kwargs)
    call.apply_defaults()
    copies = [fusion.modules_to_save[name] for name in names if name in fusion.modules_to_save]
    _check_equal_scales(copies)
    with _hidden_from_check(tuner, fusion):
        tuner.add_weighted_adapter(*call.args, **call.kwargs)
    weighted_copies = [
        (fusion.modules_to_save[name], weight) for name, weight in pairs if name in fusion.modules_to_save
    ]
    if weighted_copies:
        _combine(fusion, call.arguments["adapter_name"], weighted_copies, _combining_function(call.arguments))


def _check_equal_scales(copies: Sequence[nn.Module]) -> None:
    """Check that copies of the fusion layer scale vectors alike. Otherwise, their weights cannot be combined.

    Raises:
        ValueError: They do not.
    """
    for copy in copies[1:]:
        if not all(map(torch.equal, copies[0].buffers(), copy.buffers())):
            raise ValueError(
                "the adapters' fusion layers scale their vectors differently, because `fit_fusion` was called with "
                "different rows; expected equal scales. Combine adapters that were fitted to the same rows, or use "
                "kinds with `scale=None`."
            )


@contextmanager
def _hidden_from_check(tuner: Any, fusion: ModulesToSaveWrapper) -> Iterator[None]:
    """Hide the adapters' copies of the fusion layer from PEFT's check, which refuses a layer that two adapters hold."""
    check, copies = tuner._check_add_weighted_adapter, fusion.modules_to_save

    def check_other_layers(*args: Any, **kwargs: Any) -> Any:
        fusion.modules_to_save = nn.ModuleDict()
        try:
            return check(*args, **kwargs)
        finally:
            fusion.modules_to_save = copies

    tuner._check_add_weighted_adapter = check_other_layers
    try:
        yield
    finally:
        del tuner._check_add_weighted_adapter


def _combining_function(arguments: dict[str, Any]) -> Callable[[list[Tensor], Tensor], Tensor]:
    """Return the function of PEFT that combines differences, tensors of one shape, by the method that a call names.

    Args:
        arguments: The arguments of PEFT's `add_weighted_adapter`.
    """
    method = str(arguments.get("combination_type", "linear")).removesuffix("_svd")
    if len(arguments["adapters"]) == 1 or method in ("linear", "cat", "svd"):
        return merge_utils.task_arithmetic
    sign = {"majority_sign_method": arguments["majority_sign_method"]} if method.endswith("ties") else {}
    return partial(getattr(merge_utils, method), density=arguments["density"], **sign)


@torch.no_grad()
def _combine(
    fusion: ModulesToSaveWrapper, adapter_name: str, weighted_copies: list[tuple[nn.Module, float]], combine: Callable
) -> None:
    """Set the fusion layer of an adapter to the base model's plus the combined differences of other adapters' copies.

    Args:
        fusion: The fusion layer with the adapters' copies.
        adapter_name: Name of the adapter whose layer is set.
        weighted_copies: The copies to combine, each with its factor.
        combine: The function that combines a list of differences, given a tensor of factors.
    """
    device = fusion.original_module.norm.weight.device
    factors = torch.tensor([weight for _, weight in weighted_copies], device=device)
    trained_parameters = zip(*(copy.parameters() for copy, _ in weighted_copies), strict=True)
    new, base = fusion.modules_to_save[adapter_name].parameters(), fusion.original_module.parameters()
    for target, start, trained in zip(new, base, trained_parameters, strict=True):
        # Assigning `data` keeps the precision of the copies. `copy_` would round to the new layer's precision.
        target.data = start + combine([value - start for value in trained], factors)
    scales = weighted_copies[0][0].buffers()
    for scale_number, equal_number in zip(fusion.modules_to_save[adapter_name].buffers(), scales, strict=True):
        scale_number.copy_(equal_number)

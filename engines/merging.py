"""Merge an adapter into a copy of a model."""

import copy
import warnings
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def merged_copy(model: nn.Module) -> Any:
    """Return a copy of a fused model with its adapter merged into its weights; without an adapter, the model itself.

    Raises:
        ValueError: The adapter cannot be merged.
    """
    tuned = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    if not tuned and not isinstance(model, PeftModel):
        return model
    model = copy.deepcopy(model)
    try:
        with warnings.catch_warnings():  # The embeddings of a FLAN-T5 were never tied.
            warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
            if isinstance(model, PeftModel):
                return model.merge_and_unload()
            for name in tuned:  # transformers attached the adapter, without a `PeftModel`.
                layer: Any = model.get_submodule(name)
                layer.merge()
                model.set_submodule(name, layer.get_base_layer())
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        cause = str(error) or type(error).__name__
        raise ValueError(f"the adapter cannot be merged into the model's weights ({cause})") from error
    return model

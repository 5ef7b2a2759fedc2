"""`get_base_model_state_dict` and `set_base_model_state_dict` of PEFT, for prompt learning on a fused model.

With prompt learning, both functions assume that the base model has no wrapped layers. But PEFT has wrapped the fusion
layer, which trains with the adapter (docs/upstream/base_state_of_prompt_learning.py). So the functions get an object
that looks like a model with an adapter of a different type. For such a model, they look for wrapped layers.
"""

from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace

import peft
import peft.utils
import peft.utils.save_and_load

from .peft_hook import has_fusion
from .switches import PEFT, is_on

FUNCTIONS = ("get_base_model_state_dict", "set_base_model_state_dict")
MODULES = (peft, peft.utils, peft.utils.save_and_load)  # each has both names


def _wrap(function: Callable) -> Callable:
    """Return one of the functions, wrapped for prompt learning on a fused model."""

    @wraps(function)
    def wrapped(model, *args, **kwargs):
        if is_on(PEFT) and model._is_prompt_learning and has_fusion(model.base_model):
            beneath = SimpleNamespace(model=model.base_model)
            model = SimpleNamespace(_is_prompt_learning=False, base_model=beneath)
        return function(model, *args, **kwargs)

    return wrapped


def register() -> None:
    """Wrap both functions under each name that PEFT gives them."""
    for name in FUNCTIONS:
        wrapped = _wrap(getattr(peft, name))
        for module in MODULES:
            setattr(module, name, wrapped)

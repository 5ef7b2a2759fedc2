"""What t5fusion does inside PEFT, on fused models only: the fusion layer trains, and is saved, with every adapter.

PEFT does the same for the classification heads that it knows, and has no place where a model could name layers of its
own (docs/upstream/layers_that_train_with_an_adapter.py). So five methods of PEFT are wrapped when `t5fusion` is
imported. All but the last act on models with a fusion layer, and leave all others to PEFT:

- `BaseTuner.inject_adapter` and `PeftModel.add_adapter` (prompt tuning and its like) put "fusion" into a new adapter's
  `modules_to_save`.
- `PeftModel.save_pretrained` refuses to save an adapter that a reload would put on another model.
- `BaseTuner._replace_module` puts the trained layer in its place when adapters are merged or unloaded: PEFT itself
  looks for a `weight` on it, and the fusion layer has several.
- `PeftConfig.from_pretrained` marks the config: what a saved adapter holds is decided already.

`modules_to_save=[]` in an adapter's config leaves the fusion layer frozen for that adapter. The environment variable
T5FUSION_PEFT_HOOK=0 switches all of this off.
"""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from peft import PeftConfig, PeftModel
from peft.config import PeftConfigMixin
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ..common.permissions import apply_umask
from ..configuration_t5fusion import T5FusionConfig
from ..modeling_t5fusion import LexicalFusion, T5WithFusion
from ..naming_t5fusion import FusedName

FUSION = "fusion"
SWITCH = "T5FUSION_PEFT_HOOK"
SAVED = "t5fusion_read_from_a_saved_adapter"
SAME_MODEL = ("lexical_dim", "lexical_token_id")  # choices without which an adapter's base is another model


def has_fusion(model: nn.Module) -> bool:
    """Whether `model` is a fused model, or its encoder, by its config: remote code has a class of its own."""
    is_fused = getattr(getattr(model, "config", None), "model_type", None) == T5FusionConfig.model_type
    return is_fused and any(name.rpartition(".")[2] == FUSION for name, _ in model.named_modules())


def add_fusion(config: PeftConfig, model: nn.Module) -> None:
    """Put the fusion layer among `modules_to_save` of a new adapter's config, in place, as PEFT does with its heads.

    In place, since a user who loads the adapter with this same config (`PeftModel.from_pretrained(..., config=config)`)
    would else get a model without the trained layer.
    """
    if os.environ.get(SWITCH) == "0" or not has_fusion(model):
        return
    check_same_model(config, model)
    if config.inference_mode or getattr(config, SAVED, False):  # what a saved adapter holds is decided
        return
    if hasattr(model, "loaded_commit"):  # a reload else takes the main branch, whatever that is by then
        config.revision = model.loaded_commit
    if not _names_fusion(config):
        config.modules_to_save = [*(config.modules_to_save or ()), FUSION]


def _names_fusion(config: PeftConfig) -> bool:
    """Whether the config says already what becomes of the fusion layer, or cannot say it."""
    if not hasattr(config, "modules_to_save") or config.modules_to_save == []:
        return True
    targets = getattr(config, "target_modules", None)
    named = [*(config.modules_to_save or ()), *(targets if isinstance(targets, (list, set, tuple)) else ())]
    return any(part in (FUSION, "projection") for name in named for part in name.split("."))


def check_same_model(config: PeftConfig, model: nn.Module) -> None:
    """ValueError if the adapter's base says that it was built with another placeholder, or width, than this model."""
    choices = FusedName.parse(config.base_model_name_or_path).choices
    for name in SAME_MODEL:
        here = getattr(model.config, name)
        if choices.get(name, here) != here:
            raise ValueError(
                f"the adapter was trained on a model whose `{name}` is {choices[name]}, and this model's is {here}. "
                "Load both with `T5WithFusion.from_pretrained(ADAPTER)`, or build the model with "
                f"`{name}={choices[name]}`."
            )


def _wrap_inject(inject: Callable) -> Callable:
    @wraps(inject)
    def inject_adapter(self, model, adapter_name, *args, **kwargs):
        add_fusion(self.peft_config[adapter_name], model)
        return inject(self, model, adapter_name, *args, **kwargs)

    return inject_adapter


def _wrap_add(add: Callable) -> Callable:
    @wraps(add)
    def add_adapter(self, adapter_name, peft_config, *args, **kwargs):
        if peft_config.is_prompt_learning:  # the others come by `inject_adapter`
            add_fusion(peft_config, self.base_model)
        return add(self, adapter_name, peft_config, *args, **kwargs)

    return add_adapter


def _wrap_save(save: Callable) -> Callable:
    @wraps(save)
    def save_pretrained(self, save_directory, safe_serialization=True, selected_adapters=None, *args, **kwargs):
        base = self.get_base_model()
        if isinstance(base, T5WithFusion) and os.environ.get(SWITCH) != "0":
            for adapter in selected_adapters or self.peft_config:
                base.check_reloadable(adapter, self.peft_config[adapter])
            if base.is_resized() and not args:  # PEFT asks the Hub whether it was, and offline takes it that it was not
                kwargs.setdefault("save_embedding_layers", True)
        save(self, save_directory, safe_serialization, selected_adapters, *args, **kwargs)
        if isinstance(base, T5WithFusion):
            # safetensors writes files that only their owner can read
            apply_umask(Path(save_directory), "adapter_model.safetensors")

    return save_pretrained


def _wrap_replace(replace: Callable) -> Callable:
    @wraps(replace)
    def _replace_module(self, parent, child_name, new_module, child):
        if type(new_module).__name__ != LexicalFusion.__name__:  # by its name: remote code has a class of its own
            return replace(self, parent, child_name, new_module, child)
        setattr(parent, child_name, new_module)

    return _replace_module


def _wrap_read(read: classmethod) -> classmethod:
    @wraps(read.__func__)
    def from_pretrained(cls, *args, **kwargs):
        config = read.__func__(cls, *args, **kwargs)
        setattr(config, SAVED, True)
        return config

    return classmethod(from_pretrained)


WRAPS = {
    (BaseTuner, "inject_adapter"): _wrap_inject,
    (PeftModel, "add_adapter"): _wrap_add,
    (PeftModel, "save_pretrained"): _wrap_save,
    (BaseTuner, "_replace_module"): _wrap_replace,
    (PeftConfigMixin, "from_pretrained"): _wrap_read,
}


def register() -> None:
    """Wrap the methods, once."""
    for (owner, name), wrap in WRAPS.items():
        method = vars(owner)[name]
        if getattr(method, "__module__", None) != __name__:
            wrapped = wrap(method)  # type: ignore[operator]
            wrapped.__module__ = __name__
            setattr(owner, name, wrapped)

"""The hook that makes every adapter on a fused model train and save the fusion layer.

PEFT does the same for the classification heads that it knows, but a model cannot name layers of its own
(docs/upstream/layers_that_train_with_an_adapter.py). So two methods of PEFT are wrapped:

- `BaseTuner.inject_adapter` adds "fusion" to a new adapter's `modules_to_save`. Models without a fusion layer are left
  to PEFT, except that they refuse the saved adapter of a fused model. (Prompt tuning does not call this method. There,
  `adapter_class.FusedAdapter.add_adapter` adds "fusion".)
- `PeftConfig.from_pretrained` marks the config that it returns, so that nothing is added to a saved adapter's config.

`modules_to_save=[]` in an adapter's config leaves the fusion layer frozen for that adapter. T5FUSION_PEFT_HOOK=0
switches all of this off.
"""

from collections.abc import Callable
from functools import wraps

from peft import PeftConfig
from peft.config import PeftConfigMixin
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ..configuration_t5fusion import T5FusionConfig
from ..naming_t5fusion import EMBEDDED, FusedName
from .switches import PEFT, is_on

FUSION = "fusion"
READ_MARK = "t5fusion_read_from_a_saved_adapter"  # attribute of a PeftConfig; PEFT never saves it
# An adapter works only with the values of these config fields that it was trained with.
FIXED_BY_TRAINING = ("vectors", "lexical_dim", "lexical_token_id")  # `vectors` also decides `lexical_dim`


def has_fusion(model: nn.Module) -> bool:
    """Return whether `model` is a fused model or its encoder.

    The config decides, not the class, because remote code has classes of its own.
    """
    if getattr(getattr(model, "config", None), "model_type", None) != T5FusionConfig.model_type:
        return False
    return bool(_fusion_layers(model))


def _fusion_layers(model: nn.Module) -> list[nn.Module]:
    """Return the fusion layers of a model: one, or none."""
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] == FUSION]


def add_fusion(config: PeftConfig, model: nn.Module) -> None:
    """Add the fusion layer to `modules_to_save` of a new adapter's config, if the model is a fused model.

    The config is changed in place, as PEFT does for its heads. If a copy were changed, a user who loads the adapter
    with the same object (`PeftModel.from_pretrained(..., config=config)`) would not get the trained layer.

    Raises:
        ValueError: The adapter was trained on a different fused model (`check_same_base`).
    """
    if not is_on(PEFT) or not has_fusion(model):
        return
    check_same_base(config, model)
    if config.inference_mode or getattr(config, READ_MARK, False):  # A saved adapter's config is complete.
        return
    if hasattr(model, "loaded_commit"):  # Without a revision, a reload would take the newest commit.
        config.revision = model.loaded_commit
    if not _decides_fusion(config):
        config.modules_to_save = [*(config.modules_to_save or ()), FUSION]


def _decides_fusion(config: PeftConfig) -> bool:
    """Return whether the config says what happens to the fusion layer, or has no field to say it in."""
    if not hasattr(config, "modules_to_save") or config.modules_to_save == []:
        return True
    targets = getattr(config, "target_modules", None)
    names = [*(config.modules_to_save or ()), *(targets if isinstance(targets, (list, set, tuple)) else ())]
    return any(part in (FUSION, "projection") for name in names for part in name.split("."))


def check_same_base(config: PeftConfig, model: nn.Module) -> None:
    """Check that an adapter was trained with this model's kinds of vectors and placeholder.

    The embedded base models (see `naming_t5fusion.py`) have equal shapes, so they are told apart by name.

    Raises:
        ValueError: The adapter's config records different values, or a different embedded base model.
    """
    base_model, _, choices = FusedName.parse(config.base_model_name_or_path)
    base_model = str(base_model).replace("\\", "/").rpartition("/")[2]  # Earlier code recorded a path.
    own_base = getattr(model.config, "backbone", None)
    if base_model != own_base and {base_model, own_base} <= set(EMBEDDED):
        raise ValueError(
            f"the adapter was trained on the weights of {base_model}, but this model has those of {own_base}. Load "
            "both with `T5WithFusion.from_pretrained(ADAPTER)`, or build the model with "
            f'`T5WithFusion("{base_model}")`.'
        )
    for name in FIXED_BY_TRAINING:
        own_value = getattr(model.config, name)
        if choices.get(name, own_value) != own_value:
            raise ValueError(
                f"the adapter was trained on a model with `{name}` {choices[name]}, but this model has {own_value}. "
                "Load both with `T5WithFusion.from_pretrained(ADAPTER)`, or build the model with "
                f"`{name}={choices[name]}`."
            )


def refuse_without_fusion(config: PeftConfig, model: nn.Module) -> None:
    """Refuse the saved adapter of a fused model on a model that has no place for its fusion layer.

    PEFT would load the rest of the adapter, without a message.

    Raises:
        ValueError: The adapter's config was read from a file and names a fused model as its base.
    """
    name = config.base_model_name_or_path
    is_fused = FusedName.parse(name).base_model != name
    if is_on(PEFT) and getattr(config, READ_MARK, False) and is_fused and not has_fusion(model):
        raise ValueError(
            f"the adapter was trained on the fused model {name}, but a {type(model).__name__} has no fusion layer to "
            "read vectors with. Load both with `T5WithFusion.from_pretrained(ADAPTER)`."
        )


def _wrap_inject(inject: Callable) -> Callable:
    """Return `BaseTuner.inject_adapter`, wrapped so that a new adapter trains the fusion layer."""

    @wraps(inject)
    def inject_adapter(self, model, adapter_name, *args, **kwargs):
        refuse_without_fusion(self.peft_config[adapter_name], model)
        add_fusion(self.peft_config[adapter_name], model)
        if has_fusion(model):
            for fusion in _fusion_layers(model):
                # When most tuners unload a layer, they copy its `weight`. The fusion layer has no weight of this name,
                # and None says that there is nothing to copy.
                fusion.weight = None
        return inject(self, model, adapter_name, *args, **kwargs)

    return inject_adapter


def _wrap_read(read: classmethod) -> classmethod:
    """Return `PeftConfig.from_pretrained`, wrapped so that it marks the config as read from a saved adapter."""

    @wraps(read.__func__)
    def from_pretrained(cls, *args, **kwargs):
        config = read.__func__(cls, *args, **kwargs)
        setattr(config, READ_MARK, True)
        return config

    return classmethod(from_pretrained)


def register() -> None:
    """Wrap `BaseTuner.inject_adapter` and `PeftConfig.from_pretrained`."""
    BaseTuner.inject_adapter = _wrap_inject(BaseTuner.inject_adapter)
    PeftConfigMixin.from_pretrained = _wrap_read(vars(PeftConfigMixin)["from_pretrained"])

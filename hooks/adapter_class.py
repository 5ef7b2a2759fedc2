"""The class of an adapter on a fused model: a subclass of PEFT's own class and of `FusedAdapter`.

PEFT chooses the class of a `PeftModel` by the task type, without regard to the base model. So `PeftModel.__init__` is
wrapped: if the model has a fusion layer, the new object changes its class before it is built, as torch's FSDP and
`parametrize` do with their modules. The methods of `PeftModel` itself are unchanged, so no other model is affected.

With T5FUSION_PEFT_HOOK=0, `add_adapter`, `load_adapter`, `add_weighted_adapter`, `save_pretrained` and
`disable_adapter` do what PEFT's own methods do. With T5FUSION_PUSH_HOOK=0, so do `push_to_hub` and
`create_or_update_model_card`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper

from ..modeling_t5fusion import T5WithFusion
from ..saving_t5fusion import apply_umask
from .peft_hook import FUSION, add_fusion, has_fusion
from .push_hook import name_base_in_card, push_with_code
from .switches import PEFT, PUSH, is_on
from .weighted_adapter import add_weighted

if TYPE_CHECKING:  # Type checkers then know the attributes of the classes that this class is mixed into.
    from peft import PeftModel as Base
else:
    Base = object


class FusedAdapter(Base):
    """The methods in which an adapter on a fused model differs from `PeftModel`; see `fused_adapter_class`."""

    peft_class: type[PeftModel]

    def add_adapter(self, adapter_name, peft_config, *args, **kwargs):
        """Add an adapter that trains the fusion layer too, unless its config says otherwise."""
        if peft_config.is_prompt_learning:  # For all other types, PEFT calls `inject_adapter`, which is wrapped.
            add_fusion(peft_config, self.base_model)
        return super().add_adapter(adapter_name, peft_config, *args, **kwargs)

    def load_adapter(self, model_id, adapter_name, *args, **kwargs):
        """Load as PEFT does, and cast the adapter's fusion layer to the dtype of the base model's.

        With `low_cpu_mem_usage`, PEFT replaces weights by the saved ones, in the dtype that they were saved in. It
        casts only the weights of the tuner.
        """
        result = super().load_adapter(model_id, adapter_name, *args, **kwargs)
        if not kwargs.get("low_cpu_mem_usage") or not is_on(PEFT):
            return result
        for name, layer in self.named_modules():
            is_fusion = isinstance(layer, ModulesToSaveWrapper) and name.endswith(FUSION)
            if is_fusion and adapter_name in layer.modules_to_save:
                layer.modules_to_save[adapter_name].to(layer.original_module.norm.weight.dtype)
        return result

    def add_weighted_adapter(self, adapters, weights, adapter_name, *args, **kwargs):
        """Combine adapters as PEFT does, and their fusion layers in the same way; see `weighted_adapter.py`."""
        tuner, fusion = self.base_model, self.get_base_model().encoder.fusion
        has_copies, is_new_name = isinstance(fusion, ModulesToSaveWrapper), adapter_name not in self.peft_config
        with_fusion = has_copies and is_new_name and is_on(PEFT)  # For a name in use, PEFT does nothing.
        combine = partial(add_weighted, tuner, fusion) if with_fusion else tuner.add_weighted_adapter
        return combine(adapters, weights, adapter_name, *args, **kwargs)

    def save_pretrained(self, save_directory, safe_serialization=True, selected_adapters=None, *args, **kwargs):
        """Save as PEFT does, and the embedding table too if it was resized.

        Raises:
            ValueError: A reload would give a different model (`T5WithFusion.check_reloadable`).
        """
        base = self.get_base_model()
        if isinstance(base, T5WithFusion) and is_on(PEFT):
            with_tables = (args[0] if args else kwargs.get("save_embedding_layers")) is True
            for adapter in selected_adapters or self.peft_config:
                base.check_reloadable(adapter, self.peft_config[adapter], with_tables)
            # PEFT itself asks the Hub for the embedding table's size. Offline, it assumes that nothing was resized.
            if base.is_resized() and not args:
                kwargs.setdefault("save_embedding_layers", True)
        with self._named_as_fused(base):
            super().save_pretrained(save_directory, safe_serialization, selected_adapters, *args, **kwargs)
        is_saved = Path(save_directory).is_dir()  # Only the main process makes the folder.
        if isinstance(base, T5WithFusion) and is_on(PEFT) and is_saved:
            apply_umask(Path(save_directory), "**/adapter_model.safetensors")

    @contextmanager
    def _named_as_fused(self, base: Any) -> Iterator[None]:
        """Give the adapters the fused name of their base model while they are saved.

        A resized model has the plain name of its base model (`T5WithFusion.resize_token_embeddings`). With that name,
        AutoPeft would attach the adapter to a plain T5.
        """
        fused_name = getattr(base, "fused_name", None) if is_on(PEFT) else None
        plain_names = {name: config.base_model_name_or_path for name, config in self.peft_config.items()}
        try:
            for name, config in self.peft_config.items():
                if fused_name and plain_names[name] == base.name_or_path:
                    config.base_model_name_or_path = fused_name
            yield
        finally:
            for name, config in self.peft_config.items():
                config.base_model_name_or_path = plain_names[name]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Disable the adapter as PEFT does. With prompt learning, disable the adapter's fusion layer too.

        With prompt learning, PEFT leaves the layers of `modules_to_save` in use, so the outputs would differ from the
        base model's.
        """
        wrapper = self.get_base_model().encoder.fusion
        is_in_use = isinstance(wrapper, ModulesToSaveWrapper) and not wrapper.disable_adapters
        is_prompt_learning = self.peft_config[self.active_adapter].is_prompt_learning
        with super().disable_adapter():
            if not (is_in_use and is_prompt_learning and is_on(PEFT)):
                yield
                return
            wrapper.enable_adapters(False)
            try:
                yield
            finally:
                wrapper.enable_adapters(True)

    def push_to_hub(self, repo_id, *args, **kwargs):
        """Push as PEFT does, and add the code and the config that load the adapter without this package."""
        return push_with_code(self, super().push_to_hub, repo_id, *args, **kwargs)

    def create_or_update_model_card(self, output_dir, *args, **kwargs):
        """Write the model card as PEFT does, and mend the base model's name, which the Hub would refuse.

        `name_base_in_card` mends it.
        """
        file = Path(output_dir) / "README.md"
        earlier_base = ModelCard.load(file).data.base_model if is_on(PUSH) and file.exists() else None
        super().create_or_update_model_card(output_dir, *args, **kwargs)
        base = self.get_base_model()
        if isinstance(base, T5WithFusion) and is_on(PUSH):
            name_base_in_card(file, base, earlier_base)

    def __reduce_ex__(self, protocol):
        # `copy` and `pickle` look up a class by its name in its module. There they would find PEFT's class, which lacks
        # the methods above. So they get a function that builds this class from PEFT's.
        rebuild, arguments, *state = super().__reduce_ex__(protocol)
        if type(self) is fused_adapter_class(self.peft_class):
            rebuild, arguments = _new_adapter, (self.peft_class,)
        return (rebuild, arguments, *state)


@cache
def fused_adapter_class(peft_class: Any) -> type:
    """Return the subclass of a `PeftModel` class for adapters on fused models. It has the name of that class."""
    fields: dict[str, Any] = {"__module__": peft_class.__module__, "__doc__": peft_class.__doc__}
    fields["peft_class"] = peft_class  # `copy` and `pickle` need it.
    return type(peft_class.__name__, (FusedAdapter, peft_class), fields)


def _new_adapter(peft_class: Any) -> PeftModel:
    """Return an adapter without attributes, which `copy` and `pickle` then fill."""
    return object.__new__(fused_adapter_class(peft_class))


def _wrap_init(init: Callable) -> Callable:
    """Return `PeftModel.__init__`, wrapped so that an adapter on a fused model changes its class first."""

    @wraps(init)
    def __init__(self, model, *args, **kwargs):
        if has_fusion(model) and not isinstance(self, FusedAdapter):
            object.__setattr__(self, "__class__", fused_adapter_class(type(self)))
        init(self, model, *args, **kwargs)

    return __init__


def register() -> None:
    """Wrap `PeftModel.__init__`."""
    PeftModel.__init__ = _wrap_init(PeftModel.__init__)

"""Saving refuses what a reload would not give back: `SavingMixin` gives `T5WithFusion` its `save_pretrained`.

An adapter's folder holds the adapter's weights alone. A reload builds everything else from the base model that the
folder names. So a base model that was changed in memory, by training, by a merge or by hand, would be lost in silence.
"""

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # a mixin of models: a checker may know what they have
    from transformers import PreTrainedModel as Model
else:
    Model = object

ALSO_OPENED_BY = ("AutoModel", "AutoModelForMultimodalLM")
SAMPLES = 64  # numbers of each weight that are compared: training, and merging, change nearly all of them
UNDER_TUNER, UNDER_COPY = ".base_layer.", ".original_module."  # what PEFT puts into the names of weights it wraps
WRAPPED = re.compile(r"\.(base_layer|original_module|token_adapter)\b")  # the same, to take out
KEEPS_BASE = (True, False, "gaussian", "orthogonal")  # starts of LoRA that leave the weight beneath as it was


class SavingMixin(Model):
    """Saving for a `PreTrainedModel` with `encoder.fusion`."""

    def remember_loaded_weights(self) -> None:
        """Keep samples of the weights as a reload would give them, for `check_reloadable` to compare with."""
        self._loaded_samples = {name: _sample(name, value) for name, value in self.named_parameters()}

    def check_reloadable(self, adapter: str | None = None, config=None) -> None:
        """Check that a reload of what is about to be saved gives this model.

        Args:
            adapter: the name of the PEFT adapter that is saved by itself; None where all weights are saved.
            config: the adapter's `PeftConfig`; by default the one that PEFT has put on this model.

        Raises:
            ValueError: the fusion layer is not one that the config describes; or weights that the adapter does not
                hold have changed since they were loaded.
        """
        for fusion in _copies(self.encoder.fusion, adapter):
            _check_layout(fusion, self.config.lexical_dim, self.config.d_model)
        if adapter is None:
            return
        changed = self.changed_weights(adapter, config or self.peft_config[adapter])
        if changed:
            fusion_only = all(".fusion." in name for name in changed)
            remedy = (
                "Put the adapter on without `modules_to_save=[]`, so that it trains and holds the fusion layer, or save"
                if fusion_only
                else "Save"
            )
            raise ValueError(
                f"{len(changed)} weights beneath the adapter {adapter!r}, {changed[0]} among them, are not as they "
                f"were loaded, and the adapter does not hold them: a reload would give another model. {remedy} the "
                "base model by itself first (`T5WithFusion.save_pretrained`), reload it from there, and train the "
                "adapter on that."
            )

    def changed_weights(self, adapter: str, config) -> list[str]:
        """Names of the weights beneath a PEFT adapter that differ from what was loaded and that it does not hold.

        Resized tables are not among them: PEFT saves these with the adapter.
        """
        samples = getattr(self, "_loaded_samples", None)
        if samples is None:  # made from a config, not loaded
            return []
        in_copies = {name for name, module in self.named_modules() if adapter in getattr(module, "modules_to_save", ())}
        merged = {name for name, module in self.named_modules() if getattr(module, "merged", False)}
        tuner_keeps_base = (
            getattr(config.peft_type, "value", config.peft_type) == "LORA" and config.init_lora_weights in KEEPS_BASE
        )
        biases_saved = getattr(config, "bias", "none") != "none"
        changed = []
        for name, value in self.named_parameters():
            then = samples.get(WRAPPED.sub("", name))
            if then is None or (biases_saved and name.endswith("bias")):
                continue
            if UNDER_COPY in name and name.partition(UNDER_COPY)[0] in in_copies:
                continue
            if UNDER_TUNER in name and (not tuner_keeps_base or name.partition(UNDER_TUNER)[0] in merged):
                continue
            if not _same(then, _sample(name, value)):
                changed.append(WRAPPED.sub("", name))
        return changed

    @property
    def loaded_rows(self) -> int:
        """How many rows the embedding table had when the base model was loaded."""
        then = getattr(self, "_loaded_samples", {}).get("shared.weight")
        return self.config.vocab_size if then is None else int(then[-1])

    def is_resized(self) -> bool:
        """Whether the embedding table has another number of rows than the base model was loaded with."""
        return self.loaded_rows != self.config.vocab_size

    def save_pretrained(self, *args, **kwargs):
        """Save as transformers does: the config, the code, and all weights, or those of the active adapter alone.

        Raises:
            ValueError: a reload would give another model, see `check_reloadable`.
        """
        adapters = self.active_adapters() if self._hf_peft_config_loaded else [None]
        for adapter in adapters:
            self.check_reloadable(adapter)
        if adapters != [None] and self.is_resized():
            raise ValueError(
                f"the embedding table was resized to {self.config.vocab_size} rows, and transformers saves an adapter "
                "without it. Put the adapter on with `get_peft_model`, whose `save_pretrained` saves the table too."
            )
        # transformers itself adds only one class, AutoModelForSeq2SeqLM
        self.config.auto_map = dict.fromkeys(ALSO_OPENED_BY, "modeling_t5fusion.T5WithFusion")
        self.config.weights_from_backbone = self.config.adapter_beside = False
        if getattr(self, "hf_quantizer", None) is not None:  # what was packed when it was loaded stays so
            kwargs.setdefault("save_original_format", False)
        kind = type(self)
        if kind.__name__ == "FSDPT5WithFusion":  # torch's own class, made by `fully_shard`: no file that travels has it
            self.__class__ = next(base for base in kind.__mro__ if base.__name__ == "T5WithFusion")
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self.__class__ = kind


def _copies(fusion: Any, adapter: str | None) -> list[nn.Module]:
    """The fusion layers that are about to be saved: the adapter's copy, or the model's own."""
    copies = getattr(fusion, "modules_to_save", None)
    if copies is None:
        return [fusion]
    return [copies[adapter]] if adapter in copies else [fusion.original_module]


def _check_layout(fusion: nn.Module, lexical_dim: int, d_model: int) -> None:
    expected = {"projection.weight": (d_model, lexical_dim), "projection.bias": (d_model,), "norm.weight": (d_model,)}
    shapes = {name: tuple(value.shape) for name, value in fusion.named_parameters()}
    sharded = any(value.numel() == 0 or type(value) is not nn.Parameter for value in fusion.parameters())
    if shapes != expected and not sharded and not any("base_layer" in name for name in shapes):
        differing = sorted(dict(shapes.items() ^ expected.items()))
        raise ValueError(
            f"the fusion layer holds {', '.join(shapes)}; expected {', '.join(expected)} with a projection from "
            f"{lexical_dim} to {d_model} numbers, which is all that a reload can rebuild ({', '.join(differing)} "
            "differ). Put the original layer back, or save the model's class with its own code."
        )


def _sample(name: str, value: Tensor) -> Tensor | None:
    """Some numbers of a weight, all of the fusion layer's, on the CPU; None where it has none that can be compared."""
    if value.is_meta or not value.is_floating_point() or type(value) is not nn.Parameter or value.numel() == 0:
        return None
    flat = value.detach().reshape(-1)
    step = 1 if ".fusion." in name else max(1, len(flat) // SAMPLES)
    # the number of rows with them: a resized table gives another sample
    return torch.cat([flat[::step].float().cpu(), torch.tensor([float(value.shape[0])])])


def _same(then: Tensor | None, now: Tensor | None) -> bool:
    """Whether both are the same numbers, or may be, one of them rounded to half precision since."""
    if then is None or now is None or then.shape != now.shape or then[-1] != now[-1]:
        return True
    return torch.equal(then, now) or any(
        torch.equal(then.to(dtype), now.to(dtype)) for dtype in (torch.bfloat16, torch.float16)
    )


__all__ = ["SavingMixin"]

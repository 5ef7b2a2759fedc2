"""Saving of fused models: `SavingMixin` gives `T5WithFusion` a `save_pretrained` that refuses what a reload would lose.

An adapter's folder holds only the adapter's weights. A reload builds everything else from the base model that the
folder names. So if the base model has changed in memory, by training, by a merge or by hand, a reload would give a
different model, without a message.
"""

import copy
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .kinds_t5fusion import VectorKind, counted
from .samples_t5fusion import LoadedWeights, may_be_same, sample

if TYPE_CHECKING:  # Type checkers then know the attributes of the model that this class is mixed into.
    from transformers import PreTrainedModel as Model
else:
    Model = object

# The fields of config.json that name the code beside it: a class for each Auto class, and the pipeline. (transformers
# itself adds the classes of AutoConfig and AutoModelForSeq2SeqLM.)
AUTO_MAP = {
    "AutoModel": "modeling_t5fusion.T5WithFusion",
    "AutoModelForMultimodalLM": "modeling_t5fusion.T5WithFusion",
    "AutoProcessor": "processing_t5fusion.T5FusionProcessor",
}
CUSTOM_PIPELINES = {
    "text2text-generation": {"impl": "pipeline_t5fusion.T5FusionPipeline", "pt": ["AutoModelForSeq2SeqLM"]}
}
TABLES = ("shared.weight", "lm_head.weight")  # PEFT saves these with an adapter if `save_embedding_layers` is true.
# PEFT puts a mark into the name of a base weight that is inside a tuner's layer, or that an adapter has a copy of.
UNDER_TUNER, UNDER_COPY = ".base_layer.", ".original_module."
PEFT_WRAPPERS = re.compile(r"\.(base_layer|original_module|token_adapter)\b")  # all such marks, to remove them
KEEPS_BASE = (True, False, "gaussian", "orthogonal")  # values of `init_lora_weights` that do not change base weights


class SavingMixin(Model):
    """Saving for a `PreTrainedModel` with `encoder.fusion`."""

    def remember_loaded_weights(self) -> None:
        """Keep samples of the weights as they were loaded. `check_reloadable` compares with them."""
        self._loaded_weights = LoadedWeights(_weights_and_scales(self))

    def check_reloadable(self, adapter: str | None = None, config: Any = None, with_tables: bool = False) -> None:
        """Check that a reload of what is about to be saved gives this model.

        Args:
            adapter: Name of the PEFT adapter that is saved by itself; None if all weights are saved.
            config: The adapter's `PeftConfig`; by default the one in `peft_config`.
            with_tables: Whether the embedding table and the head are saved with the adapter.

        Raises:
            ValueError: The fusion layer differs from what the config describes; or weights that the adapter does not
                hold have changed since they were loaded.
        """
        _check_layout(_saved_fusion(self.encoder.fusion, adapter), self.config.kinds, self.config.d_model)
        if adapter is None:
            return
        changed = self.changed_weights(adapter, config or self.peft_config[adapter])
        if with_tables:
            changed = [name for name in changed if name not in TABLES]
        if changed:
            fusion_only = all(".fusion." in name for name in changed)
            remedy = (
                "Attach the adapter without `modules_to_save=[]`, so that it trains and holds the fusion layer, or save"
                if fusion_only
                else "Save"
            )
            raise ValueError(
                f"the fused model has changed since it was loaded, and the adapter {adapter!r} does not hold "
                f"{counted(len(changed), 'changed weight')}, such as {changed[0]}: a reload would give a different "
                f"model. {remedy} the fused model by itself first (`T5WithFusion.save_pretrained`), reload that "
                "model, and train the adapter on it."
            )

    def changed_weights(self, adapter: str, config: Any) -> list[str]:
        """Return the names of weights that changed since they were loaded and that the PEFT adapter does not hold.

        Resized embedding tables are left out, because PEFT saves them with the adapter.

        Args:
            adapter: Name of the adapter.
            config: Its `PeftConfig`.
        """
        loaded_weights = getattr(self, "_loaded_weights", None)
        if loaded_weights is None:  # The model was built from a config, not loaded.
            return []
        in_copies = {name for name, module in self.named_modules() if adapter in getattr(module, "modules_to_save", ())}
        merged = {name for name, module in self.named_modules() if getattr(module, "merged", False)}
        tuner_keeps_base = _keeps_base(config)
        biases_saved = getattr(config, "bias", "none") != "none"
        changed = []
        for name, value in _weights_and_scales(self):
            loaded_name = PEFT_WRAPPERS.sub("", name)
            if biases_saved and name.endswith("bias"):
                continue
            if UNDER_COPY in name and name.partition(UNDER_COPY)[0] in in_copies:
                continue
            if UNDER_TUNER in name and (not tuner_keeps_base or name.partition(UNDER_TUNER)[0] in merged):
                continue
            if not may_be_same(loaded_weights.sample(loaded_name), sample(name, value)):
                changed.append(loaded_name)
        return changed

    @property
    def loaded_rows(self) -> int:
        """The number of rows (tokens) that the embedding table had when the model was loaded."""
        loaded_weights = getattr(self, "_loaded_weights", None)
        rows = None if loaded_weights is None else loaded_weights.rows("shared.weight")
        return int(self.config.vocab_size if rows is None else rows)

    def is_resized(self) -> bool:
        """Return whether the embedding table was resized since the model was loaded."""
        return bool(self.loaded_rows != self.config.vocab_size)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save the config, the code and the weights: all of them, or those of the active adapters if the model has any.

        Args:
            *args: Positional arguments of [`~transformers.PreTrainedModel.save_pretrained`], first the folder.
            **kwargs: Its keywords.

        Raises:
            ValueError: A reload would give a different model (see `check_reloadable`), or the model has an adapter
                and a resized embedding table.
        """
        adapters = self.active_adapters() if self._hf_peft_config_loaded else [None]
        for adapter in adapters:
            self.check_reloadable(adapter)
        if adapters != [None] and self.is_resized():
            raise ValueError(
                f"the embedding table was resized to {self.config.vocab_size} rows, and transformers saves an adapter "
                "without it. Attach the adapter with `get_peft_model`, whose `save_pretrained` saves the table too."
            )
        name_code(self.config)
        self.config.weights_from_backbone = self.config.adapter_beside = False
        if getattr(self, "hf_quantizer", None) is not None:  # Save quantised weights packed, as they were loaded.
            kwargs.setdefault("save_original_format", False)
        current_class = type(self)
        # `fully_shard` gives the model a class that torch makes, and no saved code file defines it.
        if current_class.__name__ == "FSDPT5WithFusion":
            self.__class__ = next(base for base in current_class.__mro__ if base.__name__ == "T5WithFusion")
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self.__class__ = current_class
        folder = Path(args[0] if args else kwargs["save_directory"])
        if folder.is_dir():  # Processes other than the main one may have written nothing.
            apply_umask(folder, "*.safetensors")


def apply_umask(folder: Path, pattern: str = "**/*") -> None:
    """Give the files that match `pattern` in a folder the permissions that the user's umask asks for.

    safetensors and tempfile write files that only their owner can read, so other users of a shared folder could not
    load the model.
    """
    probe = folder / f".permissions-{os.getpid()}"  # Several processes may save at the same time.
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink(missing_ok=True)
    for file in folder.glob(pattern):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def name_code(config: Any) -> None:
    """Set the fields of a config that name the code files beside it, in place."""
    config.auto_map, config.custom_pipelines = copy.deepcopy((AUTO_MAP, CUSTOM_PIPELINES))


def _keeps_base(config: Any) -> bool:
    """Return whether a tuner is known to leave the base weights unchanged: LoRA with a plain initialisation.

    Any other tuner may change them when it is attached. A reload then changes them in the same way.
    """
    if getattr(config.peft_type, "value", config.peft_type) != "LORA":
        return False
    truncates = getattr(config, "kasa_config", None) is not None  # KaSA drops the smallest singular values
    return config.init_lora_weights in KEEPS_BASE and not truncates


def _saved_fusion(fusion: Any, adapter: str | None) -> Any:
    """Return the fusion layer that is about to be saved: the adapter's copy, or the model's own."""
    copies = getattr(fusion, "modules_to_save", None)
    if copies is None:
        return fusion
    # A ModuleDict has no `get`.
    return copies[adapter] if adapter in copies else fusion.original_module  # noqa: SIM401


def _check_layout(fusion: nn.Module, kinds: Mapping[str, VectorKind], d_model: int) -> None:
    """Check that a reload can rebuild the fusion layer.

    Args:
        fusion: The layer.
        kinds: The config's kinds of vectors by name.
        d_model: The config's width of a token embedding.

    Raises:
        ValueError: The layer's weights differ from those that the config describes, in their names or shapes.
    """
    expected = _described_shapes(kinds, d_model)
    shapes = {name: tuple(value.shape) for name, value in fusion.named_parameters()}
    sharded = any(value.numel() == 0 or type(value) is not nn.Parameter for value in fusion.parameters())
    if shapes != expected and not sharded and not any("base_layer" in name for name in shapes):
        differing = sorted(dict(shapes.items() ^ expected.items()))
        found, wanted = (
            ", ".join(f"{name} {'x'.join(map(str, part[name]))}" for name in differing if name in part) or "none"
            for part in (shapes, expected)
        )
        raise ValueError(
            f"the fusion layer holds weights of these shapes: {found}; expected {wanted}, which a reload can rebuild. "
            "Put the original layer back, or build the model with the `vectors=` or `lexical_dim=` that describe this "
            "layer."
        )


def _described_shapes(kinds: Mapping[str, VectorKind], d_model: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the fusion layer's weights by name, as the config's kinds describe them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for position, (name, kind) in enumerate(kinds.items()):
        projector = "" if position == 0 else f"others.kind_{name}."
        width = kind.tokens * d_model
        layers = [("projection", kind.dim, width)]
        if kind.projector == "mlp":
            hidden = kind.hidden or d_model
            layers = [("projection.0", kind.dim, hidden), ("projection.3", hidden, width)]
        for layer, inputs, outputs in layers:
            shapes |= {f"{projector}{layer}.weight": (outputs, inputs), f"{projector}{layer}.bias": (outputs,)}
        shapes[f"{projector}norm.weight"] = (d_model,)
    return shapes


def _weights_and_scales(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a model, and the statistics of its scales, which are buffers; each with its name."""
    yield from model.named_parameters()
    yield from ((name, value) for name, value in model.named_buffers() if ".fusion." in name)


__all__ = ["SavingMixin"]

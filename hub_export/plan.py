"""Decide what an export writes, before it writes anything."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..common.run_folder import RunFolder
from ..modeling_t5fusion import T5WithFusion
from .base_choice import BaseModel, check_same, choose_base
from .kinds import Kind

Say = Callable[[str], None]


@dataclass(frozen=True)
class ExportPlan:
    """What an export writes.

    Args:
        kind: The kind of the bundle.
        run: The run folder that is exported. For kind "fused", it is the folder of the base model, if it has one.
        trained_on: What is loaded beneath the adapter: the base model of the training. Without an adapter, it is the
            model itself.
        published: The base model that readers get, or None if the bundle needs none and none is on the Hub.
        options: Keywords of `T5WithFusion` that load `trained_on` as it was in training.
    """

    kind: Kind
    run: RunFolder
    trained_on: BaseModel
    published: BaseModel | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def load_fused_model(self) -> T5WithFusion:
        """Load the model beneath the adapter, or the whole model, with the config that readers get.

        Raises:
            ValueError: The base model that readers get has other weights, or the kind cannot be made from it.
            OSError: A base model cannot be loaded.
        """
        fused_model = self.trained_on.load(**self.options)
        if self.published is not None and self.published != self.trained_on:
            check_same(fused_model, self.published.load(**self.options), (self.trained_on, self.published))
        if self.kind == "merged" and getattr(fused_model.config, "quantization_config", None) is not None:
            raise ValueError(
                f"{self.trained_on} is quantised: LoRA folded into it would be rounded away in part. Use --kind "
                "adapter, or standalone."
            )
        if self.kind != "fused" or self.trained_on.is_folder:  # A fused model on the Hub names its base model already.
            fused_model.config.backbone = self.published.name if self.published else None
            fused_model.config.backbone_revision = self.published.revision if self.published else None
        return fused_model


def make_plan(source: str, kind: Kind, base_model: str | None, say: Say) -> ExportPlan:
    """Return the plan for a run folder, or for kind "fused", for a base model.

    Args:
        source: A run folder; for kind "fused", the id or the folder of a T5.
        kind: The kind of the bundle.
        base_model: The user's choice of the base model that readers get.
        say: Function that gets a line about each assumption that cannot be checked.

    Raises:
        ValueError: The folder holds no model of this kind, a file in it is damaged, or readers could not load its base
            model.
        OSError: A base model cannot be loaded.
    """
    if kind == "fused":
        base = BaseModel.parse(source)
        return ExportPlan(kind, RunFolder(base.name), base)
    run = RunFolder(source)
    run.check()
    if not run.has_adapter:
        check_standalone(run, kind)
        return ExportPlan(kind, run, BaseModel(str(run.path)), options=run.load_options)
    trained, published = choose_base(run, base_model, needed=kind == "adapter", say=say)
    options = run.load_options
    if kind == "adapter" and "subfolder" in options:
        raise ValueError(
            f"the adapter was trained on the subfolder {options['subfolder']} of {trained}, and readers of a bundle "
            "get a base model from the root of its repository. Use --kind standalone or merged."
        )
    return ExportPlan(kind, run, trained, published, options)


def check_standalone(run: RunFolder, kind: Kind) -> None:
    """Check that a folder without an adapter holds a whole model, and is to be exported as one.

    Raises:
        ValueError: It holds no model, or the kind needs an adapter.
    """
    if not run.has_config:
        raise ValueError(f"{run} holds neither an adapter nor a model. Name a folder that training has saved.")
    if kind != "standalone":
        raise ValueError(f"{run} holds all weights and no adapter. Use --kind standalone.")

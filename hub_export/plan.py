"""Decide what an export writes, before it writes anything."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..common.run_folder import RunFolder
from ..modeling_t5fusion import T5WithFusion
from ..processing_t5fusion import T5FusionProcessor
from .base_choice import BaseModel, choose_base, load_trained_on
from .kinds import Kind
from .recipe import choose_processor


@dataclass(frozen=True)
class ExportPlan:
    """What an export writes.

    Args:
        kind: The kind of the bundle.
        run: The run folder that is exported. For kind "fused", it is the folder of the base model, if it has one.
        fused_model: The model beneath the adapter, or the whole model, with the config that readers get.
        processor: The processor that readers get.
    """

    kind: Kind
    run: RunFolder
    fused_model: T5WithFusion
    processor: T5FusionProcessor


def make_plan(
    source: str, kind: Kind, base_model: str | None, recipe: dict[str, Any], say: Callable[[str], None]
) -> ExportPlan:
    """Read what is exported, and return the plan.

    Args:
        source: A run folder; for kind "fused", the id or the folder of a T5.
        kind: The kind of the bundle.
        base_model: The user's choice of the base model that readers get.
        recipe: The user's fields of `T5FusionProcessor`, if the run folder holds no processor.
        say: Function that gets a line about each assumption that cannot be checked.

    Raises:
        ValueError: The folder holds no model of this kind; a file in it is damaged; readers would get another model;
            or readers could not make the vectors.
        OSError: A base model or a tokenizer cannot be loaded.
    """
    published, options = None, {}
    if kind == "fused":
        trained_on = BaseModel.parse(source)
        run = RunFolder(trained_on.name)
    else:
        run = RunFolder(source)
        run.check()
        if run.has_adapter:
            trained_on, published = choose_base(run, base_model, needed=kind == "adapter", say=say)
        else:
            check_standalone(run, kind)
            trained_on = BaseModel(str(run.path))
        options = run.load_options
    if kind == "adapter" and "subfolder" in options:
        raise ValueError(
            f"the adapter was trained on the subfolder {options['subfolder']} of {trained_on}, and readers of a bundle "
            "get a base model from the root of its repository. Use --kind standalone or merged."
        )
    fused_model = load_trained_on(trained_on, published, options)
    check_mergeable(fused_model, trained_on, kind)
    if kind != "fused" or trained_on.is_folder:  # A fused model on the Hub names its base model already.
        fused_model.config.backbone = published.name if published else None
        fused_model.config.backbone_revision = published.revision if published else None
    return ExportPlan(kind, run, fused_model, choose_processor(run, trained_on, fused_model, recipe, say))


def check_standalone(run: RunFolder, kind: Kind) -> None:
    """Check that a folder without an adapter holds a whole model, and that it is exported as one.

    Raises:
        ValueError: It holds no model, or the kind needs an adapter.
    """
    if not run.has_config:
        raise ValueError(f"{run} holds neither an adapter nor a model. Name a folder that training has saved.")
    if kind != "standalone":
        raise ValueError(f"{run} holds all weights and no adapter. Use --kind standalone.")


def check_mergeable(fused_model: T5WithFusion, trained_on: BaseModel, kind: Kind) -> None:
    """Check that an adapter can be merged into the weights, if the kind asks for that.

    Raises:
        ValueError: The weights are quantised.
    """
    if kind == "merged" and getattr(fused_model.config, "quantization_config", None) is not None:
        raise ValueError(
            f"{trained_on} is quantised: LoRA merged into it would be rounded away in part. Use --kind adapter, or "
            "standalone."
        )

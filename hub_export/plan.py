"""Decide what an export writes, before it writes anything."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import PeftConfig

from ..common.run_files import ADAPTER_CONFIG
from ..common.run_folder import RunFolder
from ..common.saved_files import ADAPTER_WEIGHTS, one_sentence_errors
from ..modeling_t5fusion import T5WithFusion
from ..processing_t5fusion import T5FusionProcessor
from .base_choice import BaseChoice, BaseModel, choose_base, idle_base_model, load_fused_model
from .kinds import Kind
from .recipe import choose_processor


@dataclass(frozen=True)
class ExportPlan:
    """What an export writes.

    Args:
        kind: The kind of the bundle.
        run: The run folder that is exported. For kind "fused", the base model's folder; if the base model is on the
            Hub, a folder that does not exist, so that each of its files reads as empty.
        fused_model: The adapter's base model, or the whole model, with the config that readers get.
        processor: The processor that readers get.
    """

    kind: Kind
    run: RunFolder
    fused_model: T5WithFusion
    processor: T5FusionProcessor

    @property
    def has_adapter(self) -> bool:
        """Whether the bundle gets the adapter of the run folder, beside the model or merged into it."""
        return self.kind != "fused" and self.run.has_adapter


def make_plan(
    source: str, kind: Kind, base_model: str | None, recipe: dict[str, Any], say: Callable[[str], None]
) -> ExportPlan:
    """Read what is exported, and return the plan.

    Args:
        source: A run folder; for kind "fused", the id or the folder of a T5.
        kind: The kind of the bundle.
        base_model: The user's choice of the base model that readers get of an adapter; None for no choice.
        recipe: The user's fields of `T5FusionProcessor`, if the run folder holds no processor.
        say: Function that gets a line about each assumption that cannot be checked.

    Raises:
        ValueError: The folder holds no model of this kind; a file in it is damaged; `base_model` is given, and no
            adapter is exported; readers would get a different
            model; or readers could not make the vectors.
        OSError: A base model or a tokenizer cannot be loaded.
    """
    if kind == "fused":
        if base_model is not None:
            raise idle_base_model()
        choice = BaseChoice(BaseModel.parse(source))
        run = RunFolder(choice.trained_on.name)
    else:
        run = RunFolder(source)
        check_run(run, kind)
        choice = choose_base(run, base_model, kind, say)
    fused_model = load_fused_model(choice, kind)
    processor = choose_processor(run, choice.trained_on, fused_model, recipe, say)
    return ExportPlan(kind, run, fused_model, processor)


def check_run(run: RunFolder, kind: Kind) -> None:
    """Check that a run folder holds an adapter or a whole model, undamaged, and that it can be exported as this kind.

    Raises:
        ValueError: It holds neither; a file is damaged or missing; the kind needs an adapter; or the adapter cannot be
            merged.
    """
    run.check()
    if run.has_adapter:
        if not any((run.path / name).exists() for name in ADAPTER_WEIGHTS):
            raise ValueError(f"{run} holds {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS[0]}. Copy or save it again.")
        if kind == "merged":
            check_mergeable(run)
    elif not run.has_config:
        raise ValueError(f"{run} holds neither an adapter nor a model. Name a folder that training has saved.")
    elif kind != "standalone":
        raise ValueError(f"{run} holds all weights and no adapter. Use --kind standalone.")


def check_mergeable(run: RunFolder) -> None:
    """Check that an adapter can be merged into the weights of its base model.

    Raises:
        ValueError: The adapter adds inputs instead of changing weights, or its config is damaged.
    """
    with one_sentence_errors(f"the adapter in {run}"):
        config = PeftConfig.from_pretrained(str(run.path))
    if config.is_prompt_learning:
        raise ValueError(
            f"the {config.peft_type.value} adapter in {run} is made of inputs, which cannot be merged into the weights "
            "of a model. Use --kind adapter, or standalone."
        )

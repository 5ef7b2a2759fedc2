"""Write the model of a bundle: its code, its config, and its weights."""

import warnings
from pathlib import Path

import torch
from peft.utils import load_peft_weights
from safetensors.torch import save_file

from ..common.remote_code import write_code
from ..common.run_files import ADAPTER_CONFIG, CONFIG, read_json
from ..common.run_folder import RunFolder, load_adapter
from ..naming_t5fusion import UNPUSHED_BASE
from .manifest import write_json
from .plan import ExportPlan

REMEDY = "Name the base model that it was trained on with --base-model ID."


def write_model(plan: ExportPlan, new_bundle: Path) -> torch.nn.Module:
    """Write code, config and weights, and return the model as readers will have it.

    Raises:
        ValueError: The adapter does not fit the fused model.
    """
    if plan.kind != "merged":
        write_unmerged(plan, new_bundle)
    if not plan.has_adapter:
        return plan.fused_model
    # This changes the fused model in place, which is written by now.
    model = load_adapter(plan.fused_model, plan.run.path, remedy=REMEDY)
    if plan.kind != "merged":
        return model
    with warnings.catch_warnings():  # The embeddings of a FLAN-T5 are untied from the start.
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged = model.merge_and_unload()
    merged.save_pretrained(new_bundle)
    return merged


def write_unmerged(plan: ExportPlan, new_bundle: Path) -> None:
    """Write the fused model and, if there is one, the adapter beside it."""
    if plan.has_adapter:
        write_adapter(plan.run, new_bundle)
    if plan.kind == "adapter":
        write_code(plan.fused_model, new_bundle)
        return
    plan.fused_model.save_pretrained(new_bundle)
    if plan.has_adapter:  # The config says that the adapter belongs on top of these weights.
        write_json(new_bundle / CONFIG, read_json(new_bundle / CONFIG) | {"adapter_beside": True})


def write_adapter(run: RunFolder, new_bundle: Path) -> None:
    """Write the adapter's weights, and its config for readers who do not have this package.

    `push` replaces the name of the base model by the name of the repository.
    """
    weights = load_peft_weights(str(run.path), device="cpu")
    save_file(weights, new_bundle / "adapter_model.safetensors", metadata={"format": "pt"})
    config = run.adapter_config | {"base_model_name_or_path": UNPUSHED_BASE, "revision": None}
    if config.get("task_type") is None:  # PEFT then names a class of this package, which readers do not have.
        config |= {"task_type": "SEQ_2_SEQ_LM", "auto_mapping": None}
    write_json(new_bundle / ADAPTER_CONFIG, config)

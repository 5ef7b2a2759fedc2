"""Reload what `train` saved."""

import json
from pathlib import Path

import torch
from peft import PeftModel

from ..modeling_t5fusion import T5WithFusion
from ..processing_t5fusion import T5FusionProcessor
from .train import RECORD, base_folder


def load_trained(folder: Path) -> tuple[torch.nn.Module, T5FusionProcessor]:
    """The model, in evaluation mode and fp32, and the processor of a folder that `train` wrote.

    Raises:
        OSError: the folder holds no adapter and no model, or no processor, or its base cannot be found.
    """
    adapter = folder / "adapter_config.json"
    if not adapter.exists() and not (folder / "config.json").exists():
        raise OSError(f"{folder} holds neither an adapter nor a model. Name a folder that `t5fusion train` wrote.")
    if not (folder / "processor_config.json").exists():
        raise OSError(f"{folder} holds no processor_config.json. Save the processor with the model.")
    processor = T5FusionProcessor.from_pretrained(folder)
    if adapter.exists():
        base = T5WithFusion(_base_of(folder), lexical_dim=processor.lexical_dim, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, folder)
    else:
        model = T5WithFusion(folder, dtype=torch.float32)
    return model.eval(), processor


def _base_of(folder: Path) -> str:
    """The base that the adapter was trained on; the record knows the embedded one by name, wherever it is now."""
    record = folder / RECORD
    if record.exists():
        return base_folder(json.loads(record.read_text())["options"]["base"])
    return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]

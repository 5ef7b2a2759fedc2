"""Reload what `train` saved."""

import json
from pathlib import Path

import torch
from peft import PeftModel

from ..loading_t5fusion import plain_name
from ..modeling_t5fusion import T5WithFusion
from ..processing_t5fusion import T5FusionProcessor
from .data import MAX_SOURCE, MAX_TARGET
from .train import RECORD, align, base_error, base_folder


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
        try:
            base = T5WithFusion(_base_of(folder), lexical_dim=processor.lexical_dim, dtype=torch.float32)
        except OSError as error:
            raise base_error(_base_of(folder), error) from error
        model = PeftModel.from_pretrained(base, folder)
    else:
        model = T5WithFusion(folder, dtype=torch.float32)
    return align(model).eval(), processor


def trained_limits(folder: Path) -> tuple[int, int]:
    """Most tokens of an input and of a target in training; the defaults where no record tells."""
    options = read_record(folder).get("options", {})
    return options.get("max_source", MAX_SOURCE), options.get("max_target", MAX_TARGET)


def _base_of(folder: Path) -> str:
    """The base that the adapter was trained on; the record knows the embedded one by name, wherever it is now."""
    if read_record(folder).get("options", {}).get("base") == "tiny_t5":
        return base_folder("tiny_t5")
    return plain_name(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])


def read_record(folder: Path) -> dict:
    """What `train` recorded in the folder; empty where it did not."""
    file = folder / RECORD
    return json.loads(file.read_text()) if file.exists() else {}

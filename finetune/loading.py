"""Reload what `train` saved."""

import hashlib
import json
from pathlib import Path

import torch
from huggingface_hub.utils.sha import sha_fileobj
from peft import PeftModel

from ..loading_t5fusion import EMBEDDED, base_in, was_embedded
from ..modeling_t5fusion import T5WithFusion
from ..processing_t5fusion import T5FusionProcessor
from .data import MAX_SOURCE, MAX_TARGET
from .train import RECORD, align, base_error, base_folder


def load_trained(folder: Path) -> tuple[torch.nn.Module, T5FusionProcessor]:
    """The model, in evaluation mode and fp32, and the processor of a folder that `train` wrote.

    Raises:
        OSError: the folder holds no adapter and no model, or no processor, or its base cannot be found.
    """
    has_adapter, has_config = ((folder / name).exists() for name in ("adapter_config.json", "config.json"))
    if not has_adapter and not has_config:
        raise OSError(f"{folder} holds neither an adapter nor a model. Name a folder that `t5fusion train` wrote.")
    if not (folder / "processor_config.json").exists():
        raise OSError(
            f"{folder} holds no processor_config.json. Save one there: T5FusionProcessor(tokenizer, template=...)"
            ".save_pretrained(folder)."
        )
    processor = T5FusionProcessor.from_pretrained(folder)
    if has_config:  # all weights, or a bundle
        return align(T5WithFusion(folder, dtype=torch.float32)).eval(), processor
    base, revision = _base_of(folder)
    try:
        model = T5WithFusion(base, revision=revision or "main", lexical_dim=processor.lexical_dim, dtype=torch.float32)
    except OSError as error:
        raise base_error(base, error) from error
    return align(PeftModel.from_pretrained(model, folder)).eval(), processor


def trained_limits(folder: Path) -> tuple[int, int]:
    """Most tokens of an input and of a target in training; the defaults where no record tells."""
    options = read_record(folder).get("options", {})
    return options.get("max_source", MAX_SOURCE), options.get("max_target", MAX_TARGET)


def _base_of(folder: Path) -> tuple[str, str | None]:
    """The base that the adapter was trained on, and its commit; the embedded one is known by name, wherever it is."""
    if read_record(folder).get("options", {}).get("base") == "tiny_t5":
        return base_folder("tiny_t5"), None
    base, revision = base_in(json.loads((folder / "adapter_config.json").read_text()))
    is_embedded = base == EMBEDDED or was_embedded(base, folder)
    return (base_folder(EMBEDDED), None) if is_embedded else (base, revision)


def trained_digest(folder: Path) -> str:
    """Of the weights, and of how their inputs are made: what an output depends on that the folder's model wrote."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), folder / "processor_config.json"]):
        digest.update(sha_fileobj(file.open("rb")))
    return digest.hexdigest()[:12]


def read_record(folder: Path) -> dict:
    """What `train` recorded in the folder; empty where it did not."""
    file = folder / RECORD
    return json.loads(file.read_text()) if file.exists() else {}

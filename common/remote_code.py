"""The code and the config of a model, without its weights: what makes a folder, beside an adapter, its own base."""

import copy
from pathlib import Path

from transformers.dynamic_module_utils import custom_object_save

from ..modeling_t5fusion import T5WithFusion
from ..saving_t5fusion import ALSO_OPENED_BY


def write_code(model: T5WithFusion, folder: Path) -> None:
    """As `model.save_pretrained(folder)` does, without the weights, which then are those of `config.backbone`."""
    config = copy.deepcopy(model.config)
    config.weights_from_backbone = config.adapter_beside = True
    config.vocab_size = model.loaded_rows  # a table that was resized since lies beside it, in the adapter
    config.architectures = [T5WithFusion.__name__]
    config.auto_map = dict.fromkeys(ALSO_OPENED_BY, f"modeling_t5fusion.{T5WithFusion.__name__}")
    if hasattr(config, "quantization_config"):  # of how it was loaded here, not of the backbone
        del config.quantization_config
    custom_object_save(T5WithFusion.__new__(T5WithFusion), folder, config=config)  # a sharded model is of FSDP's class
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)

"""Write code and config beside an adapter, so that its folder alone loads as a fused model."""

import copy
from pathlib import Path

from transformers.dynamic_module_utils import custom_object_save

from ..modeling_t5fusion import T5WithFusion
from ..saving_t5fusion import name_code


def write_code(model: T5WithFusion, folder: Path) -> None:
    """Write code and config as `model.save_pretrained(folder)` does, but no weights.

    Readers then load the weights of `config.backbone`, and attach the adapter in the folder.
    """
    config = copy.deepcopy(model.config)
    config.weights_from_backbone = config.adapter_beside = True
    config.vocab_size = model.loaded_rows  # If the embedding table was resized, the adapter holds the new one.
    config.architectures = [T5WithFusion.__name__]
    name_code(config)
    if hasattr(config, "quantization_config"):  # It says how the model was loaded here. Readers may choose.
        del config.quantization_config
    # An empty instance takes the place of `model`, because under FSDP the class of `model` is a class of torch.
    custom_object_save(T5WithFusion.__new__(T5WithFusion), folder, config=config)
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)

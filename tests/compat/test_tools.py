"""The checks of tools that are most likely to break."""

import pytest
from compat import tools

FAST = (
    "`torch.export` of the encoder, of any length",
    "`torch.jit.trace`",
    "gradient checkpointing",
    "gradient checkpointing, reentrant",
    "attention: `sdpa`",
    "`torch.save` of the model",
    "safetensors: `save_model`, `load_model`",
    "`torch.func`",
    "`DistributedDataParallel`, one process",
    "`generate`: static cache",
    "`device_map='auto'`, the rest on the disk",
    "accelerate: `cpu_offload`",
    "accelerate: `infer_auto_device_map`",
    "`save_pretrained`: `max_shard_size`",
    "`save_pretrained`: `state_dict`",
    "`AutoModelForSeq2SeqLM.from_config`",
    "`PeftModel.from_pretrained`: `low_cpu_mem_usage`",
    "`Dataset.map`, processor, two workers",
    "`DataLoader`, collator, worker by fork",
)


@pytest.mark.parametrize("row", FAST)
def test_tool(row):
    check, arguments, _ = tools.CHECKS[row]
    check("T5WithFusion", *arguments)


def test_flash_attention_is_refused_by_name():
    with pytest.raises(ValueError, match="T5WithFusion does not support Flash Attention 2 yet"):
        tools.attends("T5WithFusion", "flash_attention_2")

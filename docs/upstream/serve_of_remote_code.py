"""transformers: `transformers serve` does not load classes of remote code, even with `--trust-remote-code`."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import transformers
from transformers import AutoModelForCausalLM
from transformers.cli.serving.model_manager import ModelManager

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class MineConfig(LlamaConfig):
    model_type = "mine"

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig

MineConfig.register_for_auto_class()
MineForCausalLM.register_for_auto_class("AutoModelForCausalLM")
"""

with TemporaryDirectory() as folder:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=16, num_hidden_layers=1, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    mine = {"model_type": "mine", "architectures": ["MineForCausalLM"]}
    mine["auto_map"] = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"}
    Path(folder, "config.json").write_text(json.dumps(config.to_dict() | mine))
    Path(folder, "mine.py").write_text(CODE)
    print(f"transformers {transformers.__version__}: AutoModelForCausalLM:", end=" ")
    print(type(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)).__name__, end="; serve: ")
    try:
        print(type(ModelManager(trust_remote_code=True, device="cpu")._load_model(f"{folder}@main")).__name__)
    except AttributeError as error:
        print(error)

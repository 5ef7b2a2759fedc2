"""accelerate: FSDP2 of a T5 fails at the first step with torch 2.13, because encoder and decoder share a table."""

import os
from importlib.metadata import version

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import T5Config, T5ForConditionalGeneration

os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731", "RANK": "0", "WORLD_SIZE": "1"}
torch.distributed.init_process_group("gloo")
sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
mesh = init_device_mesh("cpu", (1,))
try:  # accelerate.utils.fsdp_utils shards the input embeddings, then the whole model
    fully_shard(model.get_input_embeddings(), mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(input_ids=torch.tensor([[5, 1]]), labels=torch.tensor([[6, 1]])).loss.backward()
    outcome = "a step"
except Exception as error:
    outcome = f"{type(error).__name__}: {error}"
print(f"accelerate {version('accelerate')}, torch {torch.__version__}: {outcome}; expected: a step")
torch.distributed.destroy_process_group()

"""The reference of a bundle: inputs, and the outputs of the trained model for them, which `verify` compares with."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..common.run_files import REFERENCE
from ..processing_t5fusion import T5FusionProcessor
from .reader_check import align, digest, environment, flat_inputs, greedy_outputs

TEXTS = ["app_config", "read_settings of the user", "a"]
KEPT_TOKENS = 64  # number of tokens of the vocabulary whose logits are kept; a digest covers all logits


def write_reference(bundle: Path, model: torch.nn.Module, processor: T5FusionProcessor) -> None:
    """Write inputs, and the outputs that the model gives for them on one thread. `verify` uses one thread too."""
    with one_thread():
        generator = torch.Generator().manual_seed(0)
        vectors = {
            name: torch.nn.functional.normalize(torch.randn(len(TEXTS), kind.dim, generator=generator), dim=-1)
            for name, kind in processor.kinds.items()
        }
        inputs = processor(TEXTS, lexical_embeds=vectors)
        written, logits = greedy_outputs(align(model), dict(inputs))
        columns = torch.linspace(0, logits.shape[-1] - 1, min(KEPT_TOKENS, logits.shape[-1])).long()
        facts = {
            "texts": TEXTS,
            "written": processor.batch_decode(written, skip_special_tokens=True),
            "digest": digest(logits),
            "environment": environment(),
        }
    tensors = {f"inputs.{name}": value for name, value in flat_inputs(inputs).items()}
    tensors |= {"written": written, "columns": columns, "logits": logits.float()[..., columns].contiguous()}
    save_file(tensors, bundle / REFERENCE, metadata={"facts": json.dumps(facts, sort_keys=True)})


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on a single thread, because the last bit of a product depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

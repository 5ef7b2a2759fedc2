"""Reference inputs and outputs: what the trained model gave, for `verify` to compare with."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..processing_t5fusion import T5FusionProcessor
from .reader_check import align, digest, environment, outputs

REFERENCE = "reference.safetensors"
TEXTS = ["app_config", "read_settings of the user", "a"]
COLUMNS = 64  # of the vocabulary, whose logits the reference keeps; its digest is of all


def write_reference(new: Path, model: torch.nn.Module, processor: T5FusionProcessor) -> None:
    """Inputs and what the model makes of them, for `verify` to compare with; one thread, as there."""
    with one_thread():
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(len(TEXTS), processor.lexical_dim, generator=generator)
        inputs = processor(TEXTS, lexical_embeds=torch.nn.functional.normalize(vectors, dim=-1))
        written, logits = outputs(align(model), dict(inputs))
        columns = torch.linspace(0, logits.shape[-1] - 1, min(COLUMNS, logits.shape[-1])).long()
        facts = {
            "texts": TEXTS,
            "written": processor.batch_decode(written, skip_special_tokens=True),
            "digest": digest(logits),
            "environment": environment(),
        }
    tensors = {f"inputs.{name}": value for name, value in inputs.items()}
    tensors |= {"written": written, "columns": columns, "logits": logits.float()[..., columns].contiguous()}
    save_file(tensors, new / REFERENCE, metadata={"facts": json.dumps(facts, sort_keys=True)})


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on a single thread: the last bit of a product depends on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

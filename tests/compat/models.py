"""A small plain T5, a fused model built on it, batches for both, and a clean process for reloading."""

import atexit
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from forks import Forks
from shared_fixtures import KINDS, make_inputs, save_plain
from transformers import PreTrainedModel, T5ForConditionalGeneration

from t5fusion import T5WithFusion

CLASSES: dict[str, type[PreTrainedModel]] = {"T5": T5ForConditionalGeneration, "T5WithFusion": T5WithFusion}
SHAPE = {"d_model": 64, "d_kv": 16, "d_ff": 128}  # multiples of the block sizes of block-wise tuners
CALL = """
import pickle, sys
from pathlib import Path

value = error = None
try:
    function, arguments = pickle.loads(Path(sys.argv[1]).read_bytes())
    value = function(*arguments)
except Exception as raised:
    error = raised
Path(sys.argv[2]).write_bytes(pickle.dumps((value, error)))
"""
KEPT = tempfile.TemporaryDirectory(prefix="t5fusion-compat-")


@cache
def plain_folder() -> Path:
    """Save a plain T5 with an untied head, like FLAN's, and its tokenizer. Return the folder."""
    return save_plain(Path(KEPT.name) / "plain", **KINDS["flan"] | SHAPE)


@cache
def lexical_token_id() -> int:
    return load("T5WithFusion").config.lexical_token_id


def load(model: str, folder: str | Path | None = None, **options) -> PreTrainedModel:
    return CLASSES[model].from_pretrained(folder or plain_folder(), **options).eval()


def batch_for(model: str, vectors=(1, 2), lengths=(6, 3)) -> dict[str, torch.Tensor]:
    """Return rows with different numbers of vectors. The plain T5 gets the same text without vectors."""
    fused = model == "T5WithFusion"
    batch = make_inputs(lexical_token_id(), vectors if fused else (0,) * len(vectors), lengths)
    return batch if fused else {name: value for name, value in batch.items() if name != "lexical_embeds"}


@torch.no_grad()
def logits_of(model: torch.nn.Module, batch: dict[str, torch.Tensor], **options) -> torch.Tensor:
    """Return the logits in evaluation mode.

    Weights are first copied to memory that torch has laid out, because the layout in a file changes the last bit.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    batch = {name: value for name, value in batch.items() if name != "labels"}
    return model.eval()(
        **batch, decoder_input_ids=torch.tensor([[0, 5, 9]] * len(batch["input_ids"])), **options
    ).logits


@cache
def forks() -> Forks:
    forks = Forks(
        Path(KEPT.name), {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, imports="shared_fixtures, peft"
    )
    atexit.register(forks.close)
    return forks


def in_another_process(function: Callable, *arguments):
    """Return what a function of this package returns in a process that has loaded no model yet."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "asked", Path(folder) / "answer"
        asked.write_bytes(pickle.dumps((function, arguments)))
        code, _, stderr = forks().run(asked, answer, code=CALL)
        if not answer.exists():
            raise RuntimeError(f"the process ended with {code}: {stderr[-2000:]}")
        value, error = pickle.loads(answer.read_bytes())
    if error is not None:
        raise error
    return value

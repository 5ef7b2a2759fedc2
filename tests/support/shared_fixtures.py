"""Fixtures: small random T5s saved as plain checkpoints, batches for them, and processes that load what was saved."""

import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer
from transformers.utils import logging as transformers_logging
from warm import warm_python

import t5fusion
from t5fusion.configuration_t5fusion import PLACED_TOKEN_IDS

# The repository's root is the package. pytest would import it a second time, by the folder's name.
sys.modules.setdefault(Path(__file__).parents[2].name, t5fusion)

# pytest adds a handler to each logger that does not propagate. If this one has a handler, torch records every step of
# an export, which then takes three times as long.
logging.getLogger("torch.__trace").propagate = True

torch.set_num_threads(1)  # The last bit of a product depends on it. The processes that tests start use one thread too.

DIM = 384
ROWS = 160  # of the embedding tables; more than there are tokens, as in T5
KINDS = {
    "v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": True},
    "flan": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
HIDE_THE_PACKAGE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "t5fusion":
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by the test)")
sys.meta_path.insert(0, Hidden())
"""


def make_tokenizer():
    """Return T5's tokenizer with a small vocabulary and 100 extra ids."""
    pieces = ["▁Filename", "▁app", "▁settings", *"abcdefghijklmnopqrstuvwxyz_:"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((piece, -3.0) for piece in pieces)]
    return T5Tokenizer(vocab=vocab + [(f"<extra_id_{i}>", 0.0) for i in range(99, -1, -1)], extra_ids=100)


def save_plain(folder, seed=0, **changes):
    """Save a random plain T5 and its tokenizer as checkpoints on the Hub are, with the config's old keys.

    Args:
        folder: The folder to save in. It must not exist.
        seed: Of the random weights.
        **changes: Fields of the config.

    Returns:
        The folder.
    """
    config = T5Config(
        **{"vocab_size": ROWS, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
        | {"decoder_start_token_id": 0}
        | changes
    )
    torch.manual_seed(seed)
    weights = T5ForConditionalGeneration(config).state_dict()
    weights = {name: value.clone() for name, value in weights.items() if "embed_tokens" not in name}
    if changes.get("tie_word_embeddings", True):
        del weights["lm_head.weight"]
    else:
        weights["lm_head.weight"] = torch.randn_like(weights["lm_head.weight"])
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    saved = config.to_dict() | {"tie_word_embeddings": changes.get("tie_word_embeddings", True)}
    del saved["scale_decoder_outputs"]
    (folder / "config.json").write_text(json.dumps(saved | {"architectures": ["T5ForConditionalGeneration"]}))
    make_tokenizer().save_pretrained(folder)
    return folder


def make_inputs(token_id, vectors=(1, 1), lengths=(6, 3), dim=DIM, seed=0):
    """Return a batch padded on the right. A row is a placeholder for each vector, `lengths` tokens and </s>."""
    numbers = torch.Generator().manual_seed(seed)
    longest = max(map(sum, zip(vectors, lengths, strict=True))) + 1
    ids = torch.zeros(len(vectors), longest, dtype=torch.int64)
    lexical = torch.zeros(len(vectors), max(vectors), dim)
    for row, (count, length) in enumerate(zip(vectors, lengths, strict=True)):
        ids[row, :count] = token_id
        ids[row, count : count + length] = torch.randint(3, 35, (length,), generator=numbers)
        ids[row, count + length] = 1
        lexical[row, :count] = torch.randn(count, dim, generator=numbers)
    lexical = torch.nn.functional.normalize(lexical, dim=-1)
    labels = torch.randint(3, 35, (len(vectors), 4), generator=numbers)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "lexical_embeds": lexical,
        "labels": labels,
    }


@pytest.fixture(scope="session")
def plain_folders(tmp_path_factory):
    """Folders of plain T5s by kind: v1.0 (relu, tied head), v1.1 (gated, tied head), flan (gated, untied head)."""
    root = tmp_path_factory.mktemp("plain")
    return {kind: save_plain(root / kind, **changes) for kind, changes in KINDS.items()}


@pytest.fixture(params=list(KINDS))
def plain_folder(request, plain_folders):
    """The folder of a plain T5, of each kind in turn."""
    return plain_folders[request.param]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of a plain T5 with one layer: a base model that tests share and do not change."""
    return save_plain(tmp_path_factory.mktemp("base") / "base", d_model=32, num_layers=1)


@pytest.fixture
def flan(plain_folders):
    """A fused model on the plain checkpoint with an untied head, in evaluation mode."""
    return t5fusion.T5WithFusion(str(plain_folders["flan"])).eval()


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def save_plain_t5():
    """The function `save_plain(folder, seed=0, **changes)`."""
    return save_plain


@pytest.fixture(scope="session")
def inputs_for():
    """`inputs_for(model, vectors=(1, 1), lengths=(6, 3))` returns a batch of random rows for the model."""

    def make(model, *args, **kwargs):
        return make_inputs(model.config.lexical_token_id, *args, dim=model.config.lexical_dim, **kwargs)

    return make


@pytest.fixture(autouse=True)
def forget_placeholder_ids():
    """Forget the ids of `<lexical>` in a test's tokenizers, which the process remembers for error messages."""
    known = set(PLACED_TOKEN_IDS)
    yield
    PLACED_TOKEN_IDS.intersection_update(known)


@pytest.fixture
def logged_messages(caplog):
    """A function that returns all messages that transformers and this package have logged in this test."""
    transformers_logging.warning_once.cache_clear()
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records]
    logger.removeHandler(caplog.handler)


@pytest.fixture
def run_python(tmp_path):
    """A function that runs code in another process, offline, and returns what it printed.

    With `hidden=True`, that process cannot import t5fusion. With `fresh=True`, no module is imported beforehand, for
    tests of the messages of an import.
    """

    def run(code, *args, hidden=False, fresh=False, cwd=tmp_path):
        code = (HIDE_THE_PACKAGE if hidden else "") + textwrap.dedent(code)
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf_home")}
        environment.pop("HF_MODULES_CACHE", None)
        command = [sys.executable if fresh else warm_python(), "-c", code, *map(str, args)]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run

"""`pipeline(model=BUNDLE, trust_remote_code=True)` writes what `t5fusion generate` writes, where t5fusion is not."""

import json

import numpy as np
import pytest
from author import Author
from hub_server import HubServer

BACKBONE = "google/flan-tiny"
NAMES = ["app_config", "a", "settings:b", "readme"]
DIM = 8
MAKE = """
import sys
import torch
from peft import get_peft_model
from t5fusion import T5FusionProcessor, T5WithFusion

base, folder, width = *sys.argv[1:3], int(sys.argv[3])
torch.manual_seed(0)
processor = T5FusionProcessor(base, lexical_encoder=None, lexical_source="given", lexical_dim=width,
                              template="Filename: {text}")
model = T5WithFusion(base, lexical_dim=width)
peft_model = get_peft_model(model, model.lora_config(r=4))
with torch.no_grad():
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    peft_model.base_model.encoder.fusion.modules_to_save.default.norm.weight *= 20
peft_model.save_pretrained(folder), processor.save_pretrained(folder)
"""
READ = """
import json, sys

sys.meta_path.insert(0, type("Hidden", (), {"find_spec": lambda self, name, *_: exec("raise ModuleNotFoundError(name)")
                             if name.partition(".")[0] == "t5fusion" else None})())
from transformers import pipeline

file, *names = sys.argv[1:]
rows = [json.loads(line) for line in open(file)]
for name, _, revision in (name.partition("@") for name in names):
    write = pipeline(model=name, trust_remote_code=True, **({"revision": revision} if revision else {}))
    print(json.dumps(write([{"text": row["name"], "lexical_embeds": row["vector"]} for row in rows], batch_size=2)))
"""


@pytest.fixture(scope="module")
def hub(save_plain_t5, tmp_path_factory):
    """A Hub with a base model of FLAN-T5's kind, with one layer."""
    flan = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_layers": 1}
    with HubServer(tokens={"hf_owner": "me"}) as hub:
        hub.add_folder(BACKBONE, save_plain_t5(tmp_path_factory.mktemp("plain") / "flan", **flan))
        yield hub


@pytest.fixture(scope="module")
def author(hub, tmp_path_factory):
    author = Author(hub, tmp_path_factory.mktemp("author"), busy=True)
    author.python(MAKE, BACKBONE, author.home / "run", DIM)
    vectors = np.random.default_rng(0).standard_normal((len(NAMES), DIM)).round(3).tolist()
    rows = [{"name": name, "vector": vector} for name, vector in zip(NAMES, vectors, strict=True)]
    (author.home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield author
    author.close()


def generated(author, folder):
    """The texts that `t5fusion generate` writes for the rows."""
    output = author.home / f"{folder.name}.jsonl"
    columns = ["--text-column", "name", "--vector-column", "vector"]
    author.t5fusion("generate", folder, "--file", author.home / "rows.jsonl", *columns, "--output", output)
    return [json.loads(line)["output"] for line in output.read_text().splitlines()]


def read(reader, author, *names, **environment):
    """The texts that the pipeline of each folder or repository writes for the rows."""
    out, _ = reader.python(READ, author.home / "rows.jsonl", *names, **environment)
    return [[row["generated_text"] for row in json.loads(line)] for line in out.splitlines()]


@pytest.mark.parametrize("kind", ["adapter", "standalone", "merged"])
def test_from_a_folder_and_from_the_hub(author, hub, tmp_path, kind):
    """By the plain line, for an adapter too: a pushed one names its own repository as its base model."""
    bundle, repo_id = author.home / kind, f"me/{kind}"
    author.t5fusion("export", author.home / "run", bundle, "--kind", kind)
    expected = generated(author, bundle)
    assert len(set(expected)) > 1
    _, told = author.t5fusion("push", bundle, repo_id)
    assert "ok pipeline(model=...), called with texts and vectors: bit for bit" in told
    on_the_hub = repo_id, f"{repo_id}@{hub.repo(repo_id).commits[-1].oid}"
    reader = Author(hub, tmp_path / "reader", token=None)
    assert read(reader, author, bundle, *on_the_hub) == [expected] * 3
    assert read(reader, author, *on_the_hub, HF_HUB_OFFLINE="1") == [expected] * 2


def test_the_untuned_fused_model(author, hub, tmp_path):
    author.t5fusion("export", BACKBONE, author.home / "fused", "--kind", "fused")
    reader = Author(hub, tmp_path / "reader", token=None)
    code = READ.replace('row["vector"]', f"row['vector'] * {384 // DIM}")
    out, _ = reader.python(code, author.home / "rows.jsonl", author.home / "fused")
    assert len(json.loads(out)) == len(NAMES)

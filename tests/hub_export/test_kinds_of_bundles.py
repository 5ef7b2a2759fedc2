"""Bundles of a model that reads several kinds of vectors: exported, verified, pushed, and read without t5fusion."""

import json
import re
import shutil
import textwrap

import pytest
from author import Author
from hub_server import HubServer

BACKBONE = "google/flan-tiny"
MAKE = """
import sys
import torch
from peft import get_peft_model
from t5fusion import T5FusionProcessor, T5WithFusion, VectorKind

base, folder = sys.argv[1:]
torch.manual_seed(0)
image = VectorKind(7, tokens=4, projector="mlp", scale=None)
vectors = {"user": 5, "image": image, "item": {"dim": 3, "tokens": 2, "scale": "log"}}
processor = T5FusionProcessor(base, vectors=vectors, lexical_encoder=None, lexical_source="given")
model = T5WithFusion(base, vectors=vectors)
peft_model = get_peft_model(model, model.lora_config(r=4))
numbers = {name: torch.randn(50, kind.dim) * 1000 + 500 for name, kind in model.config.kinds.items()}
given = [{name: of_kind[row] for name, of_kind in numbers.items()} for row in range(50)]
model.fit_fusion([{"labels": [10, 1], "lexical_embeds": of_row} for of_row in given])
with torch.no_grad():
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    for parameter in peft_model.base_model.encoder.fusion.modules_to_save.default.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
peft_model.save_pretrained(folder), processor.save_pretrained(folder)
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
    author.python(MAKE, BACKBONE, author.home / "run")
    yield author
    author.close()


@pytest.mark.parametrize(("kind", "options"), [("adapter", ()), ("standalone", ("--format", "onnx")), ("merged", ())])
def test_every_loading_path_gives_the_trained_model(author, kind, options):
    author.t5fusion("export", "run", kind, "--kind", kind, *options)
    report, _ = author.t5fusion("verify", kind)
    assert "ok pipeline(model=...), called with texts and vectors: bit for bit" in report
    assert "ok AutoModelForSeq2SeqLM: bit for bit" in report
    assert "with a vector of 5 and one of 7 and one of 3 numbers" in report  # in the order of the config
    assert ("ok ONNX graphs" in report) == bool(options)
    assert ("ok T5WithFusion(base model).load_adapter: bit for bit" in report) == (kind != "merged")


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_a_smaller_adapter_loads_by_every_path(author, kind):
    shutil.copytree(author.home / "run", author.home / f"run of {kind}")
    numbers = dict.fromkeys(("rows", "held_out_rows", "trainable_weights", "weights", "seconds"), 1)
    record = json.dumps({"options": {}, "versions": {}, **numbers})  # `train` writes it.
    (author.home / f"run of {kind}" / "training.json").write_text(record)
    author.t5fusion("shrink", f"run of {kind}", f"small {kind}", "--rank", "2", "--dtype", "float16")
    author.t5fusion("export", f"small {kind}", f"bundle of small {kind}", "--kind", kind)
    report, _ = author.t5fusion("verify", f"bundle of small {kind}")
    assert "ok AutoModelForSeq2SeqLM: bit for bit" in report
    assert ("ok PeftModel" in report) == (kind == "adapter") and "NO " not in report


def test_the_card_of_a_pushed_bundle_lists_the_kinds_and_runs(author, hub, tmp_path):
    author.t5fusion("export", "run", "pushed")
    printed, _ = author.t5fusion("push", "pushed", "me/kinds")
    card = hub.repo("me/kinds").files()["README.md"].decode()
    assert printed.splitlines()[1].strip() == 'pip install torch "transformers>=5.0" "peft>=0.21.2"'
    assert printed.splitlines()[1].strip() in card.splitlines()
    assert "| `image` | 7 | 4 | mlp |" in card and "| `user` | 5 | 1 | linear |" in card
    reader = Author(hub, tmp_path / "reader", token=None)
    of_push = textwrap.dedent(printed.partition("and in Python:\n")[2])
    for example in [of_push, *re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[:2]]:
        assert '"image": torch.randn(1, 7)' in example
        written, _ = reader.python(f"import torch; torch.manual_seed(0)\n{example}")
        assert written.strip()


def test_a_processor_of_other_kinds_is_refused(author):
    code = MAKE.replace('"item": {"dim": 3, "tokens": 2}}', '"item": 3}', 1)
    code = code.replace(
        "model = T5WithFusion(base, vectors=vectors)", 'model = T5WithFusion(base, vectors=vectors | {"item": 4})'
    )
    author.python(code, BACKBONE, author.home / "other")
    _, error = author.t5fusion("export", "other", "refused", expect=1)
    assert "the processor has the vectors [{'name': 'user'" in error and "Save the processor that was used" in error

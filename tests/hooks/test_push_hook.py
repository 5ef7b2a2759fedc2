"""An adapter that the Trainer or PEFT pushes loads in one line, without this package.

The Hub is a server on the loopback interface, and the real client talks to it.
"""

import json
import os
import re
import shutil
import subprocess

import pytest
from forks import Forks
from hub_server import HubServer, card_errors
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file
from shared_fixtures import HIDE_THE_PACKAGE
from warm import warm_python

from t5fusion.hooks.push_hook import is_hub_id

BACKBONE = "google/flan-tiny"
PUSH = """
import sys
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, T5ForConditionalGeneration, Trainer, TrainingArguments
from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion

kind, base, out = sys.argv[1:]
torch.manual_seed(0)
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(base)
processor = T5FusionProcessor(tokenizer, lexical_encoder=None, lexical_source="given", template="Filename: {text}")
row = {**tokenizer("Filename: app_config"), "labels": tokenizer("settings").input_ids}
row |= {"lexical_embeds": [0.05] * 384} if kind != "plain T5" else {}
lora = {"r": 4, "target_modules": ["q", "v"]}


def make():
    if kind == "plain T5":
        return get_peft_model(T5ForConditionalGeneration.from_pretrained(base), LoraConfig(**lora))
    model = T5WithFusion(base)
    if kind == "adapter of transformers":
        model.add_adapter(LoraConfig(**lora))
        return model
    return get_peft_model(model, model.lora_config(**lora))


trainer = Trainer(
    model_init=make,  # called when the Trainer is built, and again when it trains
    args=TrainingArguments(
        out, push_to_hub=True, save_strategy="steps", save_steps=3, max_steps=3, learning_rate=0.1, report_to=[]
    ),  # the repository is named after `out`, and belongs to the owner of the token
    train_dataset=Dataset.from_list([row] * 4),
    data_collator=DataCollatorForSeq2Seq(tokenizer) if kind == "plain T5" else DataCollatorWithFusion(tokenizer),
    processing_class=tokenizer if kind == "plain T5" else processor,
)
trainer.train()  # pushes once, at the third step
trainer.save_model(out + "-saved")
rows = trainer.data_collator([row, row])
torch.save((dict(rows), trainer.model.eval()(**rows).logits.detach()), out + ".expected.pt")
"""
PUSH_BY_THEMSELVES = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, T5ForConditionalGeneration
from t5fusion import DataCollatorWithFusion, T5WithFusion

base = sys.argv[1]
torch.manual_seed(0)
torch.set_num_threads(1)
lora = LoraConfig(r=4, target_modules=["q", "v"], init_lora_weights=False)
tokenizer = AutoTokenizer.from_pretrained(base)
by_peft, by_transformers = get_peft_model(T5WithFusion(base), lora), T5WithFusion(base)
by_transformers.add_adapter(lora)
rows = DataCollatorWithFusion(tokenizer)([{**tokenizer("app"), "labels": [5, 1], "lexical_embeds": [0.05] * 384}] * 2)
for name, model in (("by_peft", by_peft), ("by_transformers", by_transformers)):
    model.push_to_hub(name, commit_message="mine")
    tokenizer.push_to_hub(name)
    torch.save((dict(rows), model.eval()(**rows).logits.detach()), name + ".expected.pt")
    model.save_pretrained(name + "-saved")
get_peft_model(T5ForConditionalGeneration.from_pretrained(base), lora).push_to_hub("plain_by_peft")
"""
COMPARE = """
import sys, torch

torch.set_num_threads(1)
rows, expected = torch.load(sys.argv[2])
for parameter in model.parameters():
    parameter.data = parameter.data.clone()
assert torch.equal(model.eval()(**rows).logits, expected), "other logits"
"""
IMPORTS = """
import sys
from peft import AutoPeftModelForSeq2SeqLM
from transformers import AutoModelForSeq2SeqLM, AutoProcessor
"""
READ = """
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert processor(["app_config"], lexical_embeds=[[0.05] * 384])["input_ids"][0, 0] == 135
"""
EXPORT = """
import json, sys
from t5fusion.hub_export.bundle import export

for source, bundle, base_model in json.loads(sys.argv[1]):
    try:
        export(source, bundle, base_model=base_model)
    except ValueError as error:
        print(error)
"""
READERS = {
    "AutoModelForSeq2SeqLM": "model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True)",
    "AutoPeftModel": "model = AutoPeftModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True)",
}


class Machine:
    """A separate machine: a folder with its own caches, and a token. With `busy`, code runs in forks if it can."""

    def __init__(self, hub, folder, token=None, busy=False):
        self.folder, self.environment = folder, os.environ | {"OMP_NUM_THREADS": "1"} | hub.environment(folder, token)
        folder.mkdir(exist_ok=True)
        self.forks = Forks(folder, self.environment) if busy else None

    def run(self, code, *arguments, **environment):
        return subprocess.run(
            [warm_python(), "-W", "ignore", "-c", code, *map(str, arguments)], cwd=self.folder,
            env=self.environment | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def python(self, code, *arguments, **environment):
        if self.forks is not None and not environment:  # The libraries read variables when they are imported.
            status, out, err = self.forks.run(*arguments, code=code)
            assert status == 0, err[-3000:]
            return out
        done = self.run(code, *arguments, **environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def hub(plain_folders):
    with HubServer(tokens={"hf_owner": "me"}) as hub:
        hub.add_folder(BACKBONE, plain_folders["flan"])
        yield hub


@pytest.fixture(scope="module")
def author(hub, tmp_path_factory):
    """The machine on which the Trainer ran and pushed "pushed"."""
    author = Machine(hub, tmp_path_factory.mktemp("author"), "hf_owner", busy=True)
    author.python(PUSH, "fused", BACKBONE, "pushed")
    yield author
    author.forks.close()


@pytest.mark.parametrize("reader", READERS)
def test_a_pushed_adapter_loads_in_one_line_without_the_package(hub, author, tmp_path, reader):
    code = HIDE_THE_PACKAGE + IMPORTS + READ + READERS[reader] + COMPARE
    Machine(hub, tmp_path).python(code, "me/pushed", author.folder / "pushed.expected.pt")


LOAD = """
import sys
from t5fusion import T5WithFusion
try:
    model = T5WithFusion.from_pretrained(sys.argv[1])
except OSError as error:
    sys.exit(str(error))
print(model.name_or_path)
"""


@pytest.mark.parametrize("lacks", ["adapter_config.json", "model.safetensors"])
def test_a_file_that_is_not_cached_is_not_missing(hub, author, lacks):
    """Otherwise an adapter would load as its untuned base model, and a fully trained model as a plain T5."""
    name = f"me/without-{lacks.partition('.')[0]}"
    if lacks == "model.safetensors":
        whole = "import sys\nfrom t5fusion import T5WithFusion\nT5WithFusion(sys.argv[1]).save_pretrained(sys.argv[2])"
        author.python(whole, BACKBONE, "whole")
        hub.add_folder(name, author.folder / "whole")
    else:
        hub.add_repo(name, hub.repo("me/pushed").files())
    fetch = "import sys\nfrom huggingface_hub import hf_hub_download\nhf_hub_download(sys.argv[1], 'config.json')"
    author.python(fetch, name)  # the base model is in this cache too
    done = author.run(LOAD, name, HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and lacks in done.stderr


MOVING = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from t5fusion import T5WithFusion

model = T5WithFusion("google/moving")
get_peft_model(model, LoraConfig(r=4, target_modules=["q", "v"])).save_pretrained("moved")
save_file({"shared": model.shared.weight.contiguous()}, "shared.safetensors")
print(model.config.backbone_revision)
"""


def test_a_base_model_that_changes_on_the_hub_while_it_loads(hub, author, plain_folders, save_plain_t5, tmp_path):
    """Config and weights come from one commit, and an adapter names that commit."""
    first = hub.add_folder("google/moving", plain_folders["flan"])
    other = save_plain_t5(tmp_path / "other", seed=1, feed_forward_proj="gated-gelu", tie_word_embeddings=False)

    def move(method, path):
        if "tokenizer" in path and len(first.commits) == 1:  # after the config, before the weights
            first.commit({"model.safetensors": (other / "model.safetensors").read_bytes()})

    hub.before = move
    commit = author.python(MOVING).strip()
    hub.before = None
    assert len(first.commits) == 2 and commit == first.commits[0].oid != first.find("main").oid
    expected = load(first.files(commit)["model.safetensors"])["shared.weight"]
    assert load_file(author.folder / "shared.safetensors")["shared"].equal(expected)
    name = Machine(hub, tmp_path / "elsewhere").python(LOAD, author.folder / "moved").strip()
    assert name == f"T5WithFusion(google/moving@{commit})"
    author.python(EXPORT, json.dumps([("moved", str(tmp_path / "bundle"), None)]))
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert (config["backbone"], config["backbone_revision"]) == ("google/moving", commit)


def test_a_pushed_adapter_is_small_and_names_its_own_repository(hub, author):
    files = hub.repo("me/pushed").files()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/pushed"
    config = json.loads(files["config.json"])
    assert (config["model_type"], config["backbone"]) == ("t5_fusion", BACKBONE)
    assert config["backbone_revision"] == hub.repo(BACKBONE).find("main").oid
    assert "model.safetensors" not in files
    assert str(author.folder).encode() not in b"".join(data for name, data in files.items() if name.endswith(".json"))


def test_a_checkpoint_loads_without_a_network(author):
    shutil.rmtree(author.folder / "hub" / "models--me--pushed", ignore_errors=True)  # PEFT would read its config
    code = "import sys\nfrom t5fusion import T5WithFusion\nmodel = T5WithFusion(sys.argv[1])" + COMPARE
    author.python(code, "pushed/checkpoint-3", author.folder / "pushed.expected.pt", HF_HUB_OFFLINE="1")


def test_the_folders_of_a_pushed_training_can_be_exported(author, tmp_path):
    sources = {"pushed": "one", "pushed/checkpoint-3": "two", "pushed-saved": "three"}
    exports = [(source, str(tmp_path / bundle), None) for source, bundle in sources.items()]
    printed = author.python(EXPORT, json.dumps([*exports, ("pushed-saved", str(tmp_path / "none"), "me/pushed")]))
    for bundle in sources.values():
        assert json.loads((tmp_path / bundle / "config.json").read_text())["backbone"] == BACKBONE
    printed = re.sub("@[0-9a-f]{40}", "", printed)
    assert printed == "me/pushed holds an adapter. Name the base model of that adapter with --base-model ID.\n"


def test_an_adapter_that_transformers_added_is_pushed(hub, author, tmp_path):
    author.python(PUSH, "adapter of transformers", BACKBONE, "natively")
    code = HIDE_THE_PACKAGE + IMPORTS + READ + READERS["AutoModelForSeq2SeqLM"] + COMPARE
    Machine(hub, tmp_path).python(code, "me/natively", author.folder / "natively.expected.pt")


@pytest.fixture(scope="module")
def pushed_by_themselves(author):
    author.python(PUSH_BY_THEMSELVES, BACKBONE)


@pytest.mark.parametrize("name", ["by_peft", "by_transformers"])
def test_push_to_hub_without_a_trainer(hub, author, pushed_by_themselves, tmp_path, name):
    code = HIDE_THE_PACKAGE + IMPORTS + READERS["AutoModelForSeq2SeqLM"] + COMPARE
    Machine(hub, tmp_path).python(code, f"me/{name}", author.folder / f"{name}.expected.pt")
    assert "mine" in [commit.title for commit in hub.repo(f"me/{name}").commits]
    fused = f"T5WithFusion({BACKBONE}@{hub.repo(BACKBONE).find('main').oid})"
    saved = author.folder / f"{name}-saved"  # only the pushed copy names its own repository
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == fused
    assert not (saved / "config.json").exists()


@pytest.mark.parametrize("name", ["plain", "plain_by_peft"])
def test_a_plain_t5_is_pushed_unchanged(hub, author, pushed_by_themselves, name):
    if name == "plain":
        author.python(PUSH, "plain T5", BACKBONE, name)
    files = hub.repo(f"me/{name}").files()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BACKBONE
    assert "config.json" not in files and not [name for name in files if name.endswith(".py")]


def test_without_the_push_hook_nothing_is_added(hub, author, pushed_by_themselves):
    author.python(PUSH_BY_THEMSELVES.replace('"by_', '"off_by_'), BACKBONE, T5FUSION_PUSH_HOOK="0")
    for name in ("off_by_peft", "off_by_transformers"):
        files = hub.repo(f"me/{name}").files()
        base = json.loads(files["adapter_config.json"])["base_model_name_or_path"]
        assert base.startswith(f"T5WithFusion({BACKBONE}@")
        assert "config.json" not in files
        if name == "off_by_peft":  # transformers itself saves the code of a class, even beside an adapter
            assert not [file for file in files if file.endswith(".py")]


def test_a_local_base_model_stays_named(hub, author, plain_folders):
    author.python(PUSH, "fused", plain_folders["flan"], "local")
    files = hub.repo("me/local").files()
    base = json.loads(files["adapter_config.json"])["base_model_name_or_path"]
    assert base == f"T5WithFusion({plain_folders['flan']})" and "config.json" not in files


CARD = """
import sys
from peft import LoraConfig, get_peft_model
from t5fusion import T5WithFusion

base, out = sys.argv[1:]
model = get_peft_model(T5WithFusion(base), LoraConfig(r=4, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"))
model.save_pretrained(out)
"""


def card_of(text):
    """Check that the Hub accepts a card. Return its base model, the tags about that, and its text."""
    assert card_errors(text) == []
    card = ModelCard(text)
    based_on = [tag for tag in card.data.tags or [] if tag.startswith("base_model:")]
    return card.data.base_model, based_on, card.text


def test_cards_name_the_base_model_or_nothing(hub, author, pushed_by_themselves, plain_folders):
    """The cards that PEFT and the Trainer write, in saved folders and in pushed repositories."""
    author.python(CARD, BACKBONE, "card-of-hub")
    author.python(CARD, plain_folders["flan"], "card-of-folder")
    for repository in ("local", "natively"):
        if f"me/{repository}" not in hub.repos:
            kind = {"local": "fused", "natively": "adapter of transformers"}[repository]
            author.python(PUSH, kind, plain_folders["flan"] if repository == "local" else BACKBONE, repository)
    tags = [f"base_model:adapter:{BACKBONE}"]
    cards = {name: (author.folder / name / "README.md").read_text() for name in ("card-of-hub", "card-of-folder")}
    for name in ("pushed", "by_peft", "local", "natively", "plain_by_peft"):
        cards[name] = hub.repo(f"me/{name}").files()["README.md"].decode()
    parsed = {name: card_of(text) for name, text in cards.items()}
    for name in ("card-of-hub", "pushed"):
        assert parsed[name][:2] == (BACKBONE, tags), name
    for name in ("card-of-folder", "local", "by_peft", "plain_by_peft"):  # transformers pushes a card without names
        assert parsed[name][:2] == (None, []), name
    assert parsed["natively"][:2] == (BACKBONE, [])
    for name, text in cards.items():
        assert "T5WithFusion(" not in text and str(plain_folders["flan"]) not in text, name


def test_a_card_keeps_the_words_of_its_user(author, plain_folders):
    folder = author.folder / "worded"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: google/flan-t5-small\n---\n# Mine\n")
    author.python(CARD, plain_folders["flan"], folder)
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.base_model) == ("mit", "google/flan-t5-small") and "# Mine" in card.text


def test_a_folder_whose_name_looks_like_an_id_is_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("runs/base")
    (tmp_path / "runs" / "base").mkdir(parents=True)
    assert not is_hub_id("runs/base") and not is_hub_id(str(tmp_path))

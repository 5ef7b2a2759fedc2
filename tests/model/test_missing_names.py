"""A name that is neither a folder nor a repository within reach: one sentence, wherever it is passed."""

import json
import os

import pytest
from author import Author
from hub_server import HubServer

from t5fusion import T5WithFusion

DOORS = """
import json, sys
from t5fusion import T5FusionProcessor, T5WithFusion
from t5fusion.finetune import load_trained

doors = {
    "from_pretrained": T5WithFusion.from_pretrained,
    "model": T5WithFusion,
    "processor": T5FusionProcessor.from_pretrained,
    "tokenizer": T5FusionProcessor,
    "load_trained": load_trained,
}
name, keywords, doors_tried = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:] or doors
errors = {}
for door in doors_tried:
    try:
        doors[door](name, **keywords)
    except OSError as error:
        errors[door] = [str(error), str(error.__cause__)]
print(json.dumps(errors))
"""
LOADERS = ("from_pretrained", "model", "processor", "tokenizer")


@pytest.fixture(scope="module")
def hub():
    with HubServer(tokens={"hf_owner": "me"}) as hub:
        yield hub


@pytest.fixture
def errors(hub, tmp_path):
    """A function that returns what each door raises for a name: the message, and that of its cause."""
    author = Author(hub, tmp_path / "author")

    def ask(name, *doors, keywords=(), **environment):
        return json.loads(author.python(DOORS, name, json.dumps(dict(keywords)), *doors, **environment)[0])

    return ask


def test_unknown_to_the_hub(errors):
    told = errors("nosuch/out")
    for door in LOADERS:
        message, cause = told[door]
        assert message == (
            "there is no folder nosuch/out, and the Hub has no repository of this name, or it is private and your "
            "token may not see it. Check the name; for a private repository, log in with `hf auth login`, or pass "
            "`token=`."
        ), door
        assert "nosuch/out" in cause and cause != message, door
    message = told["load_trained"][0]
    assert message.startswith(
        "there is no folder nosuch/out. As a repository on the Hub, it cannot be read: there is no repository nosuch"
    )
    assert message.endswith("Check the name. Log in with `hf auth login`, or set HF_TOKEN.")


def test_offline(errors):
    told = errors("nosuch/out", HF_HUB_OFFLINE="1")
    for door in (*LOADERS, "load_trained"):
        assert told[door][0] == (
            "there is no folder nosuch/out. If it is a repository on the Hub: this machine's cache does not hold it, "
            "and HF_HUB_OFFLINE is set. Check the path, or unset HF_HUB_OFFLINE."
        ), door


def test_local_files_only(errors):
    told = errors("nosuch/out", *LOADERS[:3], keywords={"local_files_only": True})
    for door in LOADERS[:3]:
        assert told[door][0].endswith("and `local_files_only` is set. Check the path, or unset `local_files_only`.")


def test_the_hub_does_not_answer(errors, hub):
    hub.fault("nosuch/away", status=520, times=float("inf"))  # The client tries again after most other codes.
    told = errors("nosuch/away", *LOADERS)
    for door in LOADERS:
        message, _ = told[door]
        assert message.startswith("there is no folder nosuch/away, and the Hub could not be reached for a repository")
        assert message.endswith(". Check the path, or the network.") and "520" in message and "\n" not in message


def test_no_valid_id(errors):
    told = errors("no such")
    for door in LOADERS:
        assert told[door][0] == (
            "there is no folder no such. Check the path, or name a repository on the Hub, OWNER/NAME."
        ), door
    assert "no such is not a folder; expected a folder" in told["load_trained"][0]


def test_errors_of_repositories_that_exist_are_those_of_transformers(errors, hub, base):
    """Where the name is right, the sentence about a missing folder would mislead."""
    hub.add_folder("you/gated", base)
    hub.repo("you/gated").gated = True
    for message, _ in errors("you/gated", "model", "processor").values():
        assert "gated repo" in message
    hub.add_folder("me/base", base)
    told = errors("me/base", "model", keywords={"revision": "v9"})
    assert "v9 is not a valid git identifier" in told["model"][0]
    assert errors("me/base", "model", "tokenizer") == {}


def test_load_trained_takes_the_id_of_a_repository(hub, tmp_path, base):
    author = Author(hub, tmp_path / "author")
    code = """
import sys
from t5fusion import T5FusionProcessor, T5WithFusion
model = T5WithFusion(sys.argv[1], lexical_dim=8)
model.save_pretrained(sys.argv[2])
T5FusionProcessor(sys.argv[1], lexical_dim=8).save_pretrained(sys.argv[2])
"""
    author.python(code, base, tmp_path / "fused")
    hub.add_folder("me/fused", tmp_path / "fused")
    loaded, _ = author.python(
        "from t5fusion.finetune import load_trained; print(*(type(part).__name__ for part in load_trained('me/fused')))"
    )
    assert loaded.split() == ["T5WithFusion", "T5FusionProcessor"]


def test_a_folder_of_checkpoints_names_the_newest(tmp_path):
    """It is the output folder of a Trainer whose user forgot to save the model."""
    with pytest.raises(ValueError, match=r"neither config.json nor adapter_config.json; expected a saved model\.$"):
        T5WithFusion.from_pretrained(tmp_path)
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (step, step))
    with pytest.raises(ValueError, match="Name a checkpoint in it, such as .*checkpoint-10"):
        T5WithFusion.from_pretrained(tmp_path)

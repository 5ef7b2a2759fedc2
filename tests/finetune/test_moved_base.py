"""A base model on the Hub that gets another commit while a training is interrupted."""

import json
import shutil

import torch
from author import Author
from hub_server import HubServer
from safetensors.torch import load_file
from training_folder import fill_training_folder
from transformers import AutoTokenizer

TRAIN = [
    "train", "rows.jsonl", "--validation", "held_out.jsonl", "--base-model", "me/base", "--text-column", "name",
    "--target-column", "text", "--vector-column", "vector", "--precision", "fp32", "--batch-size", "8",
    "--epochs", "2",
]  # fmt: skip
# The process sends itself Ctrl-C in the last step of the first epoch. Training then resumes with the same bits.
INTERRUPTED = """
import signal
from transformers import TrainerCallback
from t5fusion.finetune import training
from t5fusion.cli.app import main

class Send(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            signal.raise_signal(signal.SIGINT)

class Sent(training.FusionTrainer):
    def __init__(self, *args, callbacks, **kwargs):
        super().__init__(*args, callbacks=[*callbacks, Send()], **kwargs)

training.FusionTrainer = Sent
main()
"""


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_resumed_training_stays_at_its_commit(save_plain_t5, tmp_path):
    """Other weights on the main branch do not reach it, and neither does a tokenizer that splits texts otherwise."""
    room = fill_training_folder(tmp_path / "room", save_plain_t5, lambda row, a: f"settings of {a}")
    other = save_plain_t5(tmp_path / "other", seed=1, d_model=32, num_layers=1)
    with HubServer() as hub:
        hub.add_folder("me/base", room / "base")
        repo = hub.repo("me/base")
        commit = repo.commits[-1].oid
        author = Author(hub, tmp_path / "author", token=None)
        author.t5fusion(*TRAIN, "--output", "whole", cwd=room)
        author.python(INTERRUPTED, *TRAIN, "--output", "weights", cwd=room, expect=130)
        shutil.copytree(room / "weights", room / "tokenizer")
        repo.commit(files_of(other))
        author.t5fusion(*TRAIN, "--output", "weights", "--resume", cwd=room)
        tokenizer = AutoTokenizer.from_pretrained(other)
        tokenizer.add_tokens(["app", "of"])
        tokenizer.save_pretrained(other)
        repo.commit(files_of(other))
        author.t5fusion(*TRAIN, "--output", "tokenizer", "--resume", cwd=room)
        assert len({each.oid for each in repo.commits}) == 3
    whole = load_file(room / "whole" / "adapter_model.safetensors")
    for resumed in (room / "weights", room / "tokenizer"):
        assert json.loads((resumed / "training.json").read_text())["base_revision"] == commit
        assert f"me/base@{commit}" in (resumed / "adapter_config.json").read_text()
        weights = load_file(resumed / "adapter_model.safetensors")
        assert whole.keys() == weights.keys() and all(torch.equal(whole[name], weights[name]) for name in whole)
        for name in ("tokenizer.json", "processor_config.json"):
            assert (resumed / name).read_bytes() == (room / "whole" / name).read_bytes()

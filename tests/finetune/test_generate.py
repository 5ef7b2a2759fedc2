"""Odd tables, cut texts, comparisons, and resuming with other options, on a random T5."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from warm import warm_python

from t5fusion import T5FusionProcessor
from t5fusion.common.console import is_first_process, say
from t5fusion.common.losses import Losses, paired_bootstrap
from t5fusion.common.run_folder import load_trained, trained_limits
from t5fusion.finetune.data import have_text
from t5fusion.finetune.evaluation import change_vectors, evaluate
from t5fusion.finetune.files import load_rows
from t5fusion.finetune.inputs import prepare
from t5fusion.finetune.options import TrainingOptions
from t5fusion.finetune.training import train
from t5fusion.finetune.vector_cache import encode_cached

DIM = 8


@pytest.fixture(scope="module")
def rows(processor):
    vectors = torch.randn(12, DIM, generator=torch.Generator().manual_seed(0))
    return prepare([f"app_{n}" for n in "abcdefghijkl"], [f"the {n}" for n in "abcdefghijkl"], vectors, processor)


@pytest.fixture(scope="module")
def options(base):
    def make(**changes):
        return TrainingOptions(**{"base_model": str(base), "epochs": 1, "precision": "fp32", "max_target": 5} | changes)

    return make


@pytest.fixture(scope="module")
def trained(rows, processor, options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train(rows[:8], rows[8:], processor, options(), folder)


def test_words_that_look_like_missing_values_or_numbers_stay_text_in_a_csv(tmp_path):
    words = ["None", "NA", "null", "nan", "007", "1.50", "true", ""]
    (tmp_path / "rows.csv").write_text("name\n" + "\n".join(f'"{word}"' for word in words) + "\n")
    assert load_rows(str(tmp_path / "rows.csv"))["name"][:] == words


def test_a_column_of_numbers_is_refused_and_not_taken_for_empty(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"name": 1, "parts": [1]}\n')
    table = load_rows(str(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match="column 'name' holds values of type int64; expected text"):
        have_text(table, ["name"])
    with pytest.raises(ValueError, match="column 'parts' holds values of type list; expected text"):
        have_text(table, ["parts"])


def test_cut_texts_are_counted_and_texts_that_just_fit_are_not(processor, capsys):
    targets = ["abc", "abcd", "abcdefg"]  # with "▁" and </s> five, six and nine tokens
    lengths = [len(processor.tokenizer(target)["input_ids"]) for target in targets]
    prepare(["a"] * 3, targets, None, processor, max_target=lengths[1])
    assert capsys.readouterr().err == f"1 of 3 targets is longer than {lengths[1]} tokens, and is cut.\n"
    prepare(["abcdefg", "b"], None, None, processor, max_source=5)
    assert "1 of 2 inputs is longer than 5 tokens, and is cut." in capsys.readouterr().err


def test_only_the_first_process_prints(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    say("not to be heard")
    assert not is_first_process() and capsys.readouterr().err == ""


def test_a_changed_encoder_encodes_again(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("T5FUSION_CACHE", str(tmp_path / "cache"))
    (tmp_path / "encoder").mkdir()
    weights = tmp_path / "encoder" / "model.safetensors"
    processor, asked = T5FusionProcessor(tokenizer, lexical_encoder=str(tmp_path / "encoder"), lexical_dim=2), []
    monkeypatch.setattr(T5FusionProcessor, "encode", lambda self, texts, **_: asked.append(texts) or torch.ones(1, 2))
    for content in ("one", "one", "another"):
        if not weights.exists() or weights.read_text() != content:
            weights.write_text(content)
        encode_cached(["a"], processor)
    assert asked == [["a"], ["a"]]


def test_shuffling_needs_two_rows_with_vectors(rows):
    bare = [{name: value for name, value in row.items() if name != "lexical_embeds"} for row in rows]
    with pytest.raises(ValueError, match="1 of 12 rows has a vector; expected two or more to shuffle"):
        change_vectors([rows[0], *bare[1:]], "shuffled")
    changed = change_vectors([rows[0], *bare[1:11], rows[11]], "shuffled")
    assert torch.equal(changed[0]["lexical_embeds"], rows[11]["lexical_embeds"])
    assert ["lexical_embeds" in row for row in changed] == [True, *[False] * 10, True]


def test_losses_of_different_rows_are_not_compared():
    a = Losses(np.ones(3), np.array([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="not of the same rows"):
        paired_bootstrap(a, Losses(np.ones(3), np.array([1.0, 2.0, 4.0])))


def test_evaluate_scores_against_the_whole_reference(trained, rows, processor):
    _, model = trained
    measures, losses = evaluate(model, processor, rows, ["the a"] * 12, "none", max_new_tokens=4)
    assert measures["rows"] == 12 and measures["loss"] == losses.mean and len(losses.sums) == 12
    assert evaluate(model, processor, rows, ["the a"] * 12, "true", max_new_tokens=4)[0]["loss"] != measures["loss"]


def test_the_limits_of_the_training_are_recorded(trained, tmp_path):
    assert trained_limits(trained[0]) == (128, 5)
    assert trained_limits(tmp_path) == (128, 64)


def test_resuming_with_other_options_is_refused(trained, rows, processor, options):
    with pytest.raises(ValueError, match="with other settings: dropout was 0.05, now 0.5; rows was 8, now 7"):
        train(rows[:7], rows[8:], processor, options(dropout=0.5), trained[0], resume=True)


def test_a_missing_base_model_is_named(trained, tmp_path):
    folder = trained[0]
    config = json.loads((folder / "adapter_config.json").read_text())
    for file in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_text((folder / file).read_text())
    gone = str(tmp_path / "gone")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": gone}))
    with pytest.raises(OSError, match=r"^the base model .*gone cannot be loaded \(") as caught:
        load_trained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Run `t5fusion` in a folder, in a process of its own."""
    place = tmp_path_factory.mktemp("place")
    caches = {
        "HF_HOME": str(place / "hf"),
        "T5FUSION_CACHE": str(place / "cache"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "150",
    }

    def run(*words, typed=""):
        line = [warm_python(), "-m", "t5fusion", *map(str, words)]
        return subprocess.run(
            line, cwd=place, env=os.environ | caches, input=typed, capture_output=True, text=True, timeout=180
        )

    run.place = place
    return run


def test_a_folder_with_other_files_is_left_alone(command):
    mine = command.place / "mine"
    (mine / "checkpoints").mkdir(parents=True)
    (mine / "thesis.tex").write_text("years of work")
    done = command("demo", "--output", "mine", "--limit", "5")
    assert done.returncode == 1 and "mine holds files that the demo did not write" in done.stderr
    assert (mine / "thesis.tex").read_text() == "years of work"


def test_evaluate_compares_conditions(trained, command):
    vectors = torch.randn(6, DIM, generator=torch.Generator().manual_seed(1)).tolist()
    lines = [json.dumps({"name": f"app_{i}", "text": "the a", "vector": v}) for i, v in enumerate(vectors)]
    (command.place / "rows.jsonl").write_text("\n".join(lines))
    words = ["evaluate", trained[0], "rows.jsonl", "--text-column", "name", "--target-column", "text"]
    done = command(*words, "--vector-column", "vector", "--vectors", "all", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert set(printed) == {"true", "shuffled", "none", "worth_of_vectors"}
    worth = printed["worth_of_vectors"]["none"]
    assert worth["difference"] == pytest.approx(printed["none"]["loss"] - printed["true"]["loss"])
    assert worth["low"] <= worth["difference"] <= worth["high"]

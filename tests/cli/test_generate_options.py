"""Options of `generate` that concern chance, and texts that are typed."""

import json
import os
import pty
import shutil
import subprocess

import pytest
from forks import Forks
from warm import warm_python

from t5fusion import T5WithFusion
from t5fusion.common.base_models import make_processor
from t5fusion.common.next_commands import after_generate
from t5fusion.finetune.decoding import seed_of_chunk
from t5fusion.finetune.streaming import CHUNK

SAMPLE = ["--set", "do_sample=true", "--max-new-tokens", "5"]
GENERATE = ["generate", "model", "--no-vectors"]
NEXT = "Next: t5fusion export model bundles/model --kind standalone\n"


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    """A folder with an untuned model, and more texts than a chunk."""
    room = tmp_path_factory.mktemp("options")
    odd = {"initializer_factor": 2.0, "vocab_size": 127, "tie_word_embeddings": False}
    base = str(save_plain_t5(room / "base", seed=1, d_model=32, num_layers=1, **odd))
    T5WithFusion(base, lexical_dim=8).save_pretrained(room / "model")
    make_processor(base, lexical_encoder=None, lexical_dim=8, lexical_source="given").save_pretrained(room / "model")
    (room / "rows.txt").write_text("".join(f"app_{row}\n" for row in range(CHUNK + 20)))
    return room


@pytest.fixture(scope="module")
def commands(room):
    commands = Forks(room)
    yield commands
    commands.close()


def test_generate_ends_with_theafter_generate(room, commands):
    words = [*GENERATE[2:], "--max-new-tokens", "2", "app"]
    shutil.copytree(room / "model", room / "a run")
    (room / "a run" / "training.json").write_text(json.dumps({"source": {"data": "rows.jsonl"}}))
    code, out, err = commands.run("generate", "a run", *words)
    assert code == 0 and err == "Next: t5fusion evaluate 'a run'\n" and len(out.splitlines()) == 1
    (room / "a run" / "evaluation.json").write_text("{}")
    code, _, err = commands.run("generate", "a run", *words, "--output", "next.jsonl")
    export = "t5fusion export 'a run' 'bundles/a run' --kind standalone"
    assert code == 0 and err == f"1 row is in next.jsonl.\nNext: {export}\n"
    (room / "a run" / "t5fusion.json").write_text("{}")
    assert commands.run("generate", "a run", *words)[2] == "Next: t5fusion verify 'a run'\n"
    assert after_generate("me/it") == "t5fusion evaluate me/it DATA --text-column COLUMN --target-column COLUMN"


def outputs(printed):
    return [json.loads(line)["output"] for line in printed.splitlines()]


def test_a_seed_gives_the_same_texts_in_one_run_or_two(room, commands):
    words = [*GENERATE, "--file", "rows.txt", *SAMPLE]
    code, first, err = commands.run(*words)
    assert code == 0, err
    assert outputs(first) == outputs(commands.run(*words, "--seed", "42")[1])
    assert outputs(first) != outputs(commands.run(*words, "--seed", "43")[1])
    assert outputs(first)[:CHUNK] != outputs(first)[20:]
    texts = ["same"] * 9
    assert len(set(outputs(commands.run(*GENERATE, *SAMPLE, *texts)[1]))) > 1
    assert len(set(outputs(commands.run(*GENERATE, "--max-new-tokens", "5", *texts)[1]))) == 1
    file = room / "made.csv"
    assert commands.run(*words, "--output", file.name)[0] == 0
    whole = file.read_bytes()
    assert whole.splitlines()[1:] == [",".join(json.loads(line).values()).encode() for line in first.splitlines()]
    file.rename(room / "whole.csv")
    (room / "made.csv.partial").write_text("".join(first.splitlines(True)[:300]))  # as a killed run leaves it
    assert "300 of them from before" in commands.run(*words, "--output", file.name)[2]
    assert file.read_bytes() == whole


def test_each_chunk_has_a_seed_of_its_own():
    assert len({seed_of_chunk(seed, first) for seed in (0, 1, CHUNK) for first in (0, 1, CHUNK)}) == 9


def test_an_output_records_settings_and_seed(room, commands):
    words = [*GENERATE, "--file", "rows.txt", "--limit", "3", "--output", "set.jsonl"]
    assert commands.run(*words, *SAMPLE, "--set", "top_k=5")[0] == 0
    record = json.loads((room / "set.jsonl.made-with").read_text())
    assert (record["do_sample"], record["top_k"], record["seed"]) == (True, 5, 42)
    code, _, err = commands.run(*words, *SAMPLE, "--set", "top_k=6", "--seed", "1")
    assert code == 1 and "was started with other settings: top_k was 5, now 6; seed was 42, now 1." in err
    code, _, err = commands.run(*words, "--max-new-tokens", "5")
    assert code == 1 and "do_sample was True, now None; top_k was 5, now None; seed was 42, now None." in err
    for damaged in ("{", "[]"):
        (room / "set.jsonl.made-with").write_text(damaged)
        code, _, err = commands.run(*words, *SAMPLE)
        assert code == 1 and "set.jsonl.made-with is damaged, and no other file records what the texts of" in err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["temprature=0.5"], "`generate` takes no setting `temprature`; did you mean `temperature`?"),
        (["x=1"], "`generate` takes no setting `x`; expected one of do_sample, "),
        (["num_beams=2"], "`num_beams` is not a setting: the option `num_beams` sets it. Pass that option (--beams on"),
        (["do_sample=yes"], "the setting `do_sample` is 'yes'; expected true or false."),
        (["top_k=true", "do_sample=true"], "the setting `top_k` is True; expected a whole number."),
        (["temperature=0.5"], "`temperature` has no effect without do_sample=true."),
        (["temperature=0.5", "top_p=0.9"], "`temperature` and `top_p` have no effect without do_sample=true."),
        (["temperature"], "--set temperature has no value; expected NAME=VALUE, such as --set temperature=0.7."),
        (["top_k=1", "top_k=2"], "--set top_k was given twice."),
        (["do_sample=true", "temperature=-1"], "`temperature` (=-1) has to be a strictly positive float"),
    ],
)
def test_settings_are_checked_by_name_and_type(commands, settings, sentence):
    code, out, err = commands.run(*GENERATE, "app", *(word for each in settings for word in ("--set", each)))
    assert code == 1 and out == "" and err.startswith(f"t5fusion: {sentence}") and len(err.splitlines()) == 1


def test_a_text_that_is_typed_is_answered_at_once(room, commands):
    keyboard, terminal = pty.openpty()
    line = [warm_python(), "-m", "t5fusion", *GENERATE, "--max-new-tokens", "2"]
    pipes = {"stdin": terminal, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=room, env=commands.environment, text=True, **pipes) as process:
        os.close(terminal)
        os.write(keyboard, b"app\n")
        assert json.loads(process.stdout.readline())["text"] == "app"  # before standard input ends
        os.write(keyboard, b"settings\n\x04")
        out, err = process.communicate(timeout=120)
    os.close(keyboard)
    assert process.returncode == 0 and json.loads(out)["text"] == "settings"
    assert err.splitlines()[0] == "Type a text and press Enter; Ctrl-D ends."


def test_nothing_is_said_of_typing_where_texts_come_from_a_pipe(room, commands):
    line = [warm_python(), "-m", "t5fusion", *GENERATE, "--max-new-tokens", "2"]
    done = subprocess.run(line, cwd=room, env=commands.environment, input="app\n", capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == NEXT and json.loads(done.stdout)["text"] == "app"

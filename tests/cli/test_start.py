"""How the program starts: what it imports before its arguments are known to be good, and Ctrl-C meanwhile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "accelerate", "datasets", "numpy", "pandas", "peft", "pyarrow", "scipy", "sentence_transformers", "sklearn",
    "torch", "transformers",
}  # fmt: skip
PROGRAMS = {
    "python -m t5fusion": [sys.executable, "-m", "t5fusion"],
    "t5fusion": [str(Path(sys.executable).with_name("t5fusion"))],
}
COMMANDS = ["demo", "train", "generate", "evaluate", "export", "verify", "push"]
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
    assert "t5fusion" in out + err and (words == ["--version"] or " Usage: t5fusion " in out + err)

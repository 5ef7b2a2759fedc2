"""The scripts and the notebook in examples/, run as a user runs them, in a folder of their own."""

import json
import re
from pathlib import Path

import pytest
from author import Author
from forks import Forks
from hub_server import HubServer

EXAMPLES = Path(__file__).parents[2] / "examples"
ANSWERS = "['It configures the application.', 'It sends a mail to a list of people.']"


def code_of(script):
    """Return code that does what `python examples/SCRIPT` does."""
    path = str(EXAMPLES / script)
    return f"import runpy, sys; sys.path.insert(0, {str(EXAMPLES)!r}); runpy.run_path({path!r}, run_name='__main__')"


def run(script, *arguments, folder):
    """Run a script and return what it prints to standard output."""
    status, out, err = Forks(folder).run(*arguments, code=code_of(script))
    assert status == 0, out + err
    return out


def number(pattern, text):
    return float(re.search(pattern, text)[1])


def test_every_example_is_tested():
    here = Path(__file__).read_text(encoding="utf-8")
    examples = {file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")} - {"colours.py"}
    assert len(examples) >= 9
    assert {name for name in examples if f'"{name}"' not in here} == set()


@pytest.mark.slow
def test_the_six_steps_and_their_result_published_and_loaded(tmp_path):
    """The reader has an empty cache and no token."""
    assert ANSWERS in run("six_steps.py", folder=tmp_path)
    with HubServer(tokens={"hf_owner": "me"}) as hub:
        author, reader = Author(hub, tmp_path / "author"), Author(hub, tmp_path / "reader", token=None)
        out, _ = author.python(code_of("publish.py"), "me/describer", cwd=tmp_path)
        assert "AutoModelForSeq2SeqLM: bit for bit" in out and f"Now at {hub.endpoint}/me/describer" in out
        out, _ = reader.python(code_of("load.py"), "me/describer", cwd=tmp_path)
        assert ANSWERS in out


@pytest.mark.slow
def test_own_vectors(tmp_path):
    assert number(r"(\d+) of 100 new colours", run("own_vectors.py", folder=tmp_path)) > 90


@pytest.mark.slow
def test_kinds_of_vectors(tmp_path):
    """Both kinds count: without the shape, few of the rows can be right."""
    out = run("kinds_of_vectors.py", folder=tmp_path)
    assert number(r"With colour and shape: (\d+) of 50", out) > 40
    assert number(r"With colour: (\d+) of 50", out) < 30


@pytest.mark.slow
def test_several_vectors(tmp_path):
    out = run("several_vectors.py", folder=tmp_path)
    assert "(50, 2, 3)" in out
    assert number(r"(\d+) of 50 new rows", out) > 20


@pytest.mark.slow
def test_many_adapters(tmp_path):
    out = run("many_adapters.py", folder=tmp_path)
    assert "english: blue, yellow, purple, brown, black" in out
    assert "french: bleu, jaune, violet, marron, noir" in out


@pytest.mark.slow
def test_rouge(tmp_path):
    assert number(r"'rougeL': ([\d.]+)", run("rouge.py", folder=tmp_path)) > 0.8


@pytest.mark.slow
def test_hyperparameter_search(tmp_path):
    pytest.importorskip("optuna")
    out = run("hyperparameter_search.py", "2", folder=tmp_path)
    assert re.search(r"loss of [\d.]+, with {'rank': \d+, 'learning_rate': [\d.e-]+}", out)


@pytest.mark.slow
def test_ray_generate():
    """`make compat` runs "ray_generate.py" with more kinds of rows."""
    pytest.importorskip("ray")
    from compat import ray_data

    ray_data.generates("T5WithFusion", ray_data.GIVEN, ".jsonl")


@pytest.mark.slow
def test_the_notebook(tmp_path):
    """Its code cells, run in order in its folder, as Jupyter does. The stored output says the same as this run."""
    notebook = json.loads((EXAMPLES / "colours.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n" + "\n\n".join(cells)
    status, out, err = Forks(tmp_path).run(code=code)
    assert status == 0, err
    stored = "".join(
        "".join(output.get("text", ())) for cell in notebook["cells"] for output in cell.get("outputs", ())
    )
    for pattern in (r"(\d+) of 100 new colours", r"(\d+) of 99 answers name the colour that was given"):
        assert number(pattern, out) > 90 and number(pattern, stored) > 90

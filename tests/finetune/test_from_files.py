"""The Python interface to files: `train_file`, `evaluate_file`, `generate_file`, as they are documented."""

import dataclasses
import json
import subprocess
import textwrap

import pytest
import torch
from warm import warm_python

from t5fusion import finetune
from t5fusion.finetune import (
    Columns,
    Evaluation,
    Recipe,
    TrainingOptions,
    evaluate_file,
    generate_file,
    load_trained,
    train_file,
)

COLUMNS = Columns("filename", "description", vector="vector")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with two files of rows, which have vectors of eight numbers."""
    room = tmp_path_factory.mktemp("files")
    numbers = torch.Generator().manual_seed(0)
    rows = [
        {
            "filename": f"app_{a}{b}",
            "description": f"settings of {a}",
            "vector": torch.randn(8, generator=numbers).tolist(),
        }
        for a in "abcdefgh"
        for b in "stuvw"
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (room / "my.jsonl").write_text("".join(lines))
    (room / "test.jsonl").write_text("".join(lines[:6]))
    return room


@pytest.fixture(scope="module")
def trained(room, base):
    options = TrainingOptions(base_model=str(base), epochs=1, precision="fp32")
    return room / "run", train_file(room / "my.jsonl", COLUMNS, room / "run", options)


def test_the_lines_in_the_documentation_run(room, monkeypatch, capsys):
    """Those of the package's docstring: they train the embedded base model, and use what was trained."""
    monkeypatch.chdir(room)
    blocks = [block for block in finetune.__doc__.split("\n\n") if block.startswith("    ")]
    code = textwrap.dedent("\n".join(blocks))
    assert len(code.splitlines()) == 6 and code.count("import") == 2
    exec(code, {})
    assert "'shuffled': {'rows': 6, 'loss': " in capsys.readouterr().out
    record = json.loads((room / "runs" / "mine" / "training.json").read_text())
    assert record["options"]["base"] == "tiny_t5_v2" and record["options"]["epochs"] == 2
    lines = [json.loads(line) for line in (room / "runs" / "mine.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [["filename", "description", "vector", "output"]] * 6


def test_importing_the_package_loads_none_of_its_modules():
    code = "import sys, t5fusion.finetune as f; print([m for m in sys.modules if m.startswith('t5fusion.finetune.')])"
    assert subprocess.run([warm_python(), "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_is_there():
    assert all(getattr(finetune, name).__doc__ for name in finetune.__all__)
    assert set(finetune.__all__) <= set(dir(finetune)) and finetune.__all__ == sorted(finetune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        finetune.nothing  # noqa: B018


def test_a_trained_file_is_what_is_loaded(trained):
    folder, model = trained
    loaded, processor = load_trained(folder)
    assert processor.lexical_source == "given" and processor.lexical_dim == 8
    weights = loaded.state_dict()
    # The base model's own layer was started too, and its adapter's copy is what was saved.
    saved = {name: value for name, value in model.state_dict().items() if ".original_module." not in name}
    assert [name for name, value in saved.items() if not torch.equal(value, weights[name])] == []


def test_an_evaluation_is_returned_and_saved(room, trained):
    folder, _ = trained
    evaluation = evaluate_file(folder, room / "test.jsonl", COLUMNS, vectors="all")
    assert isinstance(evaluation, Evaluation) and evaluation.is_saved
    assert list(evaluation.measures) == ["true", "shuffled", "none"] and evaluation.measures["true"]["rows"] == 6
    assert list(evaluation.worth_of_vectors) == ["shuffled", "none"]
    assert [sample["text"] for sample in evaluation.samples] == ["app_as", "app_at", "app_au"]
    assert json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) == evaluation.record()
    fewer = evaluate_file(folder, room / "test.jsonl", COLUMNS, limit=2)
    assert not fewer.is_saved and list(fewer.measures) == ["true"] and not fewer.worth_of_vectors


def test_generation_resumes_and_counts(room, trained):
    folder, _ = trained
    output = room / "lines.jsonl"
    assert generate_file(folder, room / "test.jsonl", COLUMNS, output, max_new_tokens=4) == (6, 0)
    whole = output.read_bytes()
    output.write_bytes(whole[: whole.index(b"\n") + 3])  # as earlier code left it, which appended to the output itself
    assert generate_file(folder, room / "test.jsonl", COLUMNS, output, max_new_tokens=4) == (6, 1)
    assert output.read_bytes() == whole


@pytest.mark.parametrize(
    ("columns", "recipe", "sentence"),
    [
        (Columns("filename"), Recipe(), "training needs a target column"),
        (
            Columns("filename", "description", "filename", "vector"),
            Recipe(),
            r"beside the encoder's. Name the kind: Columns\(..., vector={'NAME': 'vector'}\).",
        ),
        (COLUMNS, Recipe(encoder="all-MiniLM-L6-v2"), "a second kind of vectors beside the encoder's"),
        (
            Columns("filename", "description", "filename", {"lexical": "vector"}),
            Recipe(),
            "the encoder makes the vectors of the kind 'lexical', and a column has it too",
        ),
        (COLUMNS, Recipe(kinds={"user": {"tokens": 2}}), "`kinds` has options for 'user', but no column holds vectors"),
        (
            Columns("filename", "description"),
            Recipe(),
            "my.jsonl holds vectors in column 'vector', which no option reads",
        ),
    ],
)
def test_columns_that_cannot_be_trained_on_are_refused(room, columns, recipe, sentence):
    with pytest.raises(ValueError, match=sentence):
        train_file(room / "my.jsonl", columns, room / "new", recipe=recipe)
    assert not (room / "new").exists()


def test_an_evaluation_needs_a_target_and_known_vectors(room, trained):
    with pytest.raises(ValueError, match="an evaluation needs a target column"):
        evaluate_file(trained[0], room / "test.jsonl", Columns("filename"))
    with pytest.raises(ValueError, match="`vectors` is 'others'; expected one of true, shuffled, none, all"):
        evaluate_file(trained[0], room / "test.jsonl", COLUMNS, vectors="others")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"lexical_dim": 0}, "`lexical_dim` is .*; expected a whole number from 1"),
        ({"lexical_dim": 8.5}, "`lexical_dim` is .*; expected a whole number from 1"),
        (
            {"kinds": {"user": {"dim": 3}}},
            "`kinds` sets dim of the kind 'user'; expected some of tokens, projector, sc",
        ),
        ({"kinds": {"user": {"tokens": 0}}}, "`kinds`, kind 'user': `tokens` is 0; expected a positive integer."),
    ],
)
def test_a_recipe_is_checked(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe(**fields)


@pytest.mark.parametrize("options", [TrainingOptions, Recipe])
def test_every_option_has_help_in_one_place(options):
    for field in dataclasses.fields(options):
        help = field.metadata["help"]
        assert help.endswith(".") and f"{field.name}: {help}" in options.__doc__

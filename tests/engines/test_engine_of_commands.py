"""`--engine` of `t5fusion generate` and `t5fusion evaluate`, and `engine` of the functions behind them."""

import json

import pytest
import torch
from forks import Forks

from t5fusion.common.base_models import make_processor
from t5fusion.engines.features import detect_features
from t5fusion.finetune import Columns, evaluate_file, generate_file
from t5fusion.finetune.inputs import prepare
from t5fusion.finetune.options import TrainingOptions
from t5fusion.finetune.training import train

COLUMNS = Columns("name", "text", None, "vector")


@pytest.fixture(scope="module")
def place(base, tmp_path_factory):
    """A folder with a run folder, `run`, and rows of different lengths, `rows.jsonl`."""
    place = tmp_path_factory.mktemp("place")
    processor = make_processor(str(base), lexical_encoder=None, lexical_dim=8, lexical_source="given")
    vectors = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    names = ["app_" + "abcdefghijkl"[: 1 + number % 5] for number in range(12)]
    rows = prepare(names, ["the a"] * 12, vectors, processor)
    options = TrainingOptions(base_model=str(base), epochs=1, precision="fp32", max_target=5)
    train(rows[:8], rows[8:], processor, options, place / "run")
    lines = [
        {"name": name, "text": "the a", "vector": vector} for name, vector in zip(names, vectors.tolist(), strict=True)
    ]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return place


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_fp32_and_auto_write_the_texts_of_the_reference(place, tmp_path, options, capsys):
    texts = {}
    for engine in ("torch", "fp32", "auto"):
        output = tmp_path / f"{engine}.jsonl"
        generate_file(place / "run", place / "rows.jsonl", COLUMNS, output, engine=engine, batch_size=5, **options)
        texts[engine] = output.read_text()
    assert texts["torch"] == texts["fp32"] == texts["auto"]
    assert "Engine auto: fp32 runs, because" in capsys.readouterr().err
    assert json.loads((tmp_path / "auto.jsonl.made-with").read_text())["engine"] == "fp32"


def test_an_output_is_not_resumed_with_another_engine(place, tmp_path):
    output = tmp_path / "out.jsonl"
    generate_file(place / "run", place / "rows.jsonl", COLUMNS, output, limit=4, engine="fp32")
    with pytest.raises(ValueError, match="with other settings: engine was fp32, now torch"):
        generate_file(place / "run", place / "rows.jsonl", COLUMNS, output)
    assert generate_file(place / "run", place / "rows.jsonl", COLUMNS, output, engine="auto") == (12, 4)


def test_an_output_of_an_earlier_release_is_resumed_by_the_reference_alone(place, tmp_path):
    output, record = tmp_path / "out.jsonl", tmp_path / "out.jsonl.made-with"
    generate_file(place / "run", place / "rows.jsonl", COLUMNS, output, limit=4)
    made_with = json.loads(record.read_text())
    assert made_with.pop("engine") == "torch"
    record.write_text(json.dumps(made_with))
    with pytest.raises(ValueError, match="with other settings: engine was torch, now fp32"):
        generate_file(place / "run", place / "rows.jsonl", COLUMNS, output, engine="fp32")
    assert generate_file(place / "run", place / "rows.jsonl", COLUMNS, output) == (12, 4)


def test_an_evaluation_names_its_engine_and_its_losses_are_those_of_the_model(place):
    results = {}
    for engine in ("torch", "fp32", "int8"):
        results[engine] = evaluate_file(place / "run", place / "rows.jsonl", COLUMNS, engine=engine)
    assert results["fp32"].measures == results["torch"].measures
    assert results["int8"].measures["true"]["loss"] == results["torch"].measures["true"]["loss"]
    chosen = "int8" if detect_features().int8 else "fp32"
    assert json.loads((place / "run" / "evaluation.json").read_text())["engine"] == chosen


def test_there_is_no_such_engine(place):
    for function in (generate_file, evaluate_file):
        with pytest.raises(ValueError, match="there is no engine 'fast'"):
            function(place / "run", place / "rows.jsonl", COLUMNS, engine="fast")


def test_commands_take_the_engine(place):
    run = Forks(place).run
    columns = ("--text-column", "name", "--vector-column", "vector")
    code, printed, said = run("generate", "run", "--file", "rows.jsonl", *columns, "--engine", "auto", "--limit", "2")
    assert code == 0 and len(printed.splitlines()) == 2, said
    assert "Engine auto: fp32 runs, because it gives the tokens of torch" in said
    code, _, said = run(
        "evaluate",
        "run",
        "rows.jsonl",
        *columns,
        "--target-column",
        "text",
        "--engine",
        "fp32",
        "--output",
        "results.json",
    )
    assert code == 0, said
    assert json.loads((place / "results.json").read_text())["engine"] == "fp32"
    code, _, said = run("generate", "run", "a", "--engine", "fast")
    assert code != 0 and "'fast'" in said and "Traceback" not in said

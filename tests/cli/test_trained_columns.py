"""What `evaluate` and `generate` know of the training: its columns, and the rows that it held out."""

import json
import re
import shutil

import pytest
import torch
from forks import Forks
from safetensors.torch import load_file, save_file

from t5fusion.common.measures import SCORE_NAMES
from t5fusion.finetune import Columns, evaluate_file

VECTORS = ["--vector-column", "vector"]
LINES = "abcdefgh"


def words_to_train(output, *more):
    columns = ["--text-column", "name", "--target-column", "text", *VECTORS]
    usual = ["--base-model", "base", "--epochs", "2", "--batch-size", "4", "--output", output]
    return ["train", "rows.jsonl", *columns, *usual, *more]


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    """A folder with a base and rows of a name, a text and a vector."""
    room = tmp_path_factory.mktemp("trained")
    save_plain_t5(room / "base", d_model=32, num_layers=1, initializer_factor=2.0)
    numbers = torch.Generator().manual_seed(0)
    pairs = [(f"app_{a}{b}", f"settings of {a} {b}") for a in LINES for b in LINES]
    rows = [{"name": a, "text": b, "vector": torch.randn(8, generator=numbers).tolist()} for a, b in pairs]
    (room / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return room


@pytest.fixture(scope="module")
def commands(room):
    commands = Forks(room)
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def run(commands):
    def run(*words, fails=False):
        """What a command prints, or its error without the name of the program."""
        code, out, err = commands.run(*words)
        assert (code == 1) == fails, err
        return (out, err) if not fails else err.removeprefix("t5fusion: ").strip()

    return run


@pytest.fixture(scope="module", params=["fp32", "bf16", "best"])
def trained(room, run, request):
    folder = room / request.param
    # At this learning rate, the loss goes up and down.
    kept = (
        ["--keep-best", "--eval-steps", "2", "--lr", "10", "--lr-scheduler-type", "constant"]
        if request.param == "best"
        else []
    )
    run(*words_to_train(folder.name, "--precision", "bf16" if request.param == "bf16" else "fp32", *kept))
    return folder


def record_of(folder):
    return json.loads((folder / "training.json").read_text())


def last_loss(folder):
    record = record_of(folder)
    losses = [entry["eval_loss"] for entry in record["history"] if "eval_loss" in entry]
    return record["best"]["eval_loss"] if folder.name == "best" else losses[-1]


def test_the_record_says_where_the_rows_come_from(room, trained):
    record = record_of(trained)
    assert record["columns"] == {"text": "name", "target": "text", "lexical": None, "vector": "vector"}
    source = {"data": str(room / "rows.jsonl"), "validation": None, "limit": None, "encoding": None}
    assert record["source"] == source and record["data"] is None and len(record["held_out_digest"]) == 12


def test_the_rows_held_out_have_the_loss_of_the_training_to_the_bit(trained, run):
    out, err = run("evaluate", trained.name, "--json")
    measures = json.loads(out)
    assert measures["eval_loss"] == last_loss(trained) and measures["rows"] == record_of(trained)["held_out_rows"]
    assert measures["loss"] == pytest.approx(measures["eval_loss"], rel=0.05)
    assert "eval_loss is exactly as in training.\n" in err
    next_command = f"t5fusion export {trained.name} bundles/{trained.name} --kind standalone"  # its base is a folder
    assert err.endswith(f"for the model card. Next: {next_command}\n")


def test_a_model_that_was_changed_since_has_another_loss(trained, room, run):
    shutil.copytree(trained, room / "changed", dirs_exist_ok=True)
    weights = room / "changed" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    record = room / "changed" / "training.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"weights_digest": None}))
    out, err = run("evaluate", "changed", "--json")
    assert json.loads(out)["eval_loss"] != last_loss(trained)
    assert re.search(r"eval_loss is [\d.]+: [+-][\d.]+e[+-]\d\d from that of the training. Machines, precisions", err)


@pytest.fixture(scope="module")
def fp32(room, run):
    """A run with a validation file of its own and a limit."""
    (room / "valid.jsonl").write_text("".join((room / "rows.jsonl").read_text().splitlines(True)[:20]))
    run(*words_to_train("limited", "--precision", "fp32", "--validation", "valid.jsonl", "--limit", "15"))
    return room / "limited"


def test_a_validation_file_and_a_limit_are_those_of_the_training(fp32, run):
    out, _ = run("evaluate", fp32.name, "--json", "--vectors", "all")
    measures = json.loads(out)
    assert measures["eval_loss"] == last_loss(fp32) and measures["true"]["rows"] == 15
    fewer = json.loads(run("evaluate", fp32.name, "--json", "--limit", "4")[0])
    assert fewer["rows"] == 4 and fewer["eval_loss"] == last_loss(fp32)


def test_other_columns_need_a_file(fp32):
    trained = r"text column 'name', target column 'text', vector column 'vector'"
    with pytest.raises(ValueError, match=rf"differ from those of the training \({trained}\). Name the file"):
        evaluate_file(fp32, columns=Columns("text", "name"))


def test_a_training_that_measured_no_loss(room, run):
    """With `eval_strategy=no`, there is no loss to compare with."""
    run(*words_to_train("unmeasured", "--set", "eval_strategy=no"))
    out, err = run("evaluate", "unmeasured", "--json")
    loss = json.loads(out)["eval_loss"]
    assert f"eval_loss is {loss:.6f}. The training measured none.\n" in err


def test_a_seed_shuffles_the_vectors_in_another_order_and_a_file_takes_the_results(fp32, room, run):
    def measures(*words):
        return json.loads(run("evaluate", "limited", "--vectors", "all", "--json", *words)[0])

    first, same, other = measures(), measures("--seed", "0"), measures("--seed", "1", "--output", "new/results.json")
    assert first == same and first["shuffled"]["loss"] != other["shuffled"]["loss"] and first["true"] == other["true"]
    results = json.loads((room / "new" / "results.json").read_text())
    assert results["eval_loss"] == last_loss(fp32) and results["rows"] == 15 and len(results["samples"]) == 3
    assert results["measures"]["shuffled"]["loss"] == other["shuffled"]["loss"]


def test_rows_that_have_changed_are_refused(fp32, room, run):
    lines = (room / "valid.jsonl").read_text().splitlines(True)
    try:
        (room / "valid.jsonl").write_text("".join(lines[:9]))
        error = run("evaluate", "limited", fails=True)
        assert "the training held out 15 rows of" in error and "now it would hold out 9: the rows have" in error
        (room / "valid.jsonl").write_text("".join(lines).replace("settings of a b", "settings of a c"))
        error = run("evaluate", "limited", fails=True)
        assert "valid.jsonl differ from those in training: the rows have changed. Name a file with the rows" in error
        (room / "valid.jsonl").unlink()
        assert "there is no file" in run("evaluate", "limited", fails=True)
    finally:
        (room / "valid.jsonl").write_text("".join(lines))


def test_a_file_is_read_by_the_columns_of_the_training(fp32, room, run):
    named = ["--text-column", "name", *VECTORS, "--max-new-tokens", "4"]
    out, _ = run("generate", "limited", "--file", "valid.jsonl", "--max-new-tokens", "4")
    assert len(out.splitlines()) == 20 and out == run("generate", "limited", "--file", "valid.jsonl", *named)[0]
    assert len(json.loads(run("evaluate", "limited", "valid.jsonl", "--json")[0])) == 1 + len(SCORE_NAMES)
    lines = [json.loads(line) for line in (room / "valid.jsonl").read_text().splitlines()]
    for old, new, kind in (("name", "title", "text"), ("vector", "embedding", "vector"), ("text", "target", "target")):
        rows = [{new if name == old else name: value for name, value in line.items()} for line in lines]
        (room / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        error = run("evaluate", "limited", "other.jsonl", fails=True)
        assert f"there is no column {old!r}, which the model was trained with as its {kind} column; the col" in error
        assert error.endswith(f"with --{kind}-column.")
        if kind == "target":
            run("generate", "limited", "--file", "other.jsonl", "--max-new-tokens", "2")
        else:
            assert f"{old!r}, which" in run("generate", "limited", "--file", "other.jsonl", fails=True)
            run("generate", "limited", "--file", "other.jsonl", f"--{kind}-column", new, "--max-new-tokens", "2")


def test_a_run_that_records_no_columns_asks_for_them(fp32, room, run):
    shutil.copytree(fp32, room / "older", dirs_exist_ok=True)
    record = record_of(room / "older")
    for name in ("columns", "source", "held_out_digest"):
        del record[name]
    (room / "older" / "training.json").write_text(json.dumps(record))
    sentence = "older does not record the columns that it was trained with. Name them: --text-column COLUMN"
    assert run("evaluate", "older", "valid.jsonl", fails=True).startswith(sentence)
    assert run("generate", "older", "--file", "valid.jsonl", fails=True).startswith(sentence)
    columns = ["--text-column", "name", "--target-column", "text", *VECTORS]
    sentence = "older does not record which rows its training held out. Name a file: t5fusion evaluate older FILE."
    assert run("evaluate", "older", fails=True) == sentence
    run("evaluate", "older", "valid.jsonl", *columns)
    error = run("evaluate", "limited", "--text-column", "text", fails=True)
    assert error.startswith("columns or an encoding were given without a file.")

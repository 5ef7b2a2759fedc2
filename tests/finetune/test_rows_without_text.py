"""Rows of vectors without text: train, resume, evaluate, generate and export."""

import json
import random
import shutil

import pandas as pd
import pytest

from t5fusion.common.folder_info import folder_info
from t5fusion.common.next_commands import after_info
from t5fusion.finetune import Columns, columns_for, load_trained, read_run

ROWS = 60
NO_TEXT = "The rows have no text: the model reads their vectors alone."


def train_words(data, output, *more):
    usual = ["--base-model", "base", "--epochs", "1", "--batch-size", "4", "--precision", "fp32", "--output", output]
    return ["train", data, "--target-column", "name", "--vector-column", "v", *usual, *more]


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    """A folder with a base model, and the same rows in three formats: a name and a vector, which two rows lack."""
    room = tmp_path_factory.mktemp("vectors")
    save_plain_t5(room / "base", d_model=32, num_layers=1, initializer_factor=2.0)
    numbers = random.Random(0)
    rows = [
        {
            "name": f"settings of {'abcdefgh'[row % 8]}",
            "v": [round(numbers.gauss(row % 8, 1), 3) for _ in range(3)] if row % 30 != 7 else None,
        }
        for row in range(ROWS)
    ]
    (room / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pd.DataFrame(rows)
    table.to_parquet(room / "rows.parquet")
    table.assign(v=["" if value is None else json.dumps(value) for value in table["v"]]).to_csv(
        room / "rows.csv", index=False
    )
    return room


@pytest.fixture(scope="module")
def trained(room, run):
    """What the training on each format printed; on JSON lines with a prompt, on the others without."""
    prompts = {"jsonl": ["--template", "describe:"], "parquet": [], "csv": []}
    return {kind: run(*train_words(f"rows.{kind}", f"runs/{kind}", *prompts[kind]))[1] for kind in prompts}


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_training_says_that_rows_have_no_text(room, trained):
    for kind, printed in trained.items():
        assert f"{NO_TEXT}\n" in printed and "2 rows with an empty text or without a vector left out; 58 rem" in printed
        assert "58 rows have no text; the rows to validate with are chosen by vector.\n" in printed
        assert f"Saved in runs/{kind}. Next: t5fusion generate runs/{kind} --file rows.{kind}" in printed
    assert weights(room / "runs/parquet") == weights(room / "runs/csv") != weights(room / "runs/jsonl")


def test_the_folder_records_that_there_is_no_text(room, run, trained):
    recorded = json.loads((room / "runs/csv/training.json").read_text())["columns"]
    assert recorded == {"text": None, "target": "name", "lexical": None, "vector": "v"}
    assert columns_for(room / "runs/csv") == Columns(target="name", vector="v")
    assert load_trained(room / "runs/jsonl")[1].template == "describe:"
    assert load_trained(room / "runs/csv")[1].template == ""
    assert "text_column" not in (room / "runs/csv/run.yaml").read_text()
    assert read_run(room / "runs/csv/run.yaml")["columns"] == columns_for(room / "runs/csv")
    run("train", "--config", "runs/csv/run.yaml", "--output", "runs/again")
    assert weights(room / "runs/again") == weights(room / "runs/csv")
    shutil.copytree(room / "runs/csv", room / "runs/resumed")
    run(*train_words("rows.csv", "runs/resumed", "--resume"))
    assert weights(room / "runs/resumed") == weights(room / "runs/csv")
    assert 'prompt "describe:", and no text' in run("info", "runs/jsonl")[0]
    assert after_info(folder_info(str(room / "runs/csv"))).startswith("t5fusion export")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_evaluate_reads_the_held_out_rows(room, run, trained, kind):
    out, printed = run("evaluate", f"runs/{kind}", "--vectors", "all", "--json")
    assert "eval_loss is exactly as in training." in printed and NO_TEXT in printed
    measures = json.loads(out)
    assert set(measures) == {"true", "shuffled", "none", "worth_of_vectors", "eval_loss"}
    assert len({measures[name]["loss"] for name in ("true", "shuffled", "none")}) == 3
    of_file = json.loads(run("evaluate", f"runs/{kind}", "rows.csv", "--json")[0])
    assert of_file["rows"] == 58


def test_generate_writes_null_for_a_row_without_a_vector(room, run, trained):
    outputs = {}
    for kind in ("jsonl", "parquet", "csv"):
        _, printed = run("generate", "runs/csv", "--file", f"rows.{kind}", "--output", f"out.{kind}")
        assert NO_TEXT in printed and "2 rows have neither text nor a vector; their output is null." in printed
        read = {"jsonl": lambda file: pd.read_json(file, lines=True), "parquet": pd.read_parquet, "csv": pd.read_csv}
        outputs[kind] = read[kind](room / f"out.{kind}")["output"].tolist()
    assert pd.Series(outputs["jsonl"]).isna().to_numpy().nonzero()[0].tolist() == [7, 37]
    assert pd.Series(outputs["jsonl"]).equals(pd.Series(outputs["parquet"]))
    texts = pd.Series(outputs["jsonl"]).replace("", None)  # CSV has no null.
    assert texts.equals(pd.Series(outputs["csv"]).astype(texts.dtype))
    assert len(set(outputs["jsonl"])) > 2  # null, and different texts: the vectors decide
    assert (
        len(run("generate", "runs/jsonl", "--file", "rows.jsonl", "--no-vectors", "--limit", "3")[0].splitlines()) == 3
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_an_output_grows_with_its_input(room, run, trained, kind):
    whole = (room / "rows.jsonl").read_text().splitlines(True)
    (room / "growing.jsonl").write_text("".join(whole[:40]))
    words = ["generate", "runs/csv", "--file", "growing.jsonl", "--output", f"grown.{kind}"]
    run(*words)
    assert f"grown.{kind} is complete: all 40 rows" in run(*words)[1]
    (room / "growing.jsonl").write_text("".join(whole))
    assert f"60 rows are in grown.{kind}, 40 of them from before." in run(*words)[1]
    run("generate", "runs/csv", "--file", "rows.jsonl", "--output", f"at_once.{kind}")
    assert (room / f"grown.{kind}").read_bytes() == (room / f"at_once.{kind}").read_bytes()
    (room / "growing.jsonl").write_text("".join([*whole[1:], whole[0]]))
    if kind == "csv":  # It holds no vectors, so nothing can be compared.
        assert "is complete" in run(*words)[1]
    else:
        assert f"row 0 of grown.{kind} is not row 0 of the input. Choose" in run(*words, fails=True)


def test_an_interrupted_output_continues(room, run, trained):
    lines = (room / "rows.jsonl").read_text().splitlines(True)
    many = "".join(line for number in range(10) for line in lines)
    (room / "many.jsonl").write_text(many)
    words = ["generate", "runs/csv", "--file", "many.jsonl", "--max-new-tokens", "2", "--output"]
    run(*words, "whole.jsonl")
    texts = [json.loads(line) for line in (room / "whole.jsonl").read_text().splitlines()]
    run(*words, "part.jsonl", "--limit", "512")
    partial = "".join(json.dumps({"vectors": False, "output": row["output"]}) + "\n" for row in texts[:512])
    (room / "part.jsonl.partial").write_text(partial)  # as if the run had ended after its first chunk
    (room / "part.jsonl").unlink()
    assert "600 rows are in part.jsonl, 512 of them from before." in run(*words, "part.jsonl")[1]
    assert (room / "part.jsonl").read_bytes() == (room / "whole.jsonl").read_bytes()


def test_errors_say_what_is_missing(room, run, trained):
    error = run("train", "rows.jsonl", "--target-column", "name", "--base-model", "base", fails=True)
    assert error == (
        "t5fusion: --text-column is missing. Only rows with --vector-column or --lexical-column may have no text."
    )
    words = train_words("rows.jsonl", "runs/none")
    error = run(*words, "--template", "say {text}", fails=True)
    assert "the template 'say {text}' has a place for a text, and no column of texts is named. Pass --text" in error
    error = run(*words, "--template", "say", "--text-column", "name", fails=True)
    assert "the template 'say' has no {text}, so nothing reads the column 'name'." in error
    sentence = "the model reads no text, only vectors (its prompt is '', without {text}). Pass a file with a column"
    assert sentence in run("generate", "runs/csv", "a text", fails=True)
    assert sentence in run("evaluate", "runs/csv", "rows.csv", "--text-column", "name", fails=True)
    bad = json.dumps({"name": "a", "v": [1, 2]})
    (room / "bad.jsonl").write_text((room / "rows.jsonl").read_text() + bad + "\n")
    assert "row 60, column 'v': 2 numbers; expected" in run(*train_words("bad.jsonl", "runs/none"), fails=True)
    assert "row 60, column 'v': 2 numbers; expected" in run("generate", "runs/csv", "--file", "bad.jsonl", fails=True)


def test_a_column_called_text_that_nothing_reads_is_mentioned(room, run):
    lines = [json.loads(line) | {"text": "a"} for line in (room / "rows.jsonl").read_text().splitlines()]
    (room / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, printed = run(*train_words("texts.jsonl", "runs/texts"))
    assert f"{NO_TEXT} (The column 'text' is not read; --text-column would name it.)\n" in printed


def test_a_bundle_verifies_and_its_card_needs_no_text(room, run, trained):
    run("export", "runs/jsonl", "bundles/jsonl", "--kind", "standalone")
    card = (room / "bundles/jsonl/README.md").read_text()
    assert (
        "called lexical vectors, and no text." in card and 'Prompt: `` "describe:" ``. The model reads no text.' in card
    )
    assert "print(write(lexical_embeds=vectors))" in card and "inputs = processor(lexical_embeds=vectors)" in card
    out, _ = run("verify", "bundles/jsonl")
    assert "ok the processor, called as in the card" in out and "NO " not in out
    columns = ["--target-column", "name", "--vector-column", "v"]
    _, printed = run("evaluate", "bundles/jsonl", "rows.csv", *columns)  # A bundle records no columns.
    assert NO_TEXT in printed
    run("export", "runs/csv", "bundles/fails", "--kind", "standalone")
    error = run("evaluate", "bundles/jsonl", "rows.csv", "--target-column", "name", fails=True)
    assert "does not record the columns that it was trained with" in error

"""Rows whose vectors hold NaN: refused, or left out with --skip-nan."""

import json
import math
import random

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t5fusion.finetune import read_run

ROWS = 60
BAD = {3: math.nan, 20: math.inf, 41: None}  # row: the number in its vector
LEFT_OUT = "4 rows with NaN or infinity left out; 56 remain.\n"
ADVICE = "To leave out rows with NaN or infinity, pass --skip-nan."


def train_words(data, output, *more):
    vectors = ["--vector-column", "v", "--vector-column", "price:log"]
    columns = ["--text-column", "name", "--target-column", "text", *vectors]
    usual = ["--base-model", "base", "--epochs", "1", "--batch-size", "4", "--precision", "fp32", "--output", output]
    return ["train", data, *columns, *usual, *more]


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    """A folder with a base model, rows of which four hold NaN, infinity or null in a vector, and the rest."""
    room = tmp_path_factory.mktemp("nan")
    save_plain_t5(room / "base", d_model=32, num_layers=1, initializer_factor=2.0)
    numbers = random.Random(0)
    rows = []
    for row in range(ROWS):
        vector = [round(numbers.gauss(0, 1), 3) for _ in range(3)]
        vector[1] = BAD.get(row, vector[1])
        price = math.nan if row == 50 else round(10 ** numbers.uniform(0, 4), 2)
        name = f"app_{'abcdefgh'[row % 8]}{'stuvwxyz'[row // 8]}"
        rows.append({"name": name, "text": f"settings of {'abcdefgh'[row % 8]}", "v": vector, "price": [price]})
    pq.write_table(pa.Table.from_pylist(rows), room / "rows.parquet")  # pandas would write null for NaN.
    lines = [json.dumps(row) + "\n" for index, row in enumerate(rows) if index not in BAD and index != 50]
    (room / "finite.jsonl").write_text("".join(lines))
    as_texts = [row | {name: json.dumps(row[name]) for name in ("v", "price")} for row in rows]
    pd.DataFrame(as_texts).to_csv(room / "rows.csv", index=False)
    return room


@pytest.fixture(scope="module")
def printed(room, run):
    run(*train_words("finite.jsonl", "runs/finite"))
    return {kind: run(*train_words(f"rows.{kind}", f"runs/{kind}", "--skip-nan"))[1] for kind in ("parquet", "csv")}


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_by_default_they_are_refused(room, run):
    error = run(*train_words("rows.parquet", "runs/refused"), fails=True)
    assert "the row of 'app_ds', column 'v': nan at index 1; expected" in error
    assert error.endswith(ADVICE) and not (room / "runs/refused").exists()


def test_the_other_rows_train_as_if_they_were_alone(room, printed):
    for kind in ("parquet", "csv"):
        assert printed[kind].count(LEFT_OUT) == 1
        assert weights(room / "runs" / kind) == weights(room / "runs/finite")


def test_the_run_records_the_option(room, run, printed):
    assert "skip_nan: true" in (room / "runs/csv/run.yaml").read_text()
    assert read_run(room / "runs/csv/run.yaml")["skip_nan"] is True
    assert json.loads((room / "runs/csv/training.json").read_text())["source"]["skip_nan"] is True
    assert "skip_nan" not in json.loads((room / "runs/finite/training.json").read_text())["source"]
    run("train", "--config", "runs/csv/run.yaml", "--output", "runs/again")
    assert weights(room / "runs/again") == weights(room / "runs/csv")


def test_evaluate_leaves_them_out_too(room, run, printed):
    assert "eval_loss is exactly as in training." in run("evaluate", "runs/csv", "--json")[1]
    assert run("evaluate", "runs/csv", "rows.parquet", fails=True).endswith(ADVICE)
    out, err = run("evaluate", "runs/csv", "rows.parquet", "--skip-nan", "--json")
    assert LEFT_OUT in err and json.loads(out)["rows"] == 56
    assert json.loads(run("evaluate", "runs/csv", "finite.jsonl", "--json")[0]) == json.loads(out)
    assert "--skip-nan was given without a file" in run("evaluate", "runs/csv", "--skip-nan", fails=True)


def test_generate_names_the_row_and_no_option_that_it_lacks(room, run, printed):
    error = run("generate", "runs/csv", "--file", "rows.parquet", fails=True)
    assert "row 3, column 'v': nan at index 1; expected" in error and "skip" not in error


def test_other_errors_stay_errors(room, run):
    rows = [json.loads(line) for line in (room / "finite.jsonl").read_text().splitlines()]
    for wrong, message in (([1.0, 2.0], "row 9, column 'v': 2 numbers; expected"), ("no", "row 9, column 'v': a text")):
        changed = [row | {"v": json.dumps(wrong if index == 9 else row["v"])} for index, row in enumerate(rows)]
        pd.DataFrame(changed).to_csv(room / "wrong.csv", index=False)
        assert message in run(*train_words("wrong.csv", "runs/wrong", "--skip-nan"), fails=True)

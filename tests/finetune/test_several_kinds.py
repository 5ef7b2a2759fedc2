"""Several kinds of vectors from the columns of a file: train, resume, evaluate and generate."""

import json
import random
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

from t5fusion import DataCollatorWithFusion, processing_t5fusion
from t5fusion.common.base_models import make_processor
from t5fusion.common.folder_info import folder_info
from t5fusion.finetune import (
    Columns,
    Recipe,
    TrainingOptions,
    columns_for,
    evaluate_file,
    generate_file,
    load_trained,
    read_run,
    train_file,
)
from t5fusion.finetune.evaluation import change_vectors
from t5fusion.finetune.inputs import make_inputs
from t5fusion.kinds_t5fusion import VectorKind

ROWS = 60
KINDS = ["--vector-column", "image=img:2:mlp", "--vector-column", "price:log", "--vector-column", "tags"]
FORMATS = ("jsonl", "parquet", "csv")
EXPECTED = {
    "image": VectorKind(6, tokens=2, projector="mlp"),
    "price": VectorKind(1, scale="log"),
    "tags": VectorKind(4),
}


def train_words(data, output, *more):
    usual = ["--base-model", "base", "--epochs", "1", "--batch-size", "4", "--precision", "fp32", "--output", output]
    return ["train", data, "--text-column", "name", "--target-column", "text", *usual, *more]


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    """A folder with a base model, and the same rows in three formats: an image, a price, and none to two tags."""
    room = tmp_path_factory.mktemp("kinds")
    save_plain_t5(room / "base", d_model=32, num_layers=1, initializer_factor=2.0)
    numbers = random.Random(0)

    def vector(width):
        return [round(numbers.gauss(0, 1), 3) for _ in range(width)]

    rows = [
        {
            "name": f"app_{'abcdefgh'[row % 8]}{'stuvwxyz'[row // 8]}",
            "text": f"settings of {'abcdefgh'[row % 8]}",
            "img": vector(6) if row % 10 else None,
            "price": round(10 ** numbers.uniform(0, 30), 2)
            if row % 7
            else None,  # too large for a kind without a scale
            "tags": [vector(4) for _ in range(row % 3)],
        }
        for row in range(ROWS)
    ]
    (room / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pd.DataFrame(rows)
    table.to_parquet(room / "rows.parquet")
    for name in ("img", "tags"):
        table[name] = ["" if value is None else json.dumps(value) for value in table[name]]
    table.to_csv(room / "rows.csv", index=False)
    return room


@pytest.fixture(scope="module")
def trained(room, run):
    """What the training on each format printed."""
    return {kind: run(*train_words(f"rows.{kind}", f"runs/{kind}", *KINDS))[1] for kind in FORMATS}


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_every_format_trains_the_same_weights(room, trained):
    assert weights(room / "runs/jsonl") == weights(room / "runs/parquet") == weights(room / "runs/csv")
    for kind in FORMATS:
        _, processor = load_trained(room / "runs" / kind)
        assert processor.kinds == EXPECTED and list(processor.kinds) == list(EXPECTED)


def test_rows_that_lack_vectors_are_counted_by_kind(trained):
    for printed in trained.values():
        assert "6 of 60 rows have no image vector.\n9 of 60 rows have no price vector.\n" in printed
        assert "20 of 60 rows have no tags vector.\n1 of 60 rows has no vector; the model reads only" in printed
        assert all(f"fit_fusion: the {kind} vectors of" in printed for kind in EXPECTED)


def test_the_record_has_the_columns_by_kind(room, trained):
    recorded = json.loads((room / "runs/csv/training.json").read_text())["columns"]
    vectors = {"image": "img", "price": "price", "tags": "tags"}
    assert recorded == {"text": "name", "target": "text", "lexical": None, "vector": vectors}
    assert list(recorded["vector"]) == list(vectors)
    assert columns_for(room / "runs/csv") == Columns("name", "text", vector=vectors)
    assert [facts.tokens for facts in folder_info(str(room / "runs/csv")).vectors] == [2, 1, 1]


def test_the_run_file_trains_the_same_again(room, run, trained):
    lines = "vector_column:\n- image=img:2:mlp\n- price=price:log\n- tags=tags\n"
    assert lines in (room / "runs/csv/run.yaml").read_text()
    run("train", "--config", "runs/csv/run.yaml", "--output", "runs/again")
    assert weights(room / "runs/again") == weights(room / "runs/csv")
    arguments = read_run(room / "runs/csv/run.yaml")
    assert arguments["columns"] == columns_for(room / "runs/csv")
    assert arguments["recipe"].kinds == {"image": {"tokens": 2, "projector": "mlp"}, "price": {"scale": "log"}}
    run("train", "--config", "runs/csv/run.yaml", "--vector-column", "price:log", "--output", "runs/one")
    assert load_trained(room / "runs/one")[1].kinds == {"lexical": EXPECTED["price"]}


def test_a_training_resumes_with_the_same_kinds_only(room, run, trained):
    shutil.copytree(room / "runs/jsonl", room / "runs/resumed")
    words = train_words("rows.jsonl", "runs/resumed", "--resume")
    run(*words, *KINDS)
    assert weights(room / "runs/resumed") == weights(room / "runs/jsonl")
    changed = ["--vector-column", "image=img:3:mlp", *KINDS[2:]]
    assert "runs/resumed/checkpoints" in (error := run(*words, *changed, fails=True))
    assert "was started with other settings: vectors was [{'" in error and "'tokens': 3" in error
    assert "was started with other settings: " in run(*words, *KINDS[2:], *KINDS[:2], fails=True)  # another order


def test_the_held_out_rows_have_the_loss_of_the_training(room, run, trained):
    out, err = run("evaluate", "runs/parquet", "--vectors", "all", "--json")
    measures, history = json.loads(out), json.loads((room / "runs/parquet/training.json").read_text())["history"]
    assert "eval_loss is exactly as in training." in err
    assert measures["eval_loss"] == [entry["eval_loss"] for entry in history if "eval_loss" in entry][-1]
    losses = {measures[condition]["loss"] for condition in ("true", "shuffled", "none")}
    assert len(losses) == 3


@pytest.mark.parametrize("kind", FORMATS)
def test_generate_reads_the_kinds_and_keeps_the_columns(room, run, trained, kind):
    words = ["generate", "runs/csv", "--file", f"rows.{kind}", "--max-new-tokens", "4"]
    _, err = run(*words, "--output", f"from_{kind}.jsonl")
    assert "6 of 60 rows have no image vector." in err
    rows = [json.loads(line) for line in (room / f"from_{kind}.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [["name", "text", "img", "price", "tags", "output"]] * ROWS
    expected = [json.loads(line)["output"] for line in run(*words[:3], "rows.jsonl", *words[4:])[0].splitlines()]
    assert [row["output"] for row in rows] == expected and len(set(expected)) > 1


def test_a_csv_output_keeps_numbers_and_texts_but_no_lists(room, run, trained):
    words = ["generate", "runs/csv", "--max-new-tokens", "2", "--limit", "3", "--file"]
    _, err = run(*words, "rows.jsonl", "--output", "lists.csv")
    assert "Column 'img' holds vectors; it is left out of lists.csv." in err and "'price' holds" not in err
    assert (room / "lists.csv").read_text().splitlines()[0] == "name,text,price,output"
    run(*words, "rows.csv", "--output", "texts.csv")
    assert list(pd.read_csv(room / "texts.csv")) == ["name", "text", "img", "price", "tags", "output"]


def test_one_kind_may_be_read_from_another_column(room, run, trained):
    table = pd.read_json(room / "rows.jsonl", lines=True)
    table.rename(columns={"img": "photo"}).to_json(room / "photo.jsonl", orient="records", lines=True)
    words = ["generate", "runs/csv", "--max-new-tokens", "4", "--limit", "20", "--file"]
    error = run(*words, "photo.jsonl", fails=True)
    assert "there is no column 'img', which the model was trained with as its column of image vectors; the col" in error
    assert error.endswith("Name the right one with --vector-column image=COLUMN.")
    outputs = [
        [json.loads(line)["output"] for line in run(*words, *rest)[0].splitlines()]
        for rest in (["rows.jsonl"], ["photo.jsonl", "--vector-column", "image=photo"])
    ]
    assert outputs[0] == outputs[1]


def test_a_bundle_that_records_no_columns_asks_for_those_of_its_kinds(room, run, trained):
    run("export", "runs/csv", "bundles/asks", "--kind", "standalone")
    words = "--text-column COLUMN --vector-column image=COLUMN --vector-column price=COLUMN --vector-column tags=COLUMN"
    for command in (["generate", "bundles/asks", "--file", "rows.jsonl"], ["evaluate", "bundles/asks", "rows.jsonl"]):
        assert f"Name them: {words}, and for `evaluate` --target-column COLUMN." in run(*command, fails=True)
    command = ["evaluate", "bundles/asks", "rows.jsonl", "--text-column", "name", "--target-column", "text"]
    assert f"Pass a file with {words.removeprefix('--text-column COLUMN ')}. Or" in run(*command, fails=True)


REFUSED = {
    "no kind": ("img", "column 'img' was given for vectors without a kind; expected the model's kinds, image, price"),
    "another kind": (
        "user=img",
        "a column was given for user vectors; expected the model's kinds, image, price, tags. Pass --vector",
    ),
    "another width": ("image=tags", "column 'tags' holds vectors of 4 numbers; expected 6, as in training."),
    "no vectors": ("image=name", "row 0, column 'name': a text that is not a list of numbers, 'app_as'; expected one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_columns_of_other_kinds_are_refused(run, trained, case):
    column, sentence = REFUSED[case]
    words = ["generate", "runs/csv", "--file", "rows.jsonl", "--vector-column", column]
    assert sentence in run(*words, fails=True)


def test_train_names_the_row_of_a_bad_vector_and_an_empty_column(room, run):
    rows = [json.loads(line) for line in (room / "rows.jsonl").read_text().splitlines()]
    rows[40]["tags"] = [[1.0, 2.0, 3.0]]
    (room / "bad.jsonl").write_text("".join(json.dumps(row | {"none": []}) + "\n" for row in rows))
    error = run(*train_words("bad.jsonl", "runs/bad", *KINDS), fails=True)
    assert f"the row of {rows[40]['name']!r}, column 'tags': 1 vector of 3 numbers; expected one vector of 4" in error
    error = run(
        *train_words("bad.jsonl", "runs/bad", "--vector-column", "price", "--vector-column", "none"), fails=True
    )
    assert "column 'none' holds no vector in any of" in error and not (room / "runs/bad").exists()


def test_vectors_that_nothing_reads_are_named_with_their_options(run):
    error = run(*train_words("rows.parquet", "runs/none"), fails=True)
    assert (
        "holds vectors in columns 'img', 'tags', which no option reads. Pass --vector-column img --vector-col" in error
    )


def test_a_single_kind_with_a_name(room, run):
    run(*train_words("rows.parquet", "runs/price", "--vector-column", "cost=price:2:log"))
    assert load_trained(room / "runs/price")[1].kinds == {"cost": VectorKind(1, tokens=2, scale="log")}
    assert columns_for(room / "runs/price").vector == {"cost": "price"}
    words = ["generate", "runs/price", "--file", "rows.csv", "--max-new-tokens", "4", "--limit", "9"]
    assert run(*words)[0] == run(*words, "--vector-column", "price")[0]


def test_shuffling_moves_all_vectors_of_a_row_together():
    rows = [{"lexical_embeds": {"a": torch.tensor([row]), "b": torch.tensor([-row])}} for row in range(5)]
    shuffled = change_vectors([*rows, {}], "shuffled")
    pairs = [(int(row["lexical_embeds"]["a"]), int(row["lexical_embeds"]["b"])) for row in shuffled[:5]]
    assert sorted(pairs) == [(row, -row) for row in range(5)] and pairs[0] != (0, 0) and shuffled[5] == {}


class OneHotEncoder:
    """Stands for a sentence-transformers model: the vector of a text has a one at the place of its last letter."""

    max_seq_length = 256

    def encode(self, texts, normalize_embeddings, batch_size, show_progress_bar):
        return np.eye(26, dtype=np.float32)[[ord(text[-1]) - ord("a") for text in texts]]


@pytest.mark.parametrize("lexical", ["text", None])
def test_an_encoder_makes_the_first_kind_beside_columns(room, tmp_path, monkeypatch, lexical):
    monkeypatch.setenv("T5FUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(processing_t5fusion, "_load_encoder", lambda name, revision: OneHotEncoder())
    columns = Columns("name", "text", lexical, {"price": "price"})
    recipe = Recipe(encoder="an/encoder", lexical_dim=26, kinds={"price": {"scale": "log"}})
    options = TrainingOptions(base_model=str(room / "base"), epochs=1, precision="fp32")
    train_file(room / "rows.parquet", columns, tmp_path / "run", options, recipe)
    _, processor = load_trained(tmp_path / "run")
    assert list(processor.kinds.items()) == [("lexical", VectorKind(26, scale=None)), ("price", EXPECTED["price"])]
    assert processor.lexical_source == ("given" if lexical else "text")
    assert read_run(tmp_path / "run" / "run.yaml")["columns"] == columns
    assert read_run(tmp_path / "run" / "run.yaml")["recipe"] == recipe
    given = columns_for(tmp_path / "run", vector={"price": "cost"})
    assert given == columns._replace(vector={"price": "cost"})
    assert columns_for(tmp_path / "run", lexical="name") == columns._replace(
        lexical="name", vector={"price": "price"} if lexical else None
    )
    rows = pd.read_parquet(room / "rows.parquet")[::9]  # of seven different letters
    for name in ("rows", "other"):
        rows.to_parquet(tmp_path / f"{name}.parquet")
        generate_file(tmp_path / "run", tmp_path / f"{name}.parquet", output=tmp_path / f"{name}.jsonl")
        rows["price"] = None
    texts = [(tmp_path / f"{name}.jsonl").read_text() for name in ("rows", "other")]
    assert [json.loads(line)["price"] for line in texts[1].splitlines()] == [None] * 7
    # Every row has the encoder's vector, so rows without a price can be shuffled too.
    measures = evaluate_file(tmp_path / "run", tmp_path / "other.parquet", vectors="all").measures
    assert measures["shuffled"]["rows"] == 7 and measures["shuffled"]["loss"] != measures["true"]["loss"]


def test_placeholders_in_texts_keep_their_places(base):
    kinds = {"user": 2, "image": VectorKind(3, tokens=2)}
    processor = make_processor(str(base), lexical_encoder=None, lexical_source="given", vectors=kinds)
    rows = Dataset.from_dict(
        {
            "name": ["app <lexical:image> b", "app"],
            "u": [[1.0, 2.0], None],
            "i": [[[1.0, 2.0, 3.0]], [[0.0, 0.0, 1.0]] * 2],
        }
    )
    columns = Columns("name", vector={"user": "u", "image": "i"})
    first, second = make_inputs(rows, columns, processor, (64, 64), counts=Counter())
    user, image = processor.lexical_token_id, processor.lexical_token_id + 1
    assert first["input_ids"][0] == user and first["input_ids"].count(image) == 2 and first["input_ids"][1] != image
    assert second["input_ids"][:4] == [image] * 4 and user not in second["input_ids"]
    batch = DataCollatorWithFusion(processor)([first, second])
    assert {name: tuple(each.shape) for name, each in batch["lexical_embeds"].items()} == {
        "user": (2, 1, 2),
        "image": (2, 2, 3),
    }


def test_the_columns_by_kind():
    assert Columns("a").by_kind == {} and Columns("a", vector="v").by_kind == {"lexical": "v"}
    assert Columns("a", "b", "c", {"d": "e"}).by_kind == {"d": "e"}
    assert list(Columns("a", "b", "c", {"d": "e"}).by_use.values()) == ["a", "b", "c", "e"]

"""From files to rows: loading, holding out, preparing, and encoding each text once."""

import json
from hashlib import md5

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from transformers import ByT5Tokenizer

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, processing_t5fusion
from t5fusion.finetune.column_vectors import read_vectors
from t5fusion.finetune.data import Columns, check_columns, hold_out, usable_rows, vector_columns
from t5fusion.finetune.files import load_rows
from t5fusion.finetune.inputs import make_inputs, prepare
from t5fusion.finetune.streaming import read_chunks
from t5fusion.finetune.vector_cache import cache_folder, encode_cached

ROWS = [{"name": "app_config", "text": "settings of an app"}, {"name": 'ümlaut, "quoted"', "text": "a b"}]
DIM = 8


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("T5FUSION_CACHE", str(tmp_path / "cache"))


class CountingEncoder:
    """Stands for a sentence-transformers model. A vector depends only on its text; `asked` lists the texts."""

    max_seq_length = 256

    def __init__(self):
        self.asked = []

    def encode(self, texts, normalize_embeddings, batch_size, show_progress_bar):
        self.asked.append(list(texts))
        rows = [np.random.default_rng(list(text.encode())).normal(size=DIM) for text in texts]
        return np.asarray(rows, dtype=np.float32)


@pytest.fixture
def encoder(monkeypatch):
    counting = CountingEncoder()
    monkeypatch.setattr(processing_t5fusion, "_load_encoder", lambda name, revision: counting)
    return counting


@pytest.fixture
def processor(tokenizer, encoder):
    return T5FusionProcessor(tokenizer, lexical_encoder="an/encoder", lexical_dim=DIM, template="Filename: {text}")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_each_kind_of_file_gives_the_same_rows(tmp_path, kind):
    file = tmp_path / f"rows.{kind}"
    rows = Dataset.from_list(ROWS)
    if kind == "parquet":
        rows.to_parquet(file)
    elif kind == "csv":
        rows.to_csv(file, index=False)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
        file.write_text("\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]")
    assert load_rows(str(file)).to_list() == ROWS


def test_the_name_of_a_file_is_not_a_pattern(tmp_path):
    for name in ("x1", "x[1]", "x?"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"name": name}) + "\n")
    for name in ("x[1]", "x?"):
        assert load_rows(str(tmp_path / f"{name}.jsonl"))["name"] == [name]
        assert [chunk.rows["name"] for chunk in read_chunks(str(tmp_path / f"{name}.jsonl"))] == [[name]]


def test_a_rewritten_file_is_read_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    for name in ("first", "second_longer"):
        file.write_text(json.dumps({"name": name}))
        assert load_rows(str(file))["name"][:] == [name]


@pytest.mark.parametrize(
    ("name", "content", "error", "sentence"),
    [
        ("none.jsonl", None, OSError, "there is no file .*none.jsonl"),
        ("rows.txt", b"a", ValueError, "is a .txt file; expected one of .jsonl, .json, .csv, .parquet"),
        ("rows", b"a", ValueError, "has no ending; expected one of"),
        ("rows.jsonl", b'{"a": 1}\n{"a": \n', ValueError, "rows.jsonl cannot be read as json: "),
        ("rows.jsonl", b"", ValueError, "rows.jsonl is empty; expected rows."),
        ("rows.parquet", b"PAR0 nothing of the kind", ValueError, "rows.parquet cannot be read as parquet: "),
        ("rows.csv", b"\xff\xfe\x00a,b\n\x00", ValueError, "rows.csv cannot be read as csv: "),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named(tmp_path, name, content, error, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=sentence):
        load_rows(str(tmp_path / name))


def test_the_error_about_a_missing_column_lists_all_columns():
    rows = Dataset.from_list(ROWS)
    check_columns(rows, ["name", "text"])
    with pytest.raises(ValueError, match="no column 'body'; the columns are name, text"):
        check_columns(rows, ["name", "body"])


@pytest.mark.parametrize(
    ("columns", "needed"),
    [
        (Columns("text", "target"), "text in 'text' and 'target'"),
        (Columns(None, "target", vector="vector"), "text in 'target', and a vector"),
        (Columns(None, "target", lexical="text"), "text in 'target' and 'text'"),
    ],
)
def test_the_error_about_rows_without_text_names_the_columns(columns, needed):
    rows = Dataset.from_dict({"text": ["", None], "target": ["a", "b"], "vector": [None, None]})
    with pytest.raises(ValueError, match=f"^none of 2 rows has {needed}. Check the names of the columns.$"):
        usable_rows(rows, columns)


def test_rows_with_the_same_text_are_on_the_same_side():
    names = [f"name_{number}" for number in range(100)] * 3 + [f" NAME_{number} " for number in range(100)]
    rows = Dataset.from_dict({"name": names, "row": list(range(400))})
    training, held_out = hold_out(rows, Columns("name"))
    sides = [{name.strip().lower() for name in part["name"]} for part in (training, held_out)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 100
    assert sorted(training["row"][:] + held_out["row"][:]) == list(range(400))
    assert 4 <= len(sides[1]) <= 20
    again = hold_out(rows.shuffle(seed=0), Columns("name"))[1]
    assert sorted(again["row"]) == sorted(held_out["row"])


def test_the_split_never_changes():
    """An interrupted run resumes with the same rows, also with vectors and with repeated texts."""
    names = [f"name_{number}" for number in range(100)] + [f" NAME_{number} " for number in range(50)]
    held_out = [n for n, name in enumerate(names) if int(md5(name.strip().lower().encode()).hexdigest(), 16) % 10 == 0]
    rows = Dataset.from_dict({"name": names, "v": [[float(n)] for n in range(150)], "row": list(range(150))})
    for vectors in ({}, {"vector": "v"}):
        training, validating = hold_out(rows, Columns("name", **vectors))
        assert validating["row"][:] == held_out
        assert training["row"][:] == sorted(set(range(150)) - set(held_out))


@pytest.mark.parametrize("prompts", [1, 3, 20])
@pytest.mark.parametrize("kind", ["vector", "lexical"])
def test_rows_with_the_same_prompt_are_distinguished_by_their_vectors(prompts, kind, capsys):
    others = [[float(n), 0.5] if kind == "vector" else f"item {n}" for n in range(200)]
    names = [f"describe it {n % prompts}" for n in range(200)]
    rows = Dataset.from_dict({"name": names * 2, "other": others * 2, "row": list(range(400))})  # each of them twice
    training, held_out = hold_out(rows, Columns("name", **{kind: "other"}))
    assert 20 <= len(held_out) <= 80 and len(training) + len(held_out) == 400
    assert set(training["name"]) == set(names)  # each prompt trains
    sides = [
        {(name, str(other)) for name, other in zip(p["name"], p["other"], strict=True)} for p in (training, held_out)
    ]
    assert not sides[0] & sides[1] and len(sides[0]) + len(sides[1]) == len(
        set(zip(names, map(str, others), strict=True))
    )
    again = hold_out(rows.shuffle(seed=0), Columns("name", **{kind: "other"}))[1]
    assert sorted(again["row"]) == sorted(held_out["row"])
    assert f"400 rows have {prompts} different text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "columns", "cause"),
    [
        ({"name": ["app_config"] * 3}, {}, "all 3 rows have the same text, so no row can be held out"),
        ({"name": ["a"] * 60}, {}, "all 60 rows have the same text, so no row"),
        ({"name": ["a"] * 60, "v": [[1.0]] * 60}, {"vector": "v"}, "have the same text and vector, so no row can"),
        ({"name": ["a"] * 60, "v": ["b"] * 60}, {"lexical": "v"}, "have the same text and 'v', so no row can"),
        ({"name": ["a", "b", "c"] * 20}, {}, "60 rows have 3 different texts, too few to hold some out"),
        ({"name": ["app"] * 9 + ["b"]}, {}, "10 rows have 2 different texts, too few"),
        ({"name": ["b", "c"]}, {}, "2 rows are too few to hold some out"),
    ],
)
def test_the_error_says_why_no_row_can_be_held_out(rows, columns, cause):
    with pytest.raises(ValueError, match=f"{cause}.*--validation"):
        hold_out(Dataset.from_dict(rows), Columns("name", **columns))


def test_a_bad_vector_is_named_before_the_split():
    rows = Dataset.from_dict({"name": ["a"] * 3, "v": [[1.0], [2.0], [1.0, 2.0]]})
    with pytest.raises(ValueError, match="row 2, column 'v': 2 numbers; expected one vector of 1"):
        hold_out(rows, Columns("name", vector="v"))


def test_columns_of_vectors_are_recognised_by_their_type(tmp_path):
    table = pa.table(
        {
            "text": ["a"],
            "ids": [[1, 2]],
            "words": [["a", "b"]],
            "number": [1.5],
            "list": pa.array([[1.5, 2.0]]),
            "half": pa.array([np.ones(2, dtype=np.float16)], pa.list_(pa.float16())),
            "large": pa.array([[1.5]], pa.large_list(pa.float32())),
            "fixed": pa.array([[1.5, 2.0]], pa.list_(pa.float32(), 2)),
            "several": [[[1.5], [2.0]]],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = load_rows(str(tmp_path / "rows.parquet"))
    assert vector_columns(rows) == ["list", "half", "large", "fixed", "several"]
    for column in ("list", "half", "large", "fixed"):
        assert next(read_vectors(rows, column)).dtype == torch.float32


def test_prepared_rows_equal_those_of_the_tokenizer(processor, encoder):
    texts, targets = ["app config", "a b"], ["settings of it", "c"]
    rows = prepare(texts, targets, torch.arange(16.0).reshape(2, DIM), processor)
    for row, text, target in zip(rows, texts, targets, strict=True):
        assert row["input_ids"] == processor.tokenizer(f"Filename: {text}")["input_ids"]
        assert row["labels"] == processor.tokenizer(target)["input_ids"]
        assert row["attention_mask"] == [1] * len(row["input_ids"])
        assert processor.lexical_token_id not in row["input_ids"]
    assert [row["lexical_embeds"].tolist() for row in rows] == torch.arange(16.0).reshape(2, DIM).tolist()
    assert encoder.asked == []


def test_white_space_is_the_same_in_training_and_inference(encoder):
    """ByT5's tokenizer has a token for each byte, so a lost newline is noticed."""
    processor = T5FusionProcessor(ByT5Tokenizer(), lexical_encoder="an/encoder", lexical_dim=DIM)
    text, target = "def f(x):\n    if x: return 1\n", " a \t b\n\nc "
    (row,) = prepare([text], [target], None, processor)
    called = processor(text, lexical_embeds=False, text_target=target, return_tensors=None)
    assert row == dict(called)
    assert processor.tokenizer.decode(row["input_ids"], skip_special_tokens=True) == text
    assert processor.tokenizer.decode(row["labels"], skip_special_tokens=True) == target


@pytest.mark.parametrize("columns", [Columns("t"), Columns("u", lexical="t")])
def test_the_encoder_gets_the_text_as_it_is(processor, encoder, columns):
    text = "def f(x):\n    return  x\n"
    make_inputs(Dataset.from_dict({"t": [text], "u": ["f"]}), columns, processor, (16, 16))
    assert encoder.asked == [[text]]


def test_a_placeholder_in_a_text_keeps_its_place(processor):
    texts, token_id = ["app_config", "app <lexical> config"], processor.lexical_token_id
    rows = prepare(texts, None, torch.ones(2, processor.lexical_dim), processor)
    assert [row["input_ids"].count(token_id) for row in rows] == [1, 1]
    assert rows[0]["input_ids"][0] == token_id != rows[1]["input_ids"][0]
    assert all(torch.equal(row["lexical_embeds"], torch.ones(processor.lexical_dim)) for row in rows)


def test_prepared_rows_are_cut_and_keep_their_end(processor):
    (row,) = prepare(["abcdefghijkl"], ["mnopqrstuvw"], None, processor, max_source=6, max_target=4)
    eos = processor.tokenizer.eos_token_id
    assert (len(row["input_ids"]), len(row["attention_mask"]), len(row["labels"])) == (6, 6, 4)
    assert row["input_ids"][-1] == row["labels"][-1] == eos
    assert row["input_ids"][:-1] == processor.tokenizer("Filename: abc")["input_ids"][:5]
    assert set(row) == {"input_ids", "attention_mask", "labels"}


def test_without_targets_there_are_no_labels(processor):
    (row,) = prepare(["a"], None, torch.ones(1, 2, DIM), processor)
    assert set(row) == {"input_ids", "attention_mask", "lexical_embeds"} and row["lexical_embeds"].shape == (2, DIM)


def test_each_distinct_text_is_encoded_once_and_only_in_the_first_run(processor, encoder):
    texts = ["b", "a", "b", "c", "a"]
    vectors = encode_cached(texts, processor)
    assert encoder.asked == [["b", "a", "c"]]
    assert vectors.dtype == torch.float32 and vectors.shape == (5, DIM)
    for text, vector in zip(texts, vectors, strict=True):
        assert torch.equal(vector, processor.encode([text])[0])
    encoder.asked.clear()
    assert torch.equal(encode_cached(texts, processor), vectors)
    assert torch.equal(encode_cached(["b", "a", "c"], processor), vectors[[0, 1, 3]])
    assert encoder.asked == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lexical_encoder", "another/encoder"),
        ("lexical_encoder_revision", "v2"),
        ("normalize", False),
        ("lexical_dtype", "float16"),
        ("lexical_max_tokens", 16),
    ],
)
def test_another_recipe_has_another_cache_file(processor, encoder, field, value):
    encode_cached(["a", "b"], processor)
    setattr(processor, field, value)
    encode_cached(["a", "b"], processor)
    assert len(encoder.asked) == 2
    assert len(list(cache_folder().glob("*/*.safetensors"))) == 2


def test_a_row_without_a_vector_is_prepared_as_text(processor):
    vectors = [torch.ones(DIM), None, torch.zeros(DIM)]
    for texts in (["a", "b", "c"], ["a", "b", "c <lexical>"]):
        rows = prepare(texts, texts, vectors, processor)
        assert ["lexical_embeds" in row for row in rows] == [True, False, True]
        assert rows[1] == prepare(["b"], ["b"], None, processor)[0]
        assert torch.equal(rows[2]["lexical_embeds"], torch.zeros(DIM))
        batch = DataCollatorWithFusion(processor)(rows)
        assert (batch["input_ids"] == processor.lexical_token_id).sum(1).tolist() == [1, 0, 1]

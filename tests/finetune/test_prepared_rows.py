"""Prepared rows on disk: they equal the rows in memory, and a training on them has the same losses bit for bit."""

import json
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import portalocker
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from t5fusion import DataCollatorWithFusion, T5WithFusion, VectorKind, tiny_t5_v2
from t5fusion.blocks_t5fusion import read_blocks
from t5fusion.common.base_models import make_processor
from t5fusion.finetune import inputs as inputs_module
from t5fusion.finetune.column_vectors import read_vectors
from t5fusion.finetune.data import Columns, _hashes, _held_out, hold_out, is_held_out
from t5fusion.finetune.file_training import train_file
from t5fusion.finetune.inputs import input_parts, make_inputs, prepare
from t5fusion.finetune.options import TrainingOptions
from t5fusion.finetune.prepared_rows import IN_USE, NEW, keep_rows, rows_folder
from t5fusion.finetune.record import rows_digest
from t5fusion.finetune.training import train
from t5fusion.finetune.vector_cache import cache_folder
from t5fusion.kinds_t5fusion import plain_kind

COLUMNS = Columns("name", "target", vector="vector")
LIMITS = (128, 64)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T5FUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def some_rows(number=40, dim=8):
    numbers = random.Random(0)
    vectors = [None if row % 7 == 3 else [numbers.gauss(0, 1) for _ in range(dim)] for row in range(number)]
    names = [f"app_{row} {numbers.randint(0, 9)}" for row in range(number)]
    return Dataset.from_dict({"name": names, "target": [name[::-1] for name in names], "vector": vectors})


def assert_same(kept, expected):
    assert len(kept) == len(expected)
    for row, other in zip(kept, expected, strict=True):
        assert row.keys() == other.keys()
        assert all(np.array_equal(np.asarray(row[name]), np.asarray(other[name])) for name in row)


def test_rows_on_disk_equal_rows_in_memory(tmp_path, processor):
    expected = make_inputs(some_rows(), COLUMNS, processor, LIMITS, counts=Counter())
    kept = keep_rows(tmp_path / "rows", [expected[:17], expected[17:18], expected[18:]])
    assert "lexical_embeds" not in kept[3] and kept[4]["lexical_embeds"].dtype == np.float32
    assert_same(kept, expected)
    assert_same([kept[index] for index in range(-40, 0)], expected)
    assert_same(kept[15:20], expected[15:20])
    for index in (40, -41):
        with pytest.raises(IndexError, match="40 rows"):
            kept[index]
    assert rows_digest(kept) == rows_digest(expected)


def test_rows_of_several_kinds_on_disk_equal_those_in_memory(tmp_path, base):
    kinds = {"user": 8, "image": VectorKind(2, tokens=3), "price": VectorKind(1, scale="log")}
    processor = make_processor(str(base), lexical_encoder=None, lexical_source="given", vectors=kinds)
    images = [[[float(row), float(vector)] for vector in range(row % 4)] for row in range(40)]
    prices = [None if row % 3 == 0 else row for row in range(40)]
    rows = some_rows().add_column("img", images).add_column("price", prices)
    columns = Columns("name", "target", vector={"user": "vector", "image": "img", "price": "price"})
    expected = make_inputs(rows, columns, processor, LIMITS, counts=Counter())
    kept = keep_rows(tmp_path / "rows", [expected[:17], expected[17:]], tuple(kinds))
    for row, (of_disk, of_memory) in enumerate(zip(kept, expected, strict=True)):
        assert of_disk.keys() == of_memory.keys()
        vectors, others = (fields.get("lexical_embeds", {}) for fields in (of_disk, of_memory))
        given = {"user": rows[row]["vector"], "image": images[row], "price": prices[row]}
        assert list(vectors) == list(others) == [name for name, value in given.items() if value not in (None, [])]
        for name, value in vectors.items():
            assert value.dtype == np.float32 and np.array_equal(value, others[name].numpy())
            assert np.array_equal(np.squeeze(value), np.squeeze(np.asarray(given[name], np.float32)))
    assert "lexical_embeds" not in kept[24]  # It has no vector of any kind.
    assert kept[2]["lexical_embeds"]["image"].shape == (2, 2) and kept[1]["lexical_embeds"]["image"].shape == (2,)
    batch, other = (DataCollatorWithFusion(processor)(rows[:5])["lexical_embeds"] for rows in (kept, expected))
    assert all(torch.equal(batch[name], other[name]) for name in kinds) and batch["image"].shape == (5, 3, 2)


@pytest.mark.parametrize("size", [5, 8192])
def test_blocks_of_rows_on_disk_equal_those_of_rows_in_memory(tmp_path, size):
    kinds = {"user": VectorKind(8, scale=None), "image": VectorKind(2, tokens=3)}
    numbers = np.random.default_rng(0)
    rows = []
    for index in range(60):
        images = numbers.standard_normal((index % 4, 2), dtype=np.float32)
        users = numbers.standard_normal((0 if index % 5 == 2 else 1, 8), dtype=np.float32)
        vectors = {name: of_kind for name, of_kind in (("user", users), ("image", images)) if of_kind.size}
        labels = None if index % 7 == 3 else numbers.integers(-1, 9, index % 6).tolist()
        rows.append({"input_ids": [5], "attention_mask": [1], "labels": labels, "lexical_embeds": vectors or None})
    kept = keep_rows(tmp_path / "rows", [rows[:17], rows[17:18], rows[18:]], tuple(kinds))
    blocks, expected = list(read_blocks(kept, kinds, size)), list(read_blocks(rows, kinds, 8192))
    assert len(expected) == 1 and max(block.rows for block in blocks) <= size
    ends = np.cumsum([0, *(block.rows for block in blocks)])
    assert ends[-1] == expected[0].rows < 60
    for block, start, end in zip(blocks, ends[:-1], ends[1:], strict=True):
        whole = expected[0].between(start, end)
        assert np.array_equal(block.tokens, whole.tokens) and np.array_equal(block.lengths, whole.lengths)
        for name in block.vectors:
            assert np.array_equal(block.vectors[name], whole.vectors[name])
            assert np.array_equal(block.counts[name], whole.counts[name])


def test_the_start_of_rows_on_disk_is_that_of_rows_in_memory(tmp_path, base, processor):
    rows = make_inputs(some_rows(), COLUMNS, processor, LIMITS, counts=Counter())
    kept = keep_rows(tmp_path / "rows", [rows])
    of_disk, of_memory = (T5WithFusion(base, lexical_dim=8) for _ in range(2))
    assert of_disk.fit_fusion(kept) == of_memory.fit_fusion(rows)
    for value, other in zip(of_disk.parameters(), of_memory.parameters(), strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(7, np.float32), "row 4 has a vector of 7 numbers; expected 8"),
        (np.full(8, np.nan, np.float32), "row 4, `lexical_embeds`: 8 numbers are NaN"),
        (np.full(8, 1e-20, np.float32), "row 4, `lexical_embeds`: a vector of Euclidean norm 2.83e-20"),
    ],
)
def test_a_wrong_vector_on_disk_is_named(tmp_path, wrong, message):
    row = {"input_ids": [5], "attention_mask": [1], "labels": [5], "lexical_embeds": np.ones(8, np.float32)}
    kept = keep_rows(tmp_path / "rows", [[row] * 3, [row, row | {"lexical_embeds": wrong}, row]])
    with pytest.raises(ValueError, match=message):
        list(read_blocks(kept, plain_kind(8), 8192))


def test_a_block_of_large_vectors_has_fewer_rows(monkeypatch, processor):
    monkeypatch.setattr(inputs_module, "MOST_NUMBERS", 8 * 5)
    expected = make_inputs(some_rows(), COLUMNS, processor, LIMITS, counts=Counter())
    parts = list(input_parts(some_rows(), COLUMNS, processor, LIMITS, Counter()))
    assert [len(part) for part in parts][:3] == [6, 6, 5]  # five with a vector, and in two of them one without
    assert_same([row for part in parts for row in part], expected)


@pytest.mark.parametrize("placeholder_in", [None, 2, 35])
def test_the_parts_do_not_change_the_rows(monkeypatch, processor, placeholder_in):
    """A placeholder in one text changes how all rows of the set are made, whatever part it is in."""
    rows = some_rows()
    if placeholder_in is not None:
        rows = rows.map(
            lambda row, index: {"name": row["name"] + "<lexical>" * (index == placeholder_in)}, with_indices=True
        )
        rows = rows.filter(lambda row: row["vector"] is not None or "<lexical>" not in row["name"])
    vectors = list(read_vectors(rows, "vector"))
    expected = prepare(rows["name"][:], rows["target"][:], vectors, processor, *LIMITS, Counter())
    monkeypatch.setattr(inputs_module, "BLOCK", 3)
    parts = list(input_parts(rows, COLUMNS, processor, LIMITS, Counter()))
    assert max(map(len, parts)) == 3
    assert_same([row for part in parts for row in part], expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name", [(898, "02e2b430dc68"), (102, "2cf505a0a6de")]),
        ("one", [(908, "454f6b1801d3"), (92, "2516e96282a9")]),  # few texts: split by text and vector
    ],
)
def test_split_and_digest_are_those_of_earlier_releases(text, expected):
    """These values were recorded when all rows were in lists. A resumed training compares them."""
    numbers = random.Random(0)
    names = [f"{numbers.choice(['app', 'App', 'lib'])} {numbers.randint(0, 400)}" for _ in range(1000)]
    columns = {"name": names, "target": [name[::-1] for name in names]}
    columns |= {"vector": [[float(len(name)), numbers.random()] for name in names]}
    rows = Dataset.from_dict(columns | {"one": [f"x{row % 3}" for row in range(1000)]})
    processor = make_processor(str(tiny_t5_v2.PATH), lexical_encoder=None, lexical_dim=2, lexical_source="given")
    sides = hold_out(rows, Columns(text, "target", vector="vector"))
    made = [make_inputs(side, Columns(text, "target", vector="vector"), processor, LIMITS) for side in sides]
    assert [(len(rows), rows_digest(rows)) for rows in made] == expected


def test_hashes_hold_out_the_names_that_is_held_out_does():
    names = [f"Name {number} ä" for number in range(500)]
    assert _held_out(_hashes(iter(names))).tolist() == [is_held_out(name, 10) for name in names]


def test_a_training_on_disk_has_the_weights_and_losses_of_one_in_memory(tmp_path, base, processor):
    rows = make_inputs(some_rows(), COLUMNS, processor, LIMITS, counts=Counter())
    options = TrainingOptions(base_model=str(base), epochs=2, batch_size=8, precision="fp32")
    trained = []
    for name, side in {"memory": lambda file, part: part, "disk": lambda file, part: keep_rows(file, [part])}.items():
        sides = [side(tmp_path / f"{name}{index}", part) for index, part in enumerate((rows[:32], rows[32:]))]
        model = train(*sides, processor, options, tmp_path / name)
        history = json.loads((tmp_path / name / "training.json").read_text())["history"]
        losses = [(entry.get("loss"), entry.get("eval_loss"), entry.get("grad_norm")) for entry in history]
        trained.append((losses, dict(model.named_parameters())))
    (losses, weights), (other_losses, other_weights) = trained
    assert losses == other_losses and len(losses) == 4
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_a_training_removes_its_prepared_rows(tmp_path, cache, base):
    some_rows().to_json(tmp_path / "rows.jsonl")
    options = TrainingOptions(base_model=str(base), epochs=1, batch_size=8, precision="fp32")
    train_file(tmp_path / "rows.jsonl", COLUMNS, tmp_path / "run", options)
    assert list((cache / "rows").iterdir()) == []


def test_the_next_training_removes_what_a_killed_one_left(cache, monkeypatch):
    parent = cache_folder().parent / "rows"
    # A process makes its folder, then the lock file, then locks that: another one may look between any two of these.
    left = {"killed", "killed early", "used"}
    for name in left:
        (parent / name).mkdir(parents=True)
    (parent / "killed" / IN_USE).touch()
    with (parent / "used" / IN_USE).open("w") as file:
        portalocker.lock(file, portalocker.LOCK_EX)
        with rows_folder() as folder:
            assert {each.name for each in parent.iterdir()} == {*left, folder.name}
        later = time.time() + NEW + 1
        monkeypatch.setattr(time, "time", lambda: later)
        with rows_folder() as folder:
            assert {each.name for each in parent.iterdir()} == {"used", folder.name}


def test_a_file_system_without_locks_is_no_hindrance(cache, monkeypatch):
    def refuse(*_):
        raise portalocker.LockException("Function not implemented")

    monkeypatch.setattr(portalocker, "lock", refuse)
    with rows_folder() as folder:
        assert folder.is_relative_to(cache)
    assert not folder.exists()


def test_without_a_cache_the_folder_is_a_temporary_one(cache):
    cache.write_text("a file where the folder should be")
    with rows_folder() as folder:
        (folder / "rows").touch()
    assert not folder.exists() and not folder.is_relative_to(cache)


def test_a_full_disk_is_told_in_one_sentence(processor):
    rows = make_inputs(some_rows(), COLUMNS, processor, LIMITS, counts=Counter())
    with pytest.raises(OSError, match=r"/dev/full cannot be written \(No space left on device\)"):
        keep_rows(Path("/dev/full"), [rows])


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.int64()])
def test_vectors_are_read_from_each_type_of_number(kind):
    values = [[1, 2], None, [0, 0], [3, 4]]
    expected = [None if value is None else torch.tensor(value, dtype=torch.float32) for value in values]
    for lists in (pa.list_(kind), pa.large_list(kind), pa.list_(kind, 2)):
        numbers = [None if value is None else np.array(value, dtype=kind.to_pandas_dtype()) for value in values]
        read = list(read_vectors(Dataset(pa.table({"vector": pa.array(numbers, lists)})), "vector"))
        for vector, other in zip(read, expected, strict=True):
            assert (vector is None) == (other is None)
            assert other is None or (vector.dtype == torch.float32 and torch.equal(vector, other))

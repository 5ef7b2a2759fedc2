"""Rows that are read while the model trains: their order, those held out, bad rows, resumed and shared trainings."""

import json
import random
import re
import signal
from functools import partial
from itertools import islice

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from author import Author
from datasets import Dataset
from forks import COMMAND, Forks
from hub_server import HubServer
from safetensors.torch import load_file

from t5fusion import processing_t5fusion
from t5fusion.finetune import Columns, Recipe, TrainingOptions, read_run, row_stream, streaming, train_file
from t5fusion.finetune.column_vectors import NotFinite
from t5fusion.finetune.data import load_split
from t5fusion.finetune.row_stream import Block, RowReader, RowStream

DIM, ROWS, FIRST, CHUNK = 8, 300, 60, 16
EMPTY = (3, 130)  # rows without a text
COLUMNS = Columns("name", "text", vector="vector")
WORDS = ["--text-column", "name", "--target-column", "text", "--vector-column", "vector", "--precision", "fp32"]
STREAM = ["--streaming", "--shuffle-buffer", "40", "--max-steps"]
TRAIN = ["train", "rows.jsonl", *WORDS, "--base-model", "base"]
SMALL = f"""
import t5fusion.finetune.row_stream as rows, t5fusion.finetune.streaming as streaming
streaming.FIRST = rows.FIRST = {FIRST}
streaming.CHUNK, rows.VECTOR_BLOCK = {CHUNK}, 8
"""
# The process sends itself a signal before the step that its last argument names.
SIGNALLED = f"""{SMALL}
import os, signal, sys
from transformers import TrainerCallback
from t5fusion.finetune import training

number, step = int(sys.argv.pop()), int(sys.argv.pop())

class Send(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == step:
            os.kill(os.getpid(), number)

class Sent(training.FusionTrainer):
    def __init__(self, *args, callbacks, **kwargs):
        super().__init__(*args, callbacks=[*callbacks, Send()], **kwargs)

training.FusionTrainer = Sent
{COMMAND}
"""


def rows_to_write():
    """Rows, some of which have the text of one of the first fifty rows."""
    numbers = random.Random(0)
    for row in range(ROWS):
        vector = [round(numbers.gauss(0, 1), 3) for _ in range(DIM)]
        name = f"app_{row % 50 if row % 4 == 0 else row}"
        yield {"name": None if row in EMPTY else name, "text": f"settings of {'abcdefgh'[row % 8]}", "vector": vector}


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    """A folder with a base model and the same rows as JSONL, CSV, Parquet, a folder of two files, and Arrow."""
    room = tmp_path_factory.mktemp("stream")
    save_plain_t5(room / "base", d_model=32, num_layers=1)
    save_plain_t5(room / "undropped", d_model=32, num_layers=1, dropout_rate=0.0)
    rows = list(rows_to_write())
    (room / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pd.DataFrame(row | {"vector": json.dumps(row["vector"])} for row in rows).to_csv(room / "rows.csv", index=False)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, room / "rows.parquet")
    (room / "shards").mkdir()
    pq.write_table(table[:170], room / "shards" / "a.parquet")
    pq.write_table(table[170:], room / "shards" / "b.parquet")
    Dataset(table).save_to_disk(room / "saved")
    (room / "arrow").mkdir()
    (room / "saved" / "data-00000-of-00001.arrow").rename(room / "arrow" / "rows.arrow")
    return room


@pytest.fixture(scope="module")
def forks(room):
    forks = Forks(room)
    yield forks
    forks.close()


@pytest.fixture
def small(monkeypatch):
    """Few rows are read in advance, and few at a time."""
    monkeypatch.setattr(streaming, "FIRST", FIRST)
    monkeypatch.setattr(row_stream, "FIRST", FIRST)
    monkeypatch.setattr(streaming, "CHUNK", CHUNK)
    monkeypatch.setattr(row_stream, "VECTOR_BLOCK", 8)


def reader_of(data, columns=COLUMNS, **options):
    rows, held_out = load_split(str(data), columns, streaming=True)
    return RowReader(str(data), columns, rows, held_out, **options), rows, held_out


def names_in(blocks):
    return [name for block in blocks for name in block.rows["name"].to_pylist()]


def numbers_block(start, end):
    return Block(pa.table({"number": pa.array(range(start, end))}), np.arange(start, end))


def counting_stream(rows, seed=0, set_rows=50, buffer=20):
    """Return a stream over the numbers of a set, and the list of what it has read and made."""
    done = []

    def read():
        for start in range(0, set_rows, 7):
            done.append(("read", start))
            yield numbers_block(start, min(start + 7, set_rows))

    def make(block):
        done.append(("made", block.numbers.tolist()))
        return [{"number": number} for number in block.rows["number"].to_pylist()]

    return RowStream(read, make, rows, buffer, seed), done


def test_rows_are_shuffled_within_windows_and_start_over(small):
    stream, _ = counting_stream(100)
    order = [row["number"] for row in stream]
    assert len(stream) == 100
    for first in (0, 50):
        for start, end in ((0, 20), (20, 40), (40, 50)):
            window = order[first + start : first + end]
            assert sorted(window) == list(range(start, end)) and window != sorted(window)
    assert order[:50] != order[50:]  # Each pass has its own order.
    assert [row["number"] for row in counting_stream(100)[0]] == order
    assert [row["number"] for row in counting_stream(100, seed=1)[0]] != order
    with pytest.raises(IndexError, match="there is no row 100; the training has 100 rows"):
        stream[100]


def test_a_row_has_its_number_whatever_was_read_before(small):
    stream, done = counting_stream(200)
    order = [row["number"] for row in stream]
    blocks = [block for word, block in done if word == "made"]
    for index in (0, 37, 49, 50, 131, 199):
        resumed, done = counting_stream(200)
        assert resumed[index]["number"] == order[index]
        (made,) = [block for word, block in done if word == "made"]
        assert made in blocks  # It is the same block, so that an encoder gets the same texts together.
    assert stream[4]["number"] == order[4]  # It goes back.


def test_no_more_is_read_than_the_window(small):
    stream, done = counting_stream(100, set_rows=10**9)
    stream[0], stream[19]
    assert [start for word, start in done if word == "read"] == [0, 7, 14]
    assert [len(block) for word, block in done if word == "made"] == [8, 4]


@pytest.mark.parametrize("data", ["rows.jsonl", "rows.csv", "rows.parquet", "shards", "arrow"])
def test_every_kind_of_file_is_read_without_the_rows_held_out(room, small, data):
    reader, first, held_out = reader_of(room / data)
    blocks = list(reader.read())
    assert max(len(block.numbers) for block in blocks) <= CHUNK
    rows = list(rows_to_write())
    assert len(first) + len(held_out) == FIRST - 1 and len(held_out) > 2
    kept = [row for row in range(ROWS) if row not in EMPTY and rows[row]["name"] not in held_out["name"]]
    assert [number for block in blocks for number in block.numbers] == kept
    assert names_in(blocks) == [rows[row]["name"] for row in kept]
    assert names_in(blocks)[: len(first)] == first["name"]  # The start is fitted to rows that train too.
    # A later row with such a text is left out, and all others train.
    repeated = {row["name"] for row in rows[FIRST:]} & set(held_out["name"])
    assert repeated and len(kept) < ROWS - len(EMPTY) - len(held_out)


def test_a_small_set_is_split_as_without_streaming(room):
    streamed, whole = (load_split(str(room / "rows.jsonl"), COLUMNS, streaming=each) for each in (True, False))
    assert [part["name"] for part in streamed] == [part["name"] for part in whole]


def test_rows_that_share_prompts_are_held_out_by_pair(room, small, tmp_path):
    rows = [row | {"name": f"prompt {index % 3}"} for index, row in enumerate(rows_to_write())]
    rows[200]["vector"] = rows[11]["vector"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    reader, first, held_out = reader_of(tmp_path / "pairs.parquet")
    assert set(held_out["name"]) <= set(first["name"])
    read = [number for block in reader.read() for number in block.numbers]
    left_out = [row for row in range(FIRST) if row not in read]
    assert len(left_out) == len(held_out) and read == [row for row in range(ROWS) if row not in left_out]
    copy = rows[left_out[0]]
    pq.write_table(pa.Table.from_pylist([*rows, copy, rows[0]]), tmp_path / "pairs.parquet")
    reader, _, _ = reader_of(tmp_path / "pairs.parquet")
    assert [number for block in reader.read() for number in block.numbers] == [*read, ROWS + 1]


def test_at_most_so_many_rows_are_read(room, small):
    reader, _, _ = reader_of(room / "rows.jsonl", limit=100)
    assert sum(len(block.numbers) for block in reader.read()) == 100


BAD = {
    "of another width": (
        [1.0, 2.0, 3.0],
        "row 208, column 'vector': 3 numbers; expected one vector of 8 finite numbers",
    ),
    "that is not finite": ([float("nan")] * DIM, "row 208, column 'vector': nan at index 0; expected"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_error_names_the_row(room, small, tmp_path, case):
    rows = list(rows_to_write())
    rows[208]["vector"], sentence = BAD[case]  # the first row of a chunk
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bad.parquet")
    reader, _, _ = reader_of(tmp_path / "bad.parquet")
    blocks = reader.read()
    before = list(islice(blocks, 208 // CHUNK))
    assert before[-1].numbers[-1] == 207
    with pytest.raises(ValueError, match=re.escape(sentence)) as raised:
        next(blocks)
    assert isinstance(raised.value, NotFinite) == (case == "that is not finite")


def test_rows_with_nan_are_left_out_and_counted(room, small, tmp_path, capsys):
    rows = list(rows_to_write())
    for row in (90, 91, 208):
        rows[row]["vector"] = [float("inf")] * DIM
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bad.parquet")
    reader, _, _ = reader_of(tmp_path / "bad.parquet", skip_nan=True)
    for _ in range(2):  # The second pass counts nothing twice.
        read = {number for block in reader.read() for number in block.numbers}
        assert not read & {3, 90, 91, 130, 208} and {89, 92, 207, 209} <= read
    capsys.readouterr()
    reader.report()
    expected = ("3 rows with NaN or infinity left out.", "1 row with an empty text left out.")
    assert capsys.readouterr().err.splitlines() == [f"After the first 60 rows, {words}" for words in expected]


class CountingEncoder:
    """Stands for a sentence-transformers model. It keeps the texts of each call, and draws random numbers."""

    max_seq_length = 256

    def __init__(self):
        self.calls = []

    def encode(self, texts, normalize_embeddings, batch_size, show_progress_bar):
        self.calls.append(list(texts))
        torch.rand(1)
        return np.stack([np.random.default_rng(sum(map(ord, text))).standard_normal(DIM) for text in texts]).astype("f")


def test_an_encoder_makes_vectors_in_blocks_and_caches_the_first_only(room, small, tmp_path, monkeypatch):
    columns, steps = Columns("name", "text"), 25
    options = partial(TrainingOptions, base_model=str(room / "base"), max_steps=steps, streaming=True)
    weights = []
    for cold in (True, False):
        encoder = CountingEncoder()
        monkeypatch.setenv("T5FUSION_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(processing_t5fusion, "_load_encoder", lambda name, revision, encoder=encoder: encoder)
        run = tmp_path / f"run {cold}"
        recipe = Recipe(encoder="an/encoder", lexical_dim=DIM)
        train_file(room / "rows.jsonl", columns, run, options(shuffle_buffer=40, precision="fp32"), recipe)
        assert all(len(texts) <= 8 for texts in encoder.calls[2 if cold else 0 :])  # the first: in advance
        assert sum(map(len, encoder.calls)) >= steps * 8 * 0.9
        weights.append((run / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]  # It does not matter what the cache holds.
    stored = [load_file(file)["hashes"] for file in (tmp_path / "cache").rglob("*.safetensors")]
    assert 0 < sum(map(len, stored)) <= FIRST
    assert not any(path.is_file() for path in (tmp_path / "cache" / "rows").rglob("*"))


def succeed(forks, *words, code=SMALL + COMMAND, status=0, **options):
    actual, out, err = forks.run(*words, code=code, **options)
    assert actual == status, err
    return out + err


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def history(folder):
    return json.loads((folder / "training.json").read_text())["history"]


def check_equal(folder, expected):
    assert weights(folder).keys() == weights(expected).keys()
    assert all(torch.equal(value, weights(expected)[name]) for name, value in weights(folder).items())


LONG = [*TRAIN, *STREAM, "12", "--gradient-accumulation", "2", "--save-steps", "5"]  # in step 9, a second window


@pytest.fixture(scope="module")
def whole(room, forks):
    """What an uninterrupted training has printed. Its folder is `whole`."""
    return succeed(forks, *LONG, "--output", "whole")


def test_a_run_is_recorded_and_trains_again(room, forks, whole):
    record = json.loads((room / "whole" / "training.json").read_text())
    assert (record["options"]["max_steps"], record["rows"], record["options"]["streaming"]) == (12, 192, True)
    assert [entry["step"] for entry in record["history"] if "eval_loss" in entry] == [2, 4, 6, 8, 10, 12]
    assert "step 12: loss" in whole and "After the first 60 rows, 1 row with an empty text left out." in whole
    yaml = (room / "whole" / "run.yaml").read_text()
    assert "streaming: true\n" in yaml and "max_steps: 12\n" in yaml and "epochs" not in yaml
    assert read_run(room / "whole" / "run.yaml")["options"].shuffle_buffer == 40
    succeed(forks, "train", "--config", "whole/run.yaml", "--output", "again")
    check_equal(room / "again", room / "whole")
    assert "192 rows, 12 steps, batches of 8" in succeed(forks, "info", "whole")
    assert "eval_loss is exactly as in training." in succeed(forks, "evaluate", "whole")
    assert succeed(forks, "generate", "whole", "--file", "rows.jsonl", "--limit", "2", "--max-new-tokens", "3")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
def test_an_interrupted_run_ends_with_the_same_weights(room, forks, whole, number):
    status, name = 130 if number == signal.SIGINT else -number, f"resumed-{int(number)}"
    succeed(forks, *LONG, "--output", name, 8, int(number), code=SIGNALLED, status=status)
    saved = 9 if number == signal.SIGINT else 5
    assert [path.name for path in (room / name / "checkpoints").glob("*")] == [f"checkpoint-{saved}"]
    succeed(forks, *LONG, "--output", name, "--resume")
    check_equal(room / name, room / "whole")
    resumed, uninterrupted = ([entry.get("eval_loss") for entry in history(room / run)] for run in (name, "whole"))
    assert resumed == uninterrupted


def test_two_processes_train_on_the_rows_of_one(room, forks):
    # Without dropout, because each process draws its own random numbers.
    exact = ["train", "rows.jsonl", *WORDS, "--base-model", "undropped", "--dropout", "0", *STREAM, "8"]
    exact += ["--logging-steps", "1", "--validation", "rows.parquet", "--limit", "120"]
    succeed(forks, *exact, "--batch-size", "8", "--output", "alone")
    launched = {"ACCELERATE_USE_CPU": "false", "ACCELERATE_MIXED_PRECISION": "no"}
    started = forks.start_two(*exact, "--batch-size", "4", "--output", "two", code=SMALL + COMMAND, **launched)
    ended = [forks.end(each) for each in started]
    assert [status for status, _, _ in ended] == [0, 0], ended[0][2] + ended[1][2]
    alone, two = ([entry["loss"] for entry in history(room / name) if "loss" in entry] for name in ("alone", "two"))
    assert len(alone) == 8 and two == pytest.approx(alone, rel=5e-6)


def test_a_bad_row_stops_the_training_with_one_sentence(room, forks):
    rows = list(rows_to_write())
    rows[208]["vector"] = [None] * DIM
    (room / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "bad.jsonl", *WORDS, "--base-model", "base", *STREAM, "40", "--save-steps", "8"]
    *_, error = succeed(forks, *words, "--output", "bad", status=1).splitlines()
    assert error.startswith("t5fusion: row 208, column 'vector': ") and error.endswith("pass --skip-nan.")
    assert any((room / "bad" / "checkpoints").iterdir())  # What was learnt before that row is kept.


READ = f"""{SMALL}
import sys
from t5fusion.finetune.data import Columns, load_split
columns = Columns("name", "text", vector="vector")
first, held_out = load_split("me/rows", columns, streaming=True)
reader = rows.RowReader("me/rows", columns, first, held_out)
print(len(held_out), sum(len(block.numbers) for block in reader.read()))
"""


def test_a_data_set_on_the_hub_is_streamed(room, small, tmp_path):
    reader, _, held_out = reader_of(room / "shards")
    expected = f"{len(held_out)} {sum(len(block.numbers) for block in reader.read())}\n"
    with HubServer() as hub:
        hub.add_folder("me/rows", room / "shards")
        author = Author(hub, tmp_path / "author", token=None)
        assert author.python(READ)[0] == expected
    assert not [path for path in (tmp_path / "author").rglob("*") if path.suffix in (".parquet", ".arrow")]

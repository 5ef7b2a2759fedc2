"""Vectors in NumPy files beside a table: read, trained, resumed, evaluated, generated with, and refused."""

import json
import os
import pickle
import shutil

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pytest
import torch
from forks import Forks

from t5fusion.common.folder_info import folder_info
from t5fusion.finetune import Columns, columns_for, evaluate_file, generate_file, load_trained, read_run
from t5fusion.finetune.column_vectors import read_vectors
from t5fusion.finetune.files import load_rows
from t5fusion.finetune.streaming import CHUNK, load_first, read_chunks
from t5fusion.hub_export import export
from t5fusion.kinds_t5fusion import VectorKind

ROWS = 60
NAMES = [f"app_{'abcdefgh'[row % 8]}{'stuvwxyz'[row // 8]}" for row in range(ROWS)]
RANDOM = np.random.default_rng(0)
USERS = RANDOM.standard_normal((ROWS, 6)).astype("float32")
PRICES = np.round(10 ** RANDOM.uniform(0, 4, ROWS)).astype("int32")
TAGS = RANDOM.standard_normal((ROWS, 2, 4)).astype("float16")
COLUMNS = ["--text-column", "name", "--target-column", "text"]
USUAL = ["--base-model", "base", "--epochs", "1", "--batch-size", "4", "--precision", "fp32"]
FILES = ["--vector-column", "user=data/user.npy:mlp", "--vector-column", "price.npy:log"]
ONE = ["--vector-column", "data/user.npy"]


def table_of(rows):
    return pd.DataFrame({"name": [f"n{row}" for row in range(rows)], "text": "t"})


def write(table, path):
    """Write a table in the format that a file's ending asks for."""
    if path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".feather":
        feather.write_feather(table, str(path), compression="zstd")
    else:
        with pa.ipc.new_stream(str(path), (arrow := pa.Table.from_pandas(table)).schema) as writer:
            writer.write_table(arrow)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def both(data, *files):
    """Return the vectors in NumPy files beside a table, after checking that reading it in chunks gives the same."""
    rows = load_rows(data, vector_files=files)
    chunks = [chunk.rows for chunk in read_chunks(data, vector_files=files)]
    read = {file: list(read_vectors(rows, file)) for file in files}
    for file in files:
        in_chunks = [vector for chunk in chunks for vector in read_vectors(chunk, file)]
        assert len(in_chunks) == len(read[file]) and all(map(torch.equal, in_chunks, read[file]))
    return read


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet", ".arrow", ".feather"])
def test_an_array_is_a_column_beside_each_format(place, ending):
    rows = CHUNK + 100
    write(table_of(rows), place / f"rows{ending}")
    floats = ("float16", "float32", "float64")
    arrays = {f"{name}.npy": RANDOM.standard_normal((rows, 3)).astype(name) for name in floats}
    arrays["int8.npy"] = RANDOM.integers(-9, 9, (rows, 3), dtype="int8")
    arrays["one.npy"] = RANDOM.standard_normal(rows).astype("float16")
    arrays["several.npy"] = RANDOM.standard_normal((rows, 2, 3)).astype("float32")
    for file, array in arrays.items():
        np.save(file, array)
    read = both(f"rows{ending}", *arrays)
    for file, array in arrays.items():
        expected = torch.from_numpy(array.reshape(rows, 1) if array.ndim == 1 else array).float()
        assert torch.equal(torch.stack(read[file]), expected)
    some = load_rows(f"rows{ending}", vector_files=list(arrays)).select([5, 300, 4])
    numbers = [vector.item() for vector in read_vectors(some, "one.npy")]
    assert numbers == arrays["one.npy"][[5, 300, 4]].tolist()


def test_columns_in_any_order_of_memory_are_read(place):
    """numpy.save keeps the order of an array, and a DataFrame's array has its columns one after the other."""
    write(table_of(9), place / "rows.csv")
    array = RANDOM.standard_normal((9, 2, 3)).astype("float32")
    np.save("columns.npy", np.asfortranarray(array))
    np.save("big.npy", array.astype(">f4"))
    assert np.load("columns.npy").flags.f_contiguous
    for vectors in both("rows.csv", "columns.npy", "big.npy").values():
        assert torch.equal(torch.stack(vectors), torch.from_numpy(array))


def test_texts_and_folders_have_arrays_too(place):
    np.save("v.npy", vectors := RANDOM.standard_normal((ROWS, 3)).astype("float32"))
    (place / "names.txt").write_text("\n".join(NAMES))
    chunks = [chunk.rows for chunk in read_chunks("names.txt", vector_files=["v.npy"])]
    assert np.array_equal(np.concatenate([chunk.with_format("numpy")["v.npy"][:] for chunk in chunks]), vectors)
    (place / "shards").mkdir()  # datasets reads a folder as it reads a data set on the Hub.
    write(table_of(40), place / "shards/a.parquet")
    write(table_of(20), place / "shards/b.parquet")
    assert torch.equal(torch.stack(both("shards", "v.npy")["v.npy"]), torch.from_numpy(vectors))


def test_an_array_is_not_held_in_memory(place):
    rows = 60_000
    write(table_of(rows), place / "rows.parquet")
    np.save("v.npy", array := RANDOM.standard_normal((rows, 128)).astype("float32"))
    anonymous = _anonymous()
    loaded = load_rows("rows.parquet", vector_files=["v.npy"])
    selected = loaded.select(np.arange(0, rows, 2))
    assert sum(1 for _ in read_vectors(selected, "v.npy")) == rows // 2
    assert sum(len(chunk.rows) for chunk in read_chunks("rows.parquet", vector_files=["v.npy"])) == rows
    assert _anonymous() - anonymous < array.nbytes / 2


def _anonymous():
    """Return the bytes of this process that no file holds."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def refused(data, file):
    """Return the error for a NumPy file, after checking that reading the rows in chunks raises one too."""
    with pytest.raises((ValueError, OSError)) as caught:
        load_rows(data, vector_files=[file])
    with pytest.raises((ValueError, OSError)):
        list(read_chunks(data, vector_files=[file]))
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Trap:
    """An object whose unpickling leaves a file."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_files_that_hold_no_vectors_are_refused(place):
    write(table_of(9), place / "rows.csv")
    arrays = {
        "text": np.array(["a"] * 9), "complex": np.zeros((9, 2), complex), "truth": np.zeros((9, 2), bool),
        "longdouble": np.zeros((9, 2), np.longdouble), "single": np.float32(3), "four": np.zeros((9, 1, 1, 1)),
        "empty": np.zeros((9, 0)),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
        has_wrong_shape = name in ("single", "four", "empty")
        found = f"an array of shape {array.shape}" if has_wrong_shape else f"values of type {array.dtype}"
        assert found in refused("rows.csv", f"{name}.npy")
    np.save("objects.npy", np.array([Trap()] * 9, dtype=object), allow_pickle=True)
    (place / "pickle.npy").write_bytes(pickle.dumps(Trap()))
    (place / "foreign.npy").write_text("name,text\n")
    np.savez("archive.npz", np.zeros((9, 2)))
    shutil.move("archive.npz", "archive.npy")
    np.save("cut.npy", np.zeros((9, 2)))
    (place / "cut.npy").write_bytes((place / "cut.npy").read_bytes()[:-8])
    (place / "nothing.npy").touch()
    for name in ("objects", "pickle", "foreign", "archive", "cut", "nothing"):
        error = refused("rows.csv", f"{name}.npy")
        assert error.startswith(f"{name}.npy cannot be read as a NumPy file: ") and "numpy.save, as float32" in error
    assert not (place / "unpickled").exists()
    assert refused("rows.csv", "missing.npy").startswith("there is no file missing.npy; expected")


def test_another_number_of_rows_is_refused(place):
    write(table_of(700), place / "rows.jsonl")
    for rows in (690, 400, 710):
        np.save("v.npy", np.zeros((rows, 2)))
        expected = "expected 700, one for each row of rows.jsonl. Save the vectors of all rows, in their order."
        assert refused("rows.jsonl", "v.npy") == f"v.npy holds {rows} rows; {expected}"
        with pytest.raises(ValueError, match=f"v.npy holds {rows} rows; expected 700, one"):
            load_first("rows.jsonl", vector_files=["v.npy"])


def test_a_column_with_the_name_of_the_file_is_refused(place):
    write(table_of(9).rename(columns={"text": "v.npy"}), place / "rows.csv")
    np.save("v.npy", np.zeros((9, 2)))
    expected = "rows.csv has a column 'v.npy', which is also the name of a NumPy file. Rename one of them."
    assert refused("rows.csv", "v.npy") == expected


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    """A folder with a base model, a table, NumPy files beside it, and a table with the same vectors in columns."""
    room = tmp_path_factory.mktemp("npy")
    save_plain_t5(room / "base", d_model=32, num_layers=1, initializer_factor=2.0)
    table = pd.DataFrame({"name": NAMES, "text": [f"settings of {name[4]}" for name in NAMES]})
    write(table, room / "rows.jsonl")
    write(table, room / "copy.csv")
    write(table[:40], room / "short.csv")
    (room / "data").mkdir()
    np.save(room / "data/user.npy", USERS)
    np.save(room / "price.npy", PRICES)
    np.save(room / "tags.npy", TAGS)
    write(table.assign(user=list(USERS), price=PRICES), room / "joined.parquet")
    return room


@pytest.fixture(scope="module")
def trained(room, run):
    """Train on the NumPy files and on the same vectors in columns."""
    columns = ["--vector-column", "user:mlp", "--vector-column", "price:log"]
    run("train", "rows.jsonl", *COLUMNS, *USUAL, *FILES, "--output", "runs/npy")
    run("train", "joined.parquet", *COLUMNS, *USUAL, *columns, "--output", "runs/columns")
    run("train", "rows.jsonl", *COLUMNS, *USUAL, *ONE, "--output", "runs/one")


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def record(folder):
    return json.loads((folder / "training.json").read_text())


def test_the_training_is_the_same_as_on_columns(room, trained):
    assert weights(room / "runs/npy") == weights(room / "runs/columns")
    npy, columns = (
        [{name: entry[name] for name in entry if "loss" in name} for entry in record(room / f"runs/{name}")["history"]]
        for name in ("npy", "columns")
    )
    assert npy == columns and any("eval_loss" in entry for entry in npy)
    assert list(load_trained(room / "runs/npy")[1].kinds) == ["user", "price"]  # a kind is named after its file


def test_the_run_records_absolute_paths(room, run, trained, tmp_path):
    files = {"user": str(room / "data/user.npy"), "price": str(room / "price.npy")}
    assert record(room / "runs/npy")["columns"]["vector"] == files
    assert columns_for(room / "runs/npy") == Columns("name", "text", vector=files)
    assert columns_for(room / "runs/one").vector == str(room / "data/user.npy")
    assert read_run(room / "runs/npy/run.yaml")["columns"].vector == files
    elsewhere = Forks(tmp_path)  # a different working directory
    try:
        code, _, err = elsewhere.run("evaluate", room / "runs/npy", "--json")
        assert code == 0 and "eval_loss is exactly as in training." in err, err
        code, _, err = elsewhere.run("train", "--config", room / "runs/npy/run.yaml", "--output", "again")
        assert code == 0, err
    finally:
        elsewhere.close()
    assert weights(tmp_path / "again") == weights(room / "runs/npy")


def test_a_training_resumes_even_if_the_files_have_moved(room, run, trained):
    shutil.copytree(room / "runs/npy", room / "runs/resumed")
    (room / "moved").mkdir()
    for file in ("data/user.npy", "price.npy"):
        shutil.copy(room / file, room / "moved")
    moved = ["--vector-column", "user=moved/user.npy:mlp", "--vector-column", "price=moved/price.npy:log"]
    words = ["train", "rows.jsonl", *COLUMNS, *USUAL, "--output", "runs/resumed", "--resume"]
    run(*words, *moved)
    assert weights(room / "runs/resumed") == weights(room / "runs/npy")
    other = ["--vector-column", "user=moved/user.npy:mlp", "--vector-column", "price=joined_price:log"]
    assert "there is no column 'joined_price'" in run(*words, *other, fails=True)


def test_the_output_of_generate_has_no_vectors(room, run, trained):
    for ending in ("jsonl", "parquet", "csv"):
        _, err = run("generate", "runs/npy", "--file", "rows.jsonl", "--output", f"out.{ending}")
        assert "it is left out" not in err
        assert load_rows(str(room / f"out.{ending}")).column_names == ["name", "text", "output"]
    run("generate", "runs/columns", "--file", "joined.parquet", "--output", "joined.jsonl")
    of_columns = [json.loads(line)["output"] for line in (room / "joined.jsonl").open()]
    assert [json.loads(line)["output"] for line in (room / "out.jsonl").open()] == of_columns
    out, _ = run("generate", "runs/npy", "--file", "rows.jsonl", "--limit", "3")
    assert [list(json.loads(line)) for line in out.splitlines()] == [["name", "text", "output"]] * 3
    assert "out.jsonl is complete" in run("generate", "runs/npy", "--file", "rows.jsonl", "--output", "out.jsonl")[1]


def test_rows_without_text_are_generated_and_resumed(room, run):
    run("train", "rows.jsonl", "--target-column", "text", *USUAL, *ONE, "--output", "runs/no_text")
    words = ["generate", "runs/no_text", "--file", "rows.jsonl", "--output", "no_text.jsonl"]
    run(*words)
    assert "is complete" in run(*words)[1]


def test_vectors_of_the_training_are_not_used_for_other_rows(room, run, trained):
    sentence = "user.npy holds the vectors of the file that the model was trained on, not those of copy.csv. "
    for command in (["evaluate", "runs/npy", "copy.csv"], ["generate", "runs/npy", "--file", "copy.csv"]):
        error = run(*command, fails=True)
        assert sentence in error and error.endswith("--vector-column user=OTHER.npy.")
        only_one = run(*command, "--vector-column", "user=data/user.npy", fails=True)
        assert "price.npy holds the vectors of" in only_one and only_one.endswith("price=OTHER.npy.")
    assert run("evaluate", "runs/one", "copy.csv", fails=True).endswith(": --vector-column OTHER.npy.")
    os.chdir(room)
    for use in (evaluate_file, generate_file):
        with pytest.raises(ValueError, match="user.npy holds the vectors of the file that the model was trained on"):
            use("runs/npy", "copy.csv")
    named = ["--vector-column", "user=data/user.npy", "--vector-column", "price=price.npy"]
    given = json.loads(run("evaluate", "runs/npy", "copy.csv", *named, "--json")[0])
    assert given["loss"] == json.loads(run("evaluate", "runs/npy", "rows.jsonl", "--json")[0])["loss"]
    assert "data/user.npy holds 60 rows; expected 40, one for each row of short.csv" in run(
        "generate", "runs/npy", "--file", "short.csv", *named, fails=True
    )
    run("evaluate", "runs/npy", "copy.csv", "--vectors", "none")
    run("generate", "runs/npy", "--file", "copy.csv", "--no-vectors")


def test_a_file_to_validate_with_is_refused(room, run):
    words = ["train", "rows.jsonl", *COLUMNS, *USUAL, *FILES, "--validation", "copy.csv", "--output", "runs/refused"]
    error = run(*words, fails=True)
    assert "the vectors in data/user.npy belong to the rows of rows.jsonl, so the rows of copy.csv would have" in error
    assert error.endswith("or leave --validation out.") and not (room / "runs/refused").exists()


def test_a_training_reads_rows_and_vectors_as_a_stream(room, run):
    words = ["--base-model", "base", "--batch-size", "4", "--precision", "fp32", "--streaming", "--max-steps", "20"]
    columns = ["--vector-column", "user:mlp", "--vector-column", "price:log"]
    run("train", "rows.jsonl", *COLUMNS, *words, *FILES, "--output", "runs/streamed")
    run("train", "joined.parquet", *COLUMNS, *words, *columns, "--output", "runs/streamed_columns")
    assert weights(room / "runs/streamed") == weights(room / "runs/streamed_columns")
    assert "eval_loss is exactly as in training." in run("evaluate", "runs/streamed", "--json")[1]
    np.save(room / "short.npy", USERS[:-5])
    short = ["--vector-column", "short.npy"]
    assert "short.npy holds 55 rows; expected 60, one for each row of rows.jsonl" in run(
        "train", "rows.jsonl", *COLUMNS, *words, *short, "--output", "runs/short", fails=True
    )


def test_errors_name_the_row_and_nan_is_left_out(room, run):
    bad = USERS.copy()
    bad[7, 2] = np.nan
    np.save(room / "nan.npy", bad)
    words = ["train", "rows.jsonl", *COLUMNS, *USUAL, "--vector-column", "nan.npy", "--output", "runs/nan"]
    assert f"the row of {NAMES[7]!r}, column 'nan.npy': nan at index 2; expected" in run(*words, fails=True)
    assert "1 row with NaN or infinity left out; 59 remain." in run(*words, "--skip-nan")[1]


def test_several_vectors_for_each_row(room, run):
    run("train", "rows.jsonl", *COLUMNS, *USUAL, "--vector-column", "tags.npy", "--output", "runs/tags")
    assert load_trained(room / "runs/tags")[1].kinds == {"lexical": VectorKind(4)}


def test_no_path_is_shown_or_exported(room, run, trained):
    for name in ("npy", "one"):
        out, _ = run("info", f"runs/{name}")
        assert "user.npy" in out and "data/user" not in out
        assert str(room) not in json.dumps(folder_info(str(room / f"runs/{name}")).columns)
        export(room / f"runs/{name}", room / f"bundles/{name}", kind="standalone")
        for file in (room / f"bundles/{name}").rglob("*"):
            assert not file.is_file() or b"user.npy" not in file.read_bytes()


def test_early_refusals_on_the_command_line(room, run):
    words = ["rows.jsonl", *COLUMNS, "--output", "runs/refused"]
    assert "there is no file none.npy; expected" in run("train", *words, "--vector-column", "none.npy", fails=True)
    assert "there is no file none.npy; expected" in run(
        "train", *words, "--vector-column", "user=none.npy:mlp", "--vector-column", "price.npy", fails=True
    )
    two = ["--vector-column", "my user.npy", "--vector-column", "price.npy"]
    assert "Name the kind, as in --vector-column 'KIND=my user.npy'." in run("train", *words, *two, fails=True)

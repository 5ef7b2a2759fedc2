"""Arrow and Feather files: read whole and in chunks, trained on, and refused."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from t5fusion.finetune.files import file_tables, load_rows
from t5fusion.finetune.streaming import CHUNK, count_rows, read_chunks

ROWS = 2_000
FILES = ("file.arrow", "stream.arrow", "plain.feather", "lz4.feather", "zstd.feather")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def table():
    names = ["app_ü", "b", None, "d"] * (ROWS // 4)
    numbers = np.random.default_rng(0).standard_normal(3 * ROWS, dtype=np.float32)
    kinds = {"name": pa.string(), "view": pa.string_view(), "known": pa.dictionary(pa.int32(), pa.string())}
    columns = {column: pa.array(names).cast(kind) for column, kind in kinds.items()}
    return pa.table(columns | {"v": pa.FixedSizeListArray.from_arrays(numbers, 3)})


def write(table, path):
    """Write a table in the format that the beginning of a file's name asks for."""
    if path.suffix == ".arrow":
        new = pa.ipc.new_stream if path.name.startswith("stream") else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    else:
        compression = path.stem if path.stem in ("lz4", "zstd") else "uncompressed"
        feather.write_feather(table, str(path), compression=compression, chunksize=900)


@pytest.mark.parametrize("name", FILES)
def test_each_format_is_read_whole_and_in_chunks(name, table, tmp_path):
    write(table, tmp_path / name)
    file = str(tmp_path / name)
    assert load_rows(file).to_list() == table.to_pylist()
    chunks = list(read_chunks(file))
    assert [row for chunk in chunks for row in chunk.rows.to_list()] == table.to_pylist()
    assert [len(chunk.rows) for chunk in chunks] == [CHUNK] * 3 + [ROWS - 3 * CHUNK]
    assert count_rows(file) == ROWS and count_rows(file, limit=7) == 7


@pytest.mark.parametrize("name", ["file.arrow", "stream.arrow", "zstd.feather"])
def test_a_large_file_is_not_held_in_memory(name, tmp_path):
    """The file has one batch, or a few compressed ones. The memory of a mapped file does not count."""
    numbers = np.random.default_rng(0).standard_normal(60_000 * 128, dtype=np.float32)
    large = pa.table({"v": pa.FixedSizeListArray.from_arrays(numbers, 128)})
    new = pa.ipc.new_stream if name.startswith("stream") else pa.ipc.new_file
    if name.endswith(".arrow"):
        with new(str(tmp_path / name), large.schema) as writer:
            writer.write_table(large)
    else:
        feather.write_feather(large, str(tmp_path / name), compression="zstd", chunksize=5_000)
    file, pool_before = str(tmp_path / name), pa.default_memory_pool()
    for read in (load_rows, lambda file: [len(table) for table in file_tables(file, 1_000)]):
        pool = pa.proxy_memory_pool(pa.default_memory_pool())
        pa.set_memory_pool(pool)
        try:
            read(file)
        finally:
            pa.set_memory_pool(pool_before)
        assert pool.max_memory() < numbers.nbytes / 2
    assert np.array_equal(load_rows(file).with_format("numpy")[-1]["v"], numbers[-128:])


def error_of(file):
    """Return the error for a file, after checking that reading it in chunks raises the same."""
    with pytest.raises(ValueError, match="cannot be read as ") as caught:
        load_rows(str(file))
    with pytest.raises(ValueError, match="cannot be read as ") as again:
        list(read_chunks(str(file)))
    assert str(caught.value) == str(again.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(file)) and count_rows(str(file)) in (None, ROWS, 1)
    return str(caught.value).removeprefix(f"{file} cannot be read as ")


@pytest.mark.parametrize("name", ["file.arrow", "stream.arrow", "zstd.feather"])
def test_damaged_and_foreign_files_are_refused(name, table, tmp_path):
    file = tmp_path / name
    write(table, file)
    content = file.read_bytes()
    sentence = ": it is damaged, or is not an Arrow file ("
    for damaged in (content[: len(content) // 2], content[:-20], b"name,text\na,b\n" * 20, b"short"):
        file.write_bytes(damaged)
        assert error_of(file).removeprefix("Arrow").removeprefix("Feather").startswith(sentence)
    if name != "zstd.feather":  # Numbers may have any bits, but the place of a text may not.
        places = np.frombuffer(content[:3_000], dtype=np.uint8).copy()
        start = content.find(np.arange(0, 1, dtype=np.int32).tobytes() + b"\x06\0\0\0\x07\0\0\0")
        assert 0 < start < 3_000
        places[start + 4 : start + 8] = 127
        file.write_bytes(places.tobytes() + content[3_000:])
        assert "ffset" in error_of(file)


def test_other_refusals_say_what_to_do(tmp_path):
    value = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], "i4")), pa.py_buffer(b"\xff")])
    feather.write_feather(pa.table({"name": value}), str(tmp_path / "latin.feather"))
    assert error_of(tmp_path / "latin.feather") == "Feather: it holds text that is not UTF-8. Convert it first."
    (tmp_path / "old.feather").write_bytes(b"FEA1" + bytes(60) + b"FEA1")
    assert error_of(tmp_path / "old.feather").endswith("version 1. Write it again with version 2.")
    (tmp_path / "x.arrow.gz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"is a \.arrow file in a \.gz file, .*Decompress it\."):
        load_rows(str(tmp_path / "x.arrow.gz"))


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    """A folder with a base model, and the same rows as Parquet, Arrow and Feather files."""
    room = tmp_path_factory.mktemp("arrow")
    save_plain_t5(room / "base", d_model=32, num_layers=1, initializer_factor=2.0)
    random = np.random.default_rng(0)
    rows = [
        {"name": f"app_{'abcdefgh'[row % 8]}{'stuvwxyz'[row // 8]}", "text": f"settings of {'abcdefgh'[row % 8]}"}
        | {"v": random.standard_normal(4).tolist()}
        for row in range(60)
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, room / "rows.parquet")
    write(table, room / "stream.arrow")
    write(table, room / "lz4.feather")
    return room


def test_all_commands_read_them(room, run):
    columns = ["--text-column", "name", "--target-column", "text", "--vector-column", "v"]
    usual = [*columns, "--base-model", "base", "--epochs", "1", "--batch-size", "4", "--precision", "fp32"]
    for name in ("rows.parquet", "stream.arrow", "lz4.feather"):
        run("train", name, *usual, "--output", f"runs/{name}")
    folders = [room / "runs" / name for name in ("rows.parquet", "stream.arrow", "lz4.feather")]
    assert len({(folder / "adapter_model.safetensors").read_bytes() for folder in folders}) == 1
    run("train", "stream.arrow", *usual, "--validation", "lz4.feather", "--output", "runs/validated")
    out, _ = run("evaluate", "runs/lz4.feather", "stream.arrow", "--json")
    assert json.loads(out)["rows"] == 60
    for name in ("stream.arrow", "lz4.feather"):
        run("generate", "runs/lz4.feather", "--file", name, "--output", f"{name}.jsonl")
    assert (room / "stream.arrow.jsonl").read_text() == (room / "lz4.feather.jsonl").read_text()

"""Real-world files: odd names, gzip, other encodings, and tables with shifted rows."""

import gzip
import io
import json
import os
import time
from datetime import datetime
from decimal import Decimal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t5fusion.finetune.data import have_text
from t5fusion.finetune.files import file_tables, lines_of, load_rows
from t5fusion.finetune.streaming import read_chunks

ROWS = [{"name": "app_ü", "text": "settings, of an app"}, {"name": "b", "text": "a\nb"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = 'name,text\napp_ü,"settings, of an app"\nb,"a\nb"\n'


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def both(name, **options):
    """Return the rows of a file, after checking that reading it in chunks gives the same."""
    rows = load_rows(name, **options).to_list()
    assert [row for chunk in read_chunks(name, **options) for row in chunk.rows.to_list()] == rows
    return rows


def refused(name, **options):
    """Return the error for a file, after checking that reading it in chunks raises the same."""
    with pytest.raises(ValueError, match=f"^{name} cannot be read as ") as caught:
        load_rows(name, **options)
    with pytest.raises(ValueError, match=f"^{name} cannot be read as ") as again:
        list(read_chunks(name, **options))
    assert str(caught.value) == str(again.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_large_row_group_of_a_parquet_file_is_read_in_blocks(place):
    """pandas writes a million rows into one row group. `make bench SUBJECTS=scale` measures the memory of processes."""
    width, rows, pool_before = 128, 60_000, pa.default_memory_pool()
    numbers = np.random.default_rng(0).standard_normal(rows * width, dtype=np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(numbers, width).cast(pa.list_(pa.float32()))
    pq.write_table(pa.table({"vector": vectors}), "rows.parquet")
    assert pq.ParquetFile("rows.parquet").num_row_groups == 1
    for read in (load_rows, lambda file: [len(table) for table in file_tables(file, 1_000)]):
        pool = pa.proxy_memory_pool(pa.default_memory_pool())
        pa.set_memory_pool(pool)
        try:
            read("rows.parquet")
        finally:
            pa.set_memory_pool(pool_before)
        assert 0 < pool.max_memory() < numbers.nbytes / 2
    loaded = load_rows("rows.parquet").with_format("numpy")
    assert len(loaded) == rows and np.array_equal(loaded[-3:]["vector"].ravel(), numbers[-3 * width :])


def test_a_changed_parquet_file_is_read_again(place):
    for text in ("one", "two", "six"):
        pq.write_table(pa.table({"name": [text]}), "rows.parquet")
        assert load_rows("rows.parquet")["name"] == [text]


def test_the_features_in_a_parquet_file_are_kept(place):
    rows = datasets.Dataset.from_dict(
        {"v": np.arange(12.0, dtype="float32").reshape(2, 3, 2)},
        features=datasets.Features({"v": datasets.Array2D((3, 2), "float32")}),
    )
    rows.to_parquet("rows.parquet")
    loaded = load_rows("rows.parquet")
    assert loaded.features == rows.features and loaded.to_list() == rows.to_list()


@pytest.mark.parametrize("name", ["a::b", "$HOME", "~", "%41", "hf:b", "zip::x", "a{b}", "a#b", "a b ü", "[a]"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_file_names_with_special_characters_are_read(place, name, kind):
    file = place / f"{name}.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    else:
        file.write_text(LINES if kind == "jsonl" else TABLE, encoding="utf-8")
    assert both(file.name) == both(str(file)) == ROWS
    assert [path.name for path in place.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "name", ["x.CSV", "x.JsonL", "x.jsonl.gz", "x.CSV.GZ", "x.json.gz", "$x.jsonl.gz", "$x.csv.gz"]
)
def test_upper_case_and_gzipped_files_are_read(place, name):
    content = (TABLE if "csv" in name.lower() else LINES).encode()
    (place / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert both(name) == ROWS


def test_gzipped_texts_are_read(place):
    (place / "x.txt.gz").write_bytes(gzip.compress("a\nü\n".encode()))
    assert [chunk.rows["text"][:] for chunk in read_chunks("x.txt.gz")] == [["a", "ü"]]
    (place / "y.csv.gz").write_bytes(TABLE.encode())
    assert "Not a gzipped file" in refused("y.csv.gz")
    pq.write_table(pa.Table.from_pylist(ROWS), place / "z.parquet.gz")
    with pytest.raises(ValueError, match=r"z.parquet.gz is a .parquet file in a .gz file, .*Decompress it\."):
        load_rows("z.parquet.gz")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("name,text\na,b\nc,d,e\n", "line 3 has 3 fields; expected 2, as in the header. Put double quotes"),
        ("name,text\na,b\nc\n", "line 3 has 1 field; expected 2, as in the header. Add the missing"),
        ("name,text\na,b,\nc,d,\n", "line 2 has 3 fields; expected 2"),
        ("name,text,\na,b\nc,d\n", "line 2 has 2 fields; expected 3"),
        ('name,text\n"a\n\nb",c\n\nd,e,f\n', "line 6 has 3 fields"),
        ("name,text\na,b\nname,text\nc,d\n", "line 3 repeats the header. Delete it"),
        ("name,text,name\na,b,c\n", "the header names the column 'name' twice. Rename one of them"),
        ('name,text\na,b\nc,"d\ne,f\n', "the record on line 3: unexpected end of data. A double quote is missing"),
        ('name,text\na,"b" c\n', "the record on line 2: ',' expected after"),
        ("\n\n", "there is no header"),
        ("a," * 20_000 + "a\n", "the header has 20001 columns; expected 10000 at most"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_with_shifted_rows_is_refused_with_the_line(place, content, sentence, end):
    (place / "x.csv").write_bytes(content.replace("\n", end).encode())
    assert sentence in refused("x.csv")


def test_an_unusual_but_valid_table_is_read(place):
    (place / "index.csv").write_text(',name,text\n0,a,"b, ""c"""\n\n1,7" disk,\n')
    assert both("index.csv") == [
        {"Unnamed: 0": "0", "name": "a", "text": 'b, "c"'},
        {"Unnamed: 0": "1", "name": '7" disk', "text": ""},
    ]
    (place / "one.csv").write_text("name\nname\nb\n")  # of one column, a text may well be its name
    assert both("one.csv") == [{"name": "name"}, {"name": "b"}]
    (place / "none.csv").write_text("name,text\n")
    assert both("none.csv") == [] and load_rows("none.csv").column_names == ["name", "text"]
    many = [{"name": str(number), "text": "x" * 200_000} for number in range(40)]  # longer than csv's own limit
    (place / "long.csv").write_text("name,text\n" + "".join(f"{row['name']},{row['text']}\n" for row in many))
    assert both("long.csv") == many


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_huge_field_is_refused_quickly(place, quote):
    with (place / "x.csv").open("w") as file:
        file.write(f"name,text\na,{quote}")
        for _ in range(300):
            file.write(("x" * 99 + "\n" if quote else "x" * 100) * 10_000)
    begun = time.monotonic()
    assert "the record on line 2: field larger than field limit" in refused("x.csv")
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_texts_by_line_with_any_line_end_and_mark(place, end, mark):
    content = mark + end.join(["app", "", "ü\u2028\x0b b ", "c"]).encode()
    (place / "x.txt").write_bytes(content)
    expected = ["app", "", "ü\u2028\x0b b ", "c"]
    assert [chunk.rows["text"][:] for chunk in read_chunks("x.txt")] == [expected]
    assert list(lines_of(io.BytesIO(content))) == list(lines_of(io.BytesIO(content), "UTF8")) == expected
    (place / "x.csv").write_bytes(mark + f"text,n{end}ü,1{end}b,2{end}".encode())
    assert both("x.csv") == [{"text": "ü", "n": "1"}, {"text": "b", "n": "2"}]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le"])
def test_another_encoding_must_be_named(place, encoding):
    (place / "x.txt").write_bytes("app\nü\n".encode(encoding))
    (place / "x.csv").write_bytes("text,n\napp,1\nü,2\n".encode(encoding))
    assert [chunk.rows["text"][:] for chunk in read_chunks("x.txt", encoding=encoding)] == [["app", "ü"]]
    assert both("x.csv", encoding=encoding) == [{"text": "app", "n": "1"}, {"text": "ü", "n": "2"}]
    hint = {"utf-16": "It looks like utf-16: name", "utf-16-le": "It looks like utf-16-le: name"}
    with pytest.raises(ValueError, match="x.txt cannot be read as text: ") as caught:
        list(read_chunks("x.txt"))
    for sentence in (refused("x.csv"), str(caught.value)):
        assert hint.get(encoding, "is not utf-8. It may be latin-1 or cp1252: name its encoding with") in sentence


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("line", [1, 2, 1000, 5000])
def test_the_error_names_the_line_in_another_encoding(place, line, end):
    lines = [b"some words"] * 6000
    lines[line - 1] = "some wörds".encode("latin-1")
    (place / "x.txt").write_bytes(end.encode().join(lines))
    with pytest.raises(ValueError, match=f": line {line} is not utf-8"):
        list(read_chunks("x.txt"))


def test_a_text_with_nul_characters_is_refused(place):
    (place / "x.txt").write_bytes("app\nb\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match="line 1 holds a NUL character. Is it UTF-16. Then pass --encoding utf-16-le"):
        list(read_chunks("x.txt"))


def test_an_unknown_encoding_or_one_for_another_kind_of_file_is_refused(place):
    (place / "x.csv").write_text(TABLE)
    (place / "x.jsonl").write_text(LINES)
    for name in ("nothing-of-the-kind", "base64"):
        assert "Name one that Python knows, such as utf-8, latin-1" in refused("x.csv", encoding=name)
    sentence = "an encoding was given for x.jsonl; only .txt and .csv files have one to choose. Leave the encoding out."
    with pytest.raises(ValueError, match=sentence):
        load_rows("x.jsonl", encoding="latin-1")


def test_json_that_is_not_utf_8_is_named(place):
    (place / "x.jsonl").write_bytes('{"name": "ü"}\n'.encode("latin-1"))
    assert refused("x.jsonl") == "x.jsonl cannot be read as json: it holds text that is not UTF-8. Convert it first."


def test_parquet_columns_without_text_are_named(place):
    values = {"b": b"x", "d": datetime(2026, 1, 1), "n": Decimal("1.5"), "s": "a"}
    pq.write_table(pa.Table.from_pylist([values]), place / "x.parquet")
    for rows in (load_rows("x.parquet"), next(read_chunks("x.parquet")).rows):
        for column, kind in (("b", "binary"), ("d", "timestamp"), ("n", "decimal128")):
            with pytest.raises(ValueError, match=f"column '{column}' holds values of type {kind}.*; expected text"):
                have_text(rows, [column])
    kinds = {"v": pa.string_view(), "l": pa.large_string(), "d": pa.dictionary(pa.int32(), pa.string())}
    pq.write_table(pa.table({name: pa.array(["a"]).cast(kind) for name, kind in kinds.items()}), place / "y.parquet")
    assert have_text(load_rows("y.parquet"), list(kinds)).tolist() == [True]
    pq.write_table(pa.table({"n": pa.nulls(2)}), place / "z.parquet")
    assert have_text(load_rows("z.parquet"), ["n"]).tolist() == [False, False]


def test_a_file_is_read_if_the_cache_of_datasets_cannot_be_written(place, monkeypatch):
    (place / "file").write_text("not to be lost")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "file" / "datasets")
    (place / "x.jsonl").write_text(LINES)
    pq.write_table(pa.Table.from_pylist(ROWS), place / "x.parquet")
    assert both("x.jsonl") == both("x.parquet") == ROWS
    assert (place / "file").read_text() == "not to be lost"


def test_a_file_without_read_permission_is_named(place):
    if os.geteuid() == 0:
        pytest.skip("root may read all")
    (place / "x.jsonl").write_text(LINES)
    (place / "x.jsonl").chmod(0)
    assert "Permission denied" in refused("x.jsonl")

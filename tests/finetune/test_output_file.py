"""The output of `generate` in every format: the columns that it holds, and how it resumes after a kill at any byte."""

import csv
import datetime
import io
import json
import os
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from t5fusion.finetune import streaming
from t5fusion.finetune.data import Columns
from t5fusion.finetune.file_names import OUTPUT_ENDINGS
from t5fusion.finetune.files import load_rows
from t5fusion.finetune.generation import generate_rows
from t5fusion.finetune.output_file import OutputFile
from t5fusion.finetune.streaming import Chunk, chunks_of_texts, first_of, read_chunks

COLUMNS = Columns("name", vector="vector")
NAMES = ["a", 'b"\n', "", "ü", None, "e,\r", "f"]
OUTPUTS = [f"{name} ü {row}" if name else None for row, name in enumerate(NAMES)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK", 4)


@pytest.fixture
def rows():
    """A table with columns of many types."""
    seven = len(NAMES)
    return pa.table(
        {
            "id": list(range(seven)),
            "name": NAMES,
            "vector": pa.array([[0.5, 1.0]] * seven, pa.list_(pa.float16(), 2)),
            "when": [datetime.datetime(2026, 1, 1)] * seven,
            "share": [float("nan"), *[0.1] * (seven - 1)],
            "tags": [["x", "y"]] * seven,
            "bytes": [b"\xff"] * seven,
        }
    )


def write(path, source, limit=None, columns=COLUMNS, overwrite=False, **made_with):
    """Write an output whose texts name their rows, without a model."""

    def chunks():
        if isinstance(source, pa.Table):
            parts = ((first, Dataset(source.slice(first, 4))) for first in range(0, len(source), 4))
            return first_of((Chunk(*part) for part in parts), limit)
        return first_of(read_chunks(str(source)), limit)

    output = OutputFile(path, columns, made_with, overwrite)
    try:
        generate_rows(
            chunks(),
            columns,
            lambda part, numbers, _: list(zip(part[columns.text], numbers, strict=True)),
            lambda part, *_: [f"{name} ü {number}" for name, number in part],
            output,
            chunks,
        )
    finally:
        output.close()
    return output


def partial_of(path):
    return path.with_name(path.name + ".partial")


@pytest.mark.parametrize("ending", OUTPUT_ENDINGS)
def test_an_output_cut_at_any_byte_is_completed(tmp_path, rows, ending):
    path = tmp_path / f"made{ending}"
    write(path, rows)
    whole = path.read_bytes()
    read = load_rows(str(path))
    assert [output or None for output in read["output"]] == OUTPUTS
    assert [name or None for name in read["name"]] == [name or None for name in NAMES]
    lines = [json.dumps({"name": n, "output": o}, ensure_ascii=False) for n, o in zip(NAMES, OUTPUTS, strict=True)]
    begun = "".join(line + "\n" for line in lines).encode()
    for cut in range(0, len(begun) + 1, 3 if ending == ".csv" else 29):
        path.unlink()
        partial_of(path).write_bytes(begun[:cut])
        output = write(path, rows)
        assert path.read_bytes() == whole and output.earlier_rows == begun[:cut].count(b"\n")
        assert output.earlier_rows + output.new_rows == len(NAMES) and not partial_of(path).exists()


@pytest.mark.parametrize("ending", OUTPUT_ENDINGS)
def test_a_kill_while_the_output_is_written_loses_nothing(tmp_path, rows, ending):
    path = tmp_path / f"made{ending}"

    def chunks_until_a_kill():
        yield Chunk(0, Dataset(rows.slice(0, 4)))
        yield Chunk(4, Dataset(rows.slice(4, 3)))
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        output = OutputFile(path, COLUMNS, {})
        output.count_written(Dataset(rows))
        output.append(Dataset(rows), OUTPUTS)
        output.finish(chunks_until_a_kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not path.exists() and len(partial_of(path).read_text().splitlines()) == len(NAMES)
    assert write(path, rows).earlier_rows == len(NAMES)
    assert [output or None for output in load_rows(str(path))["output"]] == OUTPUTS
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.made-with"]


def test_parquet_keeps_the_types_of_the_input(tmp_path, rows):
    write(tmp_path / "made.parquet", rows)
    before, after = rows, pq.read_table(tmp_path / "made.parquet")
    assert after.schema.names == [*before.schema.names, "output"]
    assert after.drop_columns("output").schema.equals(before.schema)
    assert after.drop_columns(["output", "share"]).equals(before.drop_columns("share"))  # nan is not equal to nan


def test_json_lines_keep_the_values_and_csv_all_but_the_vectors(tmp_path, rows, capsys):
    write(tmp_path / "made.jsonl", rows)
    assert capsys.readouterr().err == ""
    first, second = map(json.loads, (tmp_path / "made.jsonl").read_text().splitlines()[:2])
    assert list(first) == ["id", "name", "vector", "when", "share", "tags", "bytes", "output"]
    values = {"id": 0, "vector": [0.5, 1.0], "when": "2026-01-01T00:00:00", "share": None, "tags": ["x", "y"]}
    assert first == values | {"name": "a", "bytes": "/w==", "output": "a ü 0"} and second["share"] == 0.1
    output = OutputFile(tmp_path / "refused.csv", COLUMNS, {})
    output.count_written(Dataset(rows))
    output.close()  # as if the vectors were refused
    assert capsys.readouterr().err == ""
    write(tmp_path / "made.csv", rows)
    assert "Column 'vector' holds vectors; it is left out of " in capsys.readouterr().err
    header, first, second, *_ = csv.reader(io.StringIO((tmp_path / "made.csv").read_text(), newline=""))
    assert header == ["id", "name", "when", "share", "tags", "bytes", "output"]
    assert first == ["0", "a", "2026-01-01T00:00:00", "", '["x", "y"]', "/w==", "a ü 0"] and second[3] == "0.1"


@pytest.mark.parametrize("ending", OUTPUT_ENDINGS)
def test_a_column_named_output_is_kept(tmp_path, ending, capsys):
    source, path = tmp_path / "rows.jsonl", tmp_path / f"made{ending}"
    source.write_text('{"output": "a"}\n{"output": "b"}\n')
    for old in (0, 2):
        assert write(path, source, columns=Columns("output")).earlier_rows == old
    assert load_rows(str(path))[:] == {"output": ["a", "b"], "output_2": ["a ü 0", "b ü 1"]}
    notice = "The input has a column 'output'; the generated texts are in column 'output_2'.\n"
    assert capsys.readouterr().err.count(notice) == 1


@pytest.mark.parametrize("ending", OUTPUT_ENDINGS)
def test_rows_added_to_the_input_are_added_to_the_output(tmp_path, rows, ending):
    path, grown = tmp_path / f"made{ending}", tmp_path / f"grown{ending}"
    write(path, rows)
    for limit, old in ((3, 0), (3, 3), (None, 3), (None, 7)):
        output = write(grown, rows, limit)
        assert (output.earlier_rows, output.earlier_rows + output.new_rows) == (old, limit or 7)
    assert grown.read_bytes() == path.read_bytes()
    before = grown.read_bytes()
    with pytest.raises(ValueError, match="6 rows of the input were read, and .*grown.* has more"):
        write(grown, rows, 6)
    assert grown.read_bytes() == before and not partial_of(grown).exists()


@pytest.mark.parametrize("ending", OUTPUT_ENDINGS)
@pytest.mark.parametrize("is_whole", [True, False])
def test_an_output_of_other_rows_is_refused_and_unchanged(tmp_path, rows, ending, is_whole):
    path, other = tmp_path / f"made{ending}", rows.set_column(1, "name", pa.array(["a", "c", *NAMES[2:]]))
    write(path, rows)
    if not is_whole:
        path.unlink()
        partial_of(path).write_text('{"name": "a", "output": "x"}\n{"name": "b", "output": "y"}\n{"na')
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="row 1 of .* is not row 1 of the input, whose text is 'c'"):
        write(path, other)
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert write(path, other, overwrite=True).new_rows == 7


def test_overwrite_keeps_the_old_output_until_the_new_one_is_whole(tmp_path, rows):
    path, made_with = tmp_path / "made.jsonl", tmp_path / "made.jsonl.made-with"
    write(path, rows, beams=1)
    old = path.read_bytes()
    OutputFile(path, COLUMNS, {"beams": 2}, overwrite=True).close()  # It fails before the first row.
    assert path.read_bytes() == old and json.loads(made_with.read_text()) == {"beams": 1}
    output = OutputFile(path, COLUMNS, {"beams": 2}, overwrite=True)  # It is stopped after some rows.
    some = Dataset(rows.slice(0, 3))
    assert output.count_written(some) == 0
    output.append(some, ["x", "y", None])
    output.close()
    assert path.read_bytes() == old and json.loads(made_with.read_text()) == {"beams": 2}
    OutputFile(path, COLUMNS, {"beams": 3}, overwrite=True).close()
    assert path.read_bytes() == old and not made_with.exists()  # The record was about the texts that were dropped.
    assert write(path, rows, overwrite=True, beams=3).new_rows == 7
    assert not partial_of(path).exists() and json.loads(made_with.read_text()) == {"beams": 3}


def test_columns_that_only_some_rows_have_are_kept_for_all(tmp_path):
    source = tmp_path / "rows.jsonl"
    lines = [{"name": "a"}, {"name": "b", "count": 1}]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for ending in OUTPUT_ENDINGS:
        write(tmp_path / f"made{ending}", source, columns=Columns("name"))
        read = load_rows(str(tmp_path / f"made{ending}"))
        assert read.column_names == ["name", "count", "output"]
        assert [None if count in ("", None) else int(count) for count in read["count"]] == [None, 1]


def test_an_input_that_changes_meanwhile_is_refused(tmp_path, rows):
    path = tmp_path / "made.csv"
    output = OutputFile(path, COLUMNS, {})
    for chunk in chunks_of_texts(["a"], "name"):
        output.count_written(chunk.rows)
        output.append(chunk.rows, ["x"])
    with pytest.raises(ValueError, match="the input changed while .*made.csv.partial was made"):
        output.finish(lambda: chunks_of_texts(["b"], "name"))
    output.close()
    assert not path.exists() and partial_of(path).exists()


def test_texts_without_a_file_are_written(tmp_path):
    path = tmp_path / "made.parquet"
    output = OutputFile(path, Columns("text"), {})
    names = [f"a{row}" for row in range(9)]
    for chunk in chunks_of_texts(names, "text"):
        output.count_written(chunk.rows)
        output.append(chunk.rows, chunk.rows["text"])
    output.finish(None)
    assert load_rows(str(path))[:] == {"text": names, "output": names}


def test_a_file_of_many_rows_has_few_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK", 512)
    source = tmp_path / "rows.txt"
    source.write_text("a\n" * 10_000)
    write(tmp_path / "made.parquet", source, columns=Columns("text"))
    file = pq.ParquetFile(tmp_path / "made.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [8192, 1808]

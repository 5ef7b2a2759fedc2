"""How far `generate` and `evaluate` have come: how many rows a file has, and what is shown of them."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t5fusion.common.progress import Progress
from t5fusion.finetune import streaming
from t5fusion.finetune.data import Columns
from t5fusion.finetune.generation import generate_rows
from t5fusion.finetune.output_file import OutputFile
from t5fusion.finetune.streaming import chunks_of_texts, count_rows, read_chunks

FILES = {
    "rows.jsonl": b'{"text": "a"}\n\n{"text": "b"}\n{"text": "c"}',
    "rows.txt": b"a\n\nb",
    "rows.csv": b'text,n\na,1\n"b\nc",2\n\nd,3\n',
    "empty.csv": b"text\n",
}


@pytest.mark.parametrize("name", FILES)
def test_the_count_is_that_of_the_rows_that_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    data = str(tmp_path / name)
    rows = sum(len(chunk.rows) for chunk in read_chunks(data))
    assert count_rows(data) == rows and count_rows(data, limit=2) == min(rows, 2)


def test_parquet_is_counted_without_reading_it_and_packed_files_are_not_counted(tmp_path):
    pq.write_table(pa.table({"text": ["a"] * 5}), tmp_path / "rows.parquet")
    whole = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(
        whole[:4] + bytes(len(whole[4:-400])) + whole[-400:]
    )  # its end has the number
    assert count_rows(str(tmp_path / "rows.parquet")) == 5
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(FILES["rows.jsonl"]))
    assert count_rows(str(tmp_path / "rows.jsonl.gz")) is None
    assert count_rows("me/names") is None and count_rows("me/names", limit=7) == 7
    (tmp_path / "bad.csv").write_text("text\na,b\n")
    assert count_rows(str(tmp_path / "bad.csv")) is None


def test_rows_of_an_earlier_run_are_counted_but_not_for_the_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(streaming, "CHUNK", 4)
    names = [f"name {row}" for row in range(12)]
    lines = "".join(f'{{"name": "{name}", "output": "x"}}\n' for name in names[:5])
    (tmp_path / "made.jsonl.partial").write_text(lines)
    (tmp_path / "made.jsonl.made-with").write_text("{}")
    output = OutputFile(tmp_path / "made.jsonl", Columns("name"), {})
    progress = Progress("Generating", 12, every=0)

    def write(rows, first, advance):
        advance(len(rows) // 2)  # as after the first batch
        return rows

    generate_rows(
        chunks_of_texts(names, "name"), Columns("name"), lambda rows, *_: rows["name"][:], write, output, None, progress
    )
    assert (progress.done, progress.done_earlier) == (12, 4)
    shown = [line.partition(", ")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("Gen")]
    counts = ["4 of 12 rows (33%)", "6 of 12 rows (50%)", "8 of 12 rows (67%)", "10 of 12 rows (83%)"]
    assert shown == [f"Generating: {count}" for count in [*counts, "12 of 12 rows (100%)"]]


def test_a_total_that_is_not_known_is_not_shown(capsys):
    with Progress("Generating", None, every=0) as progress:
        progress.advance(1500)
    assert capsys.readouterr().err == "Generating: 1,500 rows\n"

"""Data sets of several chunks: interrupted and resumed, shared by processes, and never whole in memory.

Most commands run as forks. Two forks together are the two ranks of a launch.
"""

import json
import os
import random
import signal
import subprocess
import threading
import time
from datetime import datetime

import numpy as np
import portalocker
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, List, Value
from forks import COMMAND, Forks
from warm import warm_python

from t5fusion import T5WithFusion
from t5fusion.common.base_models import make_processor
from t5fusion.finetune.streaming import CHUNK, chunks_of_texts, read_chunks, spread

DIM = 8
ROWS = 5 * CHUNK + 100
EMPTY = (3, 700, ROWS - 1)  # rows without a text
WORDS = ["--text-column", "name", "--vector-column", "vector"]
GENERATE = ["generate", "model", "--file", "rows.jsonl", *WORDS, "--max-new-tokens", "5"]
LAUNCH = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
IN_SMALL_CHUNKS = f"import t5fusion.finetune.streaming as streaming; streaming.CHUNK = 64; {COMMAND}"


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    """A folder with an untuned model that writes varied texts, and rows with a name, a target and a vector."""
    room = tmp_path_factory.mktemp("large")
    odd = {"initializer_factor": 2.0, "vocab_size": 127, "tie_word_embeddings": False}
    base = str(save_plain_t5(room / "base", seed=1, d_model=32, num_layers=1, **odd))
    T5WithFusion(base, lexical_dim=DIM).save_pretrained(room / "model")
    processor = make_processor(base, lexical_encoder=None, lexical_dim=DIM, lexical_source="given")
    processor.save_pretrained(room / "model")
    numbers = random.Random(0)
    with (room / "rows.jsonl").open("w") as file:
        for row in range(ROWS):
            name = "".join(numbers.choices("abcdefgh_", k=numbers.randint(3, 30)))
            vector = [round(numbers.gauss(0, 1), 3) for _ in range(DIM)]
            line = {"name": [None, " "][row % 2] if row in EMPTY else name, "text": name[::-1], "vector": vector}
            file.write(json.dumps(line) + "\n")
    return room


@pytest.fixture(scope="module")
def commands(room):
    commands = Forks(room)
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def whole(room, commands):
    """The output of one uninterrupted process."""
    code, out, err = commands.run(*GENERATE, "--output", "whole.jsonl")
    assert code == 0 and out == "", err
    return (room / "whole.jsonl").read_bytes()


def wait_for_lines(file, number):
    """Wait until a file has so many lines. Return its bytes."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if file.exists() and (content := file.read_bytes()).count(b"\n") >= number:
            return content
        time.sleep(0.005)
    raise AssertionError(f"{file} has no {number} lines")


def test_every_row_is_there_in_order_with_all_its_columns(room, whole):
    rows = [json.loads(line) for line in (room / "rows.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [list(line) for line in lines] == [["name", "text", "vector", "output"]] * ROWS
    assert [{name: line[name] for name in rows[0]} for line in lines] == rows
    assert [row for row, line in enumerate(lines) if line["output"] is None] == list(EMPTY)
    assert len({line["output"] for line in lines}) > 100  # Otherwise a swap of two rows' texts would go unnoticed.


def test_two_processes_killed_twice_write_the_bytes_of_one_process(room, commands, whole):
    file, partial = room / "killed.jsonl", room / "killed.jsonl.partial"
    written = 0
    for _ in range(2):
        ranks = commands.start_two(*GENERATE, "--output", "killed.jsonl")
        wait_for_lines(partial, written + 1)
        for process, _ in ranks:
            os.kill(process, signal.SIGKILL)
        assert [commands.end(rank)[0] for rank in ranks] == [-signal.SIGKILL] * 2
        earlier, written = written, partial.read_bytes().count(b"\n")
        assert earlier < written < ROWS and (room / "killed.jsonl.made-with").exists() and not file.exists()
    launcher = [warm_python(), "-m", "accelerate.commands.launch", *LAUNCH, "--main_process_port", "0"]
    launched = [*launcher, "-m", "t5fusion", *GENERATE, "--output", "killed.jsonl"]
    done = subprocess.run(launched, cwd=room, env=commands.environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{ROWS:,} rows are in killed.jsonl, {written:,} of them from before.") == 1
    assert file.read_bytes() == whole
    assert [file.name for file in room.glob("killed.jsonl?*")] == ["killed.jsonl.made-with"]


def test_ctrl_c_in_two_processes_and_one_process_resumes(room, commands, whole):
    file, partial = room / "stopped.jsonl", room / "stopped.jsonl.partial"
    ranks = commands.start_two(*GENERATE, "--output", "stopped.jsonl")
    wait_for_lines(partial, 1)
    for process, _ in ranks:
        os.kill(process, signal.SIGINT)
    (code, out, err), (other, _, silent) = map(commands.end, ranks)
    there = partial.read_bytes().count(b"\n")
    assert (code, other, out) == (130, 130, "") and 0 < there < ROWS and not file.exists()
    sentence = f"Stopped; {there:,} rows are in stopped.jsonl.partial. To go on, run the same command.\n"
    # Where rank 0 ends first, torch may warn in the other rank that it lost the connection.
    assert err == sentence and "Stopped" not in silent and "Traceback" not in silent
    code, _, err = commands.run(*GENERATE, "--output", "stopped.jsonl")
    assert code == 0 and f"{there:,} of them from before" in err
    assert file.read_bytes() == whole


def test_a_parquet_file_of_the_same_rows_holds_the_same_texts(room, commands, whole):
    rows = Dataset.from_list([json.loads(line) for line in (room / "rows.jsonl").read_text().splitlines()])
    rows.cast_column("vector", List(Value("float16"), length=DIM)).to_parquet(room / "rows.parquet")
    words = ["generate", "model", "--file", "rows.parquet", *GENERATE[4:], "--output", "made.parquet"]
    process, name = commands.start(*words)
    wait_for_lines(room / "made.parquet.partial", 1)
    os.kill(process, signal.SIGKILL)
    assert commands.end((process, name))[0] == -signal.SIGKILL and not (room / "made.parquet").exists()
    code, _, err = commands.run(*words)
    assert code == 0, err
    table = pq.read_table(room / "made.parquet")
    assert table.schema.field("vector").type == pa.list_(pa.float16(), DIM)
    lines = [json.loads(line) for line in whole.splitlines()]
    assert table["name"].to_pylist() == [line["name"] for line in lines]
    same = sum(a == b["output"] for a, b in zip(table["output"].to_pylist(), lines, strict=True))
    assert same > 0.9 * ROWS  # the vectors are rounded to float16


def test_an_output_begun_by_earlier_code_is_resumed(room, commands, whole):
    """Earlier code appended lines of a text and its output to the file itself."""
    lines = [json.loads(line) for line in whole.splitlines()]
    old = [json.dumps({"name": line["name"], "output": line["output"]}, ensure_ascii=False) for line in lines]
    (room / "old.jsonl").write_text("\n".join(old[:700]) + "\n" + old[700][:9])
    made_with = json.loads((room / "whole.jsonl.made-with").read_text())
    assert made_with.pop("engine") == "torch"  # Earlier code had no other.
    assert made_with.keys() == {"model", "columns", "no_vectors", "batch_size", "num_beams", "max_new_tokens"}
    (room / "old.jsonl.made-with").write_text(json.dumps(made_with))
    code, _, err = commands.run(*GENERATE, "--output", "old.jsonl")
    assert code == 0 and f"{ROWS:,} rows are in old.jsonl, 700 of them from before." in err
    assert (room / "old.jsonl").read_bytes() == whole
    for name in ("old.csv", "old.txt"):
        (room / name).write_text("\n".join(old) + "\n")
        (room / f"{name}.made-with").write_text(json.dumps(made_with))
        code, _, err = commands.run(*GENERATE, "--output", name)
        sentence = "holds JSON lines, which an earlier release wrote. To go on, rename it to old.jsonl, and "
        assert code == 1 and f"{name} {sentence}{name}.made-with to old.jsonl.made-with" in err


def test_an_existing_output_is_resumed_refused_or_replaced(room, commands, whole):
    file = room / "whole.jsonl"
    assert "whole.jsonl is complete: all 2,660 rows are there." in commands.run(*GENERATE, "--output", file.name)[2]
    code, _, err = commands.run(*GENERATE, "--output", file.name, "--beams", "2")  # complete, but without beams
    assert code == 1 and "whole.jsonl was started with other settings: num_beams was 1, now 2." in err
    begun = json.loads((room / "whole.jsonl.made-with").read_text())
    (room / "begun.jsonl").write_bytes(whole[:5000])
    (room / "begun.jsonl.made-with").write_text(json.dumps(begun | {"model": "another"}))
    code, _, err = commands.run(*GENERATE, "--output", "begun.jsonl")
    assert code == 1 and "begun.jsonl was started with other settings: model was another, now " in err
    (room / "notes.csv").write_text("not to be lost")
    code, _, err = commands.run(*GENERATE, "--output", "notes.csv")
    assert code == 1 and "notes.csv exists, and no file beside it records what its texts were made with." in err
    assert (room / "notes.csv").read_text() == "not to be lost" and not (room / "notes.csv.partial").exists()
    (room / "notes.csv.made-with").write_text(json.dumps(begun))
    code, _, err = commands.run(*GENERATE, "--output", "notes.csv")
    assert code == 1 and "there is no column 'name'; the columns are not to be lost." in err
    assert (room / "notes.csv").read_text() == "not to be lost" and not (room / "notes.csv.partial").exists()
    with (room / "begun.jsonl.partial").open("ab") as other:
        portalocker.lock(other, portalocker.LOCK_EX)
        code, _, err = commands.run(*GENERATE, "--output", "begun.jsonl", "--overwrite")
    assert code == 1 and "begun.jsonl.partial is being written by another process." in err
    assert (room / "begun.jsonl").read_bytes() == whole[:5000]
    few = ["--file", "few.jsonl", *GENERATE[4:], "--output", "begun.jsonl", "--overwrite"]
    (room / "few.jsonl").write_text("".join((room / "rows.jsonl").read_text().splitlines(True)[:5]))
    code, _, err = commands.run(*GENERATE[:2], *few)
    assert code == 0 and "5 rows are in begun.jsonl.\n" in err
    assert (room / "begun.jsonl").read_bytes().count(b"\n") == 5


def test_a_limit_takes_the_first_rows_and_more_are_added_later(room, commands, whole):
    words = [*GENERATE, "--output", "first.jsonl", "--limit"]
    code, _, err = commands.run(*words, "520")
    assert code == 0 and "520 rows are in first.jsonl.\n" in err
    assert (room / "first.jsonl").read_bytes() == b"".join(whole.splitlines(True)[:520])
    code, _, err = commands.run(*words, "1024")
    assert code == 0 and "1,024 rows are in first.jsonl, 520 of them from before." in err
    assert (room / "first.jsonl").read_bytes() == b"".join(whole.splitlines(True)[:1024])
    code, _, err = commands.run(*words, "5")
    assert code == 1 and "5 rows of the input were read, and first.jsonl has more. Leave out --limit" in err
    typed = ["generate", "model", "app", "settings", "app", "--no-vectors", "--max-new-tokens", "2", "--limit", "2"]
    code, out, _ = commands.run(*typed)
    assert code == 0 and [json.loads(line)["text"] for line in out.splitlines()] == ["app", "settings"]


def test_a_bad_row_is_named_by_its_number_in_the_file(room, commands):
    rows = (room / "rows.jsonl").read_text().splitlines()[:800]
    (room / "bad.jsonl").write_text("\n".join([*rows, json.dumps({"name": "a", "vector": [1.0]})]))
    code, out, err = commands.run("generate", "model", "--file", "bad.jsonl", *WORDS, "--max-new-tokens", "2")
    assert code == 1 and "row 800, column 'vector': 1 number; expected one vector of 8 finite numbers" in err
    assert out.count("\n") == CHUNK  # The rows before it are printed.


def test_two_processes_evaluate_as_one(room, commands):
    words = ["evaluate", "model", "rows.jsonl", *WORDS, "--target-column", "text", "--vectors", "all", "--json"]
    words, kept = [*words, "--limit", "150"], room / "model" / "evaluation.json"
    code, out, err = commands.run(*words, code=IN_SMALL_CHUNKS)
    assert code == 0, err
    alone, record = json.loads(out), kept.read_bytes()
    assert alone["true"]["rows"] == 150 and alone["true"]["loss"] != alone["shuffled"]["loss"]
    assert len(json.loads(record)["samples"]) == 3
    kept.unlink()
    (code, out, err), (other, silent, nothing) = map(commands.end, commands.start_two(*words, code=IN_SMALL_CHUNKS))
    assert (code, other) == (0, 0), err
    assert json.loads(out) == alone and kept.read_bytes() == record and silent == nothing == ""
    # One part has other batches, which changes the rounding, and shuffles the vectors differently.
    kept.unlink()
    whole = json.loads(commands.run(*words)[1])
    assert whole["true"]["loss"] == pytest.approx(alone["true"]["loss"], rel=1e-5)
    assert whole["true"]["rougeL"] == pytest.approx(alone["true"]["rougeL"], abs=0.02)


def test_each_chunk_of_standard_input_is_answered_at_once(room, commands):
    words = ["generate", "model", "--no-vectors", "--max-new-tokens", "2"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    line = [warm_python(), "-m", "t5fusion", *words]
    with subprocess.Popen(line, cwd=room, env=commands.environment, **pipes) as process:
        patience = threading.Timer(120, process.kill)  # A process that reads all input first would wait forever.
        patience.start()
        process.stdin.write("app\n\n" * (CHUNK // 2))
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(CHUNK)]
        process.stdin.write("settings\n")
        out, _ = process.communicate(timeout=60)
        patience.cancel()
    answers = [json.loads(line) for line in lines]
    assert [answer["text"] for answer in answers] == ["app", ""] * (CHUNK // 2) and answers[1]["output"] is None
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["settings"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_is_read_only_as_far_as_a_chunk_needs(tmp_path, kind):
    """Damage at the end of a file raises an error only when it is reached."""
    long, file = "x" * 3000, tmp_path / f"rows.{kind}"
    lines = [json.dumps({"name": "007", "text": long}) if kind == "jsonl" else f"007,{long}"] * 10 * CHUNK
    lines += ['{"name": \n' if kind == "jsonl" else "a,b,c,d"]
    file.write_text("\n".join(lines if kind == "jsonl" else ["name,text", *lines]))
    read = read_chunks(str(file))
    first, second = next(read), next(read)
    assert (first.first, len(first.rows), second.first) == (0, CHUNK, CHUNK) and first.rows["name"][0] == "007"
    with pytest.raises(ValueError, match=f"rows.{kind} cannot be read as {kind[:4]}"):
        list(read)


def test_parquet_and_text_files_are_read_in_chunks(tmp_path):
    names = [f"app_{number}" for number in range(2 * CHUNK + 1)]
    chunk = next(chunks_of_texts(names, "name"))
    assert chunk.rows["name"][:] == names[:CHUNK]
    rows = [{"name": name} for name in names]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.txt").write_text("\n".join(names), encoding="utf-8")
    for file in ("rows.parquet", "rows.txt"):
        read = list(read_chunks(str(tmp_path / file), text_column="name"))
        assert [chunk.first for chunk in read] == [0, CHUNK, 2 * CHUNK]
        assert [name for chunk in read for name in chunk.rows["name"]] == names


@pytest.mark.parametrize("name", ["none.jsonl", "none.txt", "rows.xml"])
def test_a_missing_file_is_named(tmp_path, name):
    if name == "rows.xml":
        (tmp_path / name).write_text("a")
    with pytest.raises((OSError, ValueError), match=f"there is no file .*{name}|rows.xml is a .xml file"):
        next(read_chunks(str(tmp_path / name)))


def limited(bytes_of_a_file):
    """Return the command for a process that cannot write larger files, as if the disk was full."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_of_a_file}, -1)); "
    return limit + COMMAND


def test_a_full_disk_is_reported_and_the_output_is_resumed(room, commands, whole):
    file, partial = room / "full.jsonl", room / "full.jsonl.partial"
    code, out, err = commands.run(*GENERATE, "--output", file.name, code=limited(70_000))
    written = partial.read_bytes()
    assert code == 1 and out == "" and 0 < len(written) <= 70_000 and not file.exists()
    rows = written.count(b"\n") // CHUNK * CHUNK
    cause = f"(File too large). full.jsonl.partial holds {rows:,} rows, from which the same command resumes. Free some "
    sentence = f"t5fusion: full.jsonl.partial cannot be written {cause}"
    assert err.startswith(sentence) and len(err.splitlines()) == 1 and rows > 0
    code, out, err = commands.run(*GENERATE, "--output", file.name, code=limited(len(whole) - 1))
    cause = f"(File too large). full.jsonl.partial holds {ROWS:,} rows, from which the same command resumes. Free some "
    assert code == 1 and err.startswith(f"t5fusion: full.jsonl cannot be written {cause}")
    assert [file.name for file in sorted(room.glob("full.jsonl*"))] == [
        f"full.jsonl.{x}" for x in ("made-with", "partial")
    ]
    code, _, err = commands.run(*GENERATE, "--output", file.name)
    assert code == 0 and file.read_bytes() == whole, err


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("/dev/full", "/dev/full is not a regular file. Choose a different --output, or leave it out to print"),
        ("model", "model is not a regular file."),
        ("rows.jsonl/x.csv", "rows.jsonl/x.csv.partial cannot be written (File exists)."),
        ("/proc/x.jsonl", "/proc/x.jsonl.partial cannot be written ("),
        ("x.txt", "x.txt ends in .txt; expected one of .jsonl, .csv, .parquet, .jsonl.gz, .csv.gz."),
        ("x", "x has no ending; expected one of .jsonl, .csv, .parquet, .jsonl.gz, .csv.gz."),
        ("x.parquet.gz", "x.parquet.gz ends in .parquet.gz; expected one of .jsonl, .csv, .parquet, .jsonl.gz, "),
    ],
)
def test_an_impossible_output_is_refused(room, commands, output, sentence):
    code, out, err = commands.run("generate", "model", "app", "--no-vectors", "--output", output)
    assert code == 1 and out == "" and err.startswith(f"t5fusion: {sentence}") and len(err.splitlines()) == 1


@pytest.mark.parametrize("output", ["full", "closed"])
def test_standard_output_that_cannot_be_written(room, commands, output):
    words = ["generate", "model", "--file", "rows.jsonl", *WORDS, "--max-new-tokens", "2"]
    line = [warm_python(), "-m", "t5fusion", *words]
    reads, writes = os.pipe()
    os.close(reads)
    with open("/dev/full" if output == "full" else writes, "wb") as stdout:
        done = subprocess.run(
            line, cwd=room, env=commands.environment, stdout=stdout, stderr=subprocess.PIPE, text=True
        )
    if output == "full":
        os.close(writes)
    assert done.returncode == 1
    assert done.stderr == ("t5fusion: [Errno 28] No space left on device\n" if output == "full" else "")


def test_measures_that_cannot_be_printed(room, commands):
    """Python keeps what is printed, and writes it when it ends."""
    words = ["evaluate", "model", "rows.jsonl", *WORDS, "--target-column", "text", "--limit", "4", "--json"]
    with open("/dev/full", "wb") as stdout:
        done = subprocess.run(
            [warm_python(), "-m", "t5fusion", *words],
            cwd=room, env=commands.environment, stdout=stdout, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 1 and done.stderr.endswith("\nt5fusion: [Errno 28] No space left on device\n")


def test_texts_of_standard_input_in_another_encoding(room, commands):
    line = [warm_python(), "-m", "t5fusion", "generate", "model", "--no-vectors", "--max-new-tokens", "2"]
    options = {"cwd": room, "env": commands.environment, "input": "app\rü\r".encode("latin-1"), "capture_output": True}
    done = subprocess.run(line, **options)
    assert done.returncode == 1 and done.stdout == b""
    sentence = "standard input cannot be read: line 2 is not utf-8. It may be latin-1 or cp1252: name its "
    assert done.stderr.decode() == f"t5fusion: {sentence}encoding with --encoding.\n"
    done = subprocess.run([*line, "--encoding", "latin-1"], **options)
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["app", "ü"], done.stderr


def test_numbers_beyond_float_and_columns_that_hold_no_text(room, commands):
    (room / "big.jsonl").write_text(f'{{"name": "a", "vector": [1{"0" * 40}{", 1" * 7}]}}\n' * 2)
    (room / "bigger.jsonl").write_text(f'{{"name": "a", "vector": [1e400{", 1" * 7}]}}\n' * 2)
    table = pa.table({"name": ["a"], "when": [datetime(2026, 1, 1)], "bytes": [b"a"]})
    pq.write_table(table, room / "odd.parquet")
    cases = [
        ("big.jsonl", "name", "row 0, column 'vector': 1e+40, too large for float32, at index 0; expected one vec"),
        ("bigger.jsonl", "name", "bigger.jsonl cannot be read as json: "),
        ("odd.parquet", "when", "column 'when' holds values of type timestamp[us]; expected text."),
        ("odd.parquet", "bytes", "column 'bytes' holds values of type binary; expected text."),
    ]
    for file, column, sentence in cases:
        words = ["generate", "model", "--file", file, "--text-column", column]
        words += ["--vector-column", "vector"] if column == "name" else ["--no-vectors"]
        code, out, err = commands.run(*words)
        assert code == 1 and out == "" and err.startswith(f"t5fusion: {sentence}") and len(err.splitlines()) == 1, err


def test_parts_are_drawn_from_the_whole_set():
    assert [part.tolist() for part in spread(5)] == [[0, 1, 2, 3, 4]]
    parts = spread(3 * CHUNK + 1)
    assert sorted(np.concatenate(parts)) == list(range(3 * CHUNK + 1))
    assert [len(part) for part in parts] == [CHUNK - 127, *[CHUNK - 128] * 3]
    assert all(part[0] < 100 and part[-1] > 3 * CHUNK - 100 and (np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 40, 3 * CHUNK])
def test_every_part_has_vectors_to_shuffle(number):
    rows = 3 * CHUNK + 1
    having = np.zeros(rows, dtype=bool)
    having[np.random.default_rng(1).permutation(rows)[:number]] = True
    parts = spread(rows, having)
    assert sorted(np.concatenate(parts)) == list(range(rows))
    assert len(parts) == 4 and all(0 < len(part) <= CHUNK and (np.diff(part) > 0).all() for part in parts)
    shares = [having[part].sum() for part in parts]
    assert sum(shares) == number and (number == 1 or 1 not in shares)


def test_rows_without_vectors_are_evaluated(room, commands):
    rows = [json.loads(line) for line in (room / "rows.jsonl").read_text().splitlines()[:150]]
    for index, row in enumerate(rows):
        if index not in (40, 80, 120):  # 64 rows a part: in some of them there is no vector at all
            row["vector"] = None
    (room / "sparse.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", "model", "sparse.jsonl", *WORDS, "--target-column", "text", "--vectors", "all", "--json"]
    code, out, err = commands.run(*words, code=IN_SMALL_CHUNKS)
    assert code == 0, err
    assert "146 of 149 rows have no vector; the model reads only their text." in err
    losses = [json.loads(out)[kind]["loss"] for kind in ("true", "shuffled", "none")]
    assert len(set(losses)) == 3 and max(losses) - min(losses) < 1

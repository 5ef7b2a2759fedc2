"""Ray Data: `examples/ray_generate.py` gives the texts of `t5fusion generate`, even if a worker is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from shared_fixtures import save_plain

from t5fusion import T5WithFusion, VectorKind
from t5fusion.common.base_models import make_processor
from t5fusion.finetune import Columns, generate_file

from .models import KEPT
from .table import Table
from .upstream import ROOT

FUSED = ("T5WithFusion",)
ROWS, FILES, DIM, LONGEST = 4096, 4, 8, 24
NAMELESS, PICTURELESS = 700, 300  # One row in 700 has no text, and one in 300 lacks a vector.
PATIENCE = 300  # seconds
KINDS = {"item": DIM, "image": VectorKind(DIM, tokens=4, projector="mlp")}
ENCODED, GIVEN, OF_KINDS = "encoder", "vector", "two-kinds"
COLUMNS = {
    ENCODED: Columns("name"),
    GIVEN: Columns("name", vector="vector"),
    OF_KINDS: Columns("name", vector={"item": "vector", "image": "picture"}),
}


@cache
def folder_with_rows() -> Path:
    """Return a folder with rows as Parquet and as JSONL, in several files each, and as one file, rows.parquet."""
    folder, numbers = Path(KEPT.name) / "ray", random.Random(0)
    folder.mkdir()
    rows = [
        {
            "id": row,
            "name": "".join(numbers.choices("abcdefgh_", k=numbers.randint(3, 30))) if row % NAMELESS else None,
            "vector": [round(numbers.gauss(0, 1), 3) for _ in range(DIM)],
            "picture": [round(numbers.gauss(0, 1), 3) for _ in range(DIM)] if row % PICTURELESS else None,
        }
        for row in range(ROWS)
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "rows.parquet")
    for number in range(FILES):
        part = table.slice(number * ROWS // FILES, ROWS // FILES)
        pq.write_table(part, folder / f"part-{number}.parquet")
        part.to_pandas().to_json(folder / f"part-{number}.jsonl", orient="records", lines=True)
    return folder


def words_of(vectors: str) -> list[str]:
    """Return the options of the example that name the columns."""
    named = {
        ENCODED: [],
        GIVEN: ["--vector-column", "vector"],
        OF_KINDS: ["--vector-column", "item=vector", "--vector-column", "image=picture"],
    }
    return ["--text-column", "name", *named[vectors]]


@cache
def folder_of_model(vectors: str) -> Path:
    """Return the folder of an untuned model that reads such vectors and writes varied texts."""
    folder = Path(KEPT.name) / f"ray-{vectors}"
    odd = {"initializer_factor": 2.0, "vocab_size": 127, "tie_word_embeddings": False}
    base = str(save_plain(folder / "base", seed=1, d_model=32, num_layers=1, **odd))
    fields = {ENCODED: {}, GIVEN: {"lexical_dim": DIM}, OF_KINDS: {"vectors": KINDS}}[vectors]
    recipe = {} if vectors == ENCODED else {"lexical_encoder": None, "lexical_source": "given"}
    T5WithFusion(base, **fields).save_pretrained(folder / "model")
    processor = make_processor(base, **fields, **recipe)
    processor.save_pretrained(folder / "model")
    return folder / "model"


@cache
def expected_rows(vectors: str) -> list[dict]:
    """Return the rows with the texts of `t5fusion generate`."""
    file = Path(KEPT.name) / f"expected-{vectors}.parquet"
    data = folder_with_rows() / "rows.parquet"
    generate_file(folder_of_model(vectors), data, COLUMNS[vectors], file, max_new_tokens=LONGEST)
    return pq.read_table(file).to_pylist()


def workers_of(process: psutil.Process) -> set[int]:
    """Return the ids of the processes that hold a model. Ray names them after the class of their actor."""
    found = set()
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found |= {child.pid} if "MapWorker" in "".join(child.cmdline()) else set()
    return found


def generates(model_name: str, vectors: str, kind: str, kill: bool = False) -> str:
    """Run the example with two workers, and compare its rows with those of `t5fusion generate`."""
    files = sorted(folder_with_rows().glob(f"part-*{kind}"))
    options = ["--workers", 2, "--max-new-tokens", LONGEST, "--rows-per-file", 512]
    model = folder_of_model(vectors)
    expected = expected_rows(vectors)
    with TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        output = Path(folder, "scored")
        script, words = ROOT / "examples" / "ray_generate.py", words_of(vectors)
        command = [sys.executable, script, model, output, *files, *words, *options]
        process = psutil.Popen(list(map(str, command)), env=environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            remark = kill_a_worker(process, output) if kill else ""
            process.wait(PATIENCE)
        finally:
            end(process)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(log.read().strip().splitlines()[-1])
        rows = pq.read_table(output).sort_by("id").to_pylist()
    assert [row["id"] for row in rows] == list(range(ROWS)), f"{len(rows)} rows, expected {ROWS}"
    different = sum(row != other for row, other in zip(rows, expected, strict=True))
    assert not different, f"{different} of {ROWS} rows differ"
    assert len({row["output"] for row in rows}) > ROWS // 10  # Otherwise a swap of two texts would go unnoticed.
    return remark


def environment() -> dict[str, str]:
    """Return the environment of the example: this process's packages, and no messages to Ray's makers."""
    path = os.pathsep.join(filter(None, sys.path))
    return os.environ | {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def kill_a_worker(process: psutil.Popen, output: Path) -> str:
    """Kill one of two workers as soon as some rows are written. Return how many were, once a new worker has come."""
    deadline, killed, before, written = time.monotonic() + PATIENCE, None, set(), 0
    while time.monotonic() < deadline and process.poll() is None:
        workers = workers_of(process)
        if killed is None and len(workers) == 2 and any(output.glob("*.parquet")):
            killed, before = min(workers), workers
            os.kill(killed, signal.SIGKILL)
            written = len(list(output.glob("*.parquet")))
        elif killed and workers - before:
            return f"a worker was killed while {written} of {ROWS // 512} files were written"
        time.sleep(0.05)
    raise AssertionError("no new worker took the place of the killed one" if killed else "no worker was killed")


def end(process: psutil.Popen) -> None:
    """End the example and all processes of its Ray, if it has not ended by itself."""
    if process.is_running() and process.poll() is None:
        family = [*process.children(recursive=True), process]
        for member in family:
            member.kill()
        psutil.wait_procs(family, 30)


def make() -> Table:
    table = Table(
        "Ray Data",
        "[examples/ray_generate.py](../examples/ray_generate.py) generates with two workers on a local Ray. Each row "
        "must be written exactly once, with its columns and the text of `t5fusion generate`. In the last row, one of "
        f"the two worker processes is killed (SIGKILL) while it works. With ray {version('ray')}.",
        ["outcome"],
    )
    for row, arguments in {
        "own vectors, Parquet files": (GIVEN, ".parquet"),
        "own vectors, JSONL files": (GIVEN, ".jsonl"),
        "own vectors of two kinds": (OF_KINDS, ".parquet"),
        "vectors of an encoder": (ENCODED, ".parquet"),
        "own vectors, one worker killed": (GIVEN, ".parquet", True),
    }.items():
        table.add(row, "outcome", generates, *arguments, models=FUSED)
    return table

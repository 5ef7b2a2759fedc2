"""Scale: how time and memory of `train` and `generate` grow with the number of rows.

A set of rows is prepared, and the fusion layer is started, in a process of its own, by the calls of `t5fusion train`.
Memory is the process's own (RssAnon): pages of files that are mapped into memory can be dropped at any time, so they do
not count. The largest set is a file of 1.5 GB, and its prepared rows take as much again while it is measured.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from t5fusion import T5FusionConfig, T5FusionProcessor, T5WithFusion, tiny_t5_v2

from .measure import Result

SIZES, GENERATED = (10_000, 100_000, 1_000_000), (2_000, 20_000, 100_000)
BLOCK = 10_000  # rows that are written at once
WIDTHS = {"384 numbers": {"vector": 384}, "two kinds, 384 and 128 numbers": {"item": 384, "user": 128}}
MEMORY_GOAL, LINEAR, START = 500, 1.1, 0.1  # MB; ratio of the times per row; share of the preparation
VARIES = "The time of a row varies by a tenth between runs. docs/scale.md compares two runs."
ANSWER = "\nANSWER "


def measure() -> list[Result]:
    """Measure sets of `SIZES` and `GENERATED` rows."""
    with tempfile.TemporaryDirectory(dir=".") as name:  # /tmp may lie in memory.
        folder = Path(name)
        prepared = {
            vectors: {size: in_child("prepare", write_rows(folder, size, widths)) for size in SIZES}
            for vectors, widths in WIDTHS.items()
        }
        save_small_model(folder / "model")
        written = {
            size: in_child("generate", write_rows(folder, size, {"vector": 8}), folder / "model") for size in GENERATED
        }
    results = [result for vectors, measured in prepared.items() for result in results_of_training(vectors, measured)]
    return [*results, *results_of_generation(written)]


def results_of_training(vectors: str, measured: dict[int, dict[str, float]]) -> list[Result]:
    """Return the results of preparing sets: for each size `seconds`, `start` in seconds, and `megabytes`."""
    smallest, largest = min(measured), max(measured)
    shares = {size: each["start"] / each["seconds"] for size, each in measured.items()}
    return [
        growth(f"prepare rows of {vectors}", measured),
        memory(f"prepare rows of {vectors}, and start the fusion layer", measured),
        Result(
            work=f"start the fusion layer with {largest:,} rows of {vectors}",
            unit="seconds",
            goal=f"at most {START} of the preparation",
            peers={"the preparation": measured[largest]["seconds"]},
            ours={"the start": measured[largest]["start"]},
            ratios={f"{size:,} rows": shares[size] for size in (smallest, largest)},
            met=shares[largest] <= START,
        ),
    ]


def results_of_generation(measured: dict[int, dict[str, float]]) -> list[Result]:
    """Return the results of generating: for each size `seconds` and `megabytes`."""
    work = "generate 2 tokens with a T5 of one small layer"
    return [growth(work, measured), memory(work, measured)]


def growth(work: str, measured: dict[int, dict[str, float]]) -> Result:
    """Return how the time of a row grows with the number of rows."""
    per_row = {size: each["seconds"] / size for size, each in measured.items()}
    ratio = per_row[max(per_row)] / per_row[min(per_row)]
    return Result(
        work=work,
        unit="ms per row",
        goal=f"at most {LINEAR} x the smallest set's",
        peers={},
        ours={f"{size:,} rows": seconds * 1000 for size, seconds in per_row.items()},
        ratios={"": ratio},
        met=ratio <= LINEAR,
        notes="" if ratio <= LINEAR else VARIES,
    )


def memory(work: str, measured: dict[int, dict[str, float]]) -> Result:
    """Return how the peak memory grows with the number of rows."""
    megabytes = {size: each["megabytes"] for size, each in measured.items()}
    return Result(
        work=f"peak memory: {work}",
        unit="MB",
        goal=f"within {MEMORY_GOAL} MB of the smallest set's",
        peers={},
        ours={f"{size:,} rows": peak for size, peak in megabytes.items()},
        ratios={},
        met=megabytes[max(megabytes)] - megabytes[min(megabytes)] <= MEMORY_GOAL,
    )


def write_rows(folder: Path, number: int, widths: Mapping[str, int]) -> Path:
    """Write a Parquet file of rows with a name, a target, and columns of vectors of these widths. All names differ."""
    numbers, words = np.random.default_rng(0), np.array([f"word{index}" for index in range(500)])
    file = folder / f"{number}_{'_'.join(widths)}.parquet"
    lists = dict.fromkeys(widths, pa.list_(pa.float32()))
    schema = pa.schema({"name": pa.string(), "target": pa.string(), **lists})
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, number, BLOCK):
            rows = min(BLOCK, number - start)
            picked = words[numbers.integers(0, len(words), (rows, 8))]
            columns = {
                "name": [f"{start + row} {' '.join(each[:3])}" for row, each in enumerate(picked)],
                "target": [" ".join(each[3:]) for each in picked],
            }
            for column, width in widths.items():
                vectors = numbers.standard_normal(rows * width, dtype=np.float32)
                columns[column] = pa.FixedSizeListArray.from_arrays(vectors, width).cast(lists[column])
            writer.write_table(pa.table(columns, schema=schema))
    return file


def save_small_model(folder: Path) -> None:
    """Save a fused T5 of one layer with random weights, so that reading and writing rows counts."""
    processor = T5FusionProcessor(str(tiny_t5_v2.PATH), lexical_encoder=None, lexical_dim=8, lexical_source="given")
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    vocabulary = len(processor.tokenizer)
    config = T5FusionConfig(**sizes, vocab_size=vocabulary, lexical_dim=8, decoder_start_token_id=0)
    config.lexical_token_id = processor.lexical_token_id
    T5WithFusion(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def in_child(work: str, *arguments: Path) -> dict[str, float]:
    """Return what a function of `WORK` measures in a process of its own."""
    command = [sys.executable, "-c", f"from {__package__}.scale import child; child()", work, *map(str, arguments)]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    numbers: dict[str, float] = json.loads(out.rpartition(ANSWER)[2])
    return numbers


def child() -> None:
    """Do the work that the command line names, and print what it took."""
    work, *arguments = sys.argv[1:]
    peak = PeakMemory()
    measured = WORK[work](*arguments)
    print(ANSWER + json.dumps(measured | {"megabytes": peak.stop()}))


def prepare_rows(data: str) -> dict[str, float]:
    """Prepare a file as `t5fusion train` does, and fit the fusion layer of a model of flan-t5-small's width."""
    from collections import Counter

    from t5fusion.common.base_models import make_processor
    from t5fusion.finetune.data import Columns, load_split
    from t5fusion.finetune.inputs import input_parts
    from t5fusion.finetune.prepared_rows import keep_rows, rows_folder

    from .shape import flan_t5_small

    vector_columns = pq.read_schema(data).names[2:]
    widths = next(widths for widths in WIDTHS.values() if [*widths] == vector_columns)
    given = {"lexical_encoder": None, "lexical_source": "given"}
    if len(widths) == 1:
        model = flan_t5_small(num_layers=1)
        processor = make_processor(str(tiny_t5_v2.PATH), **given)
        columns = Columns("name", "target", vector="vector")
    else:
        kinds = {name: {"dim": width, "scale": None} for name, width in widths.items()}
        model = flan_t5_small(num_layers=1, vectors=kinds)
        processor = make_processor(str(tiny_t5_v2.PATH), vectors=kinds, **given)
        columns = Columns("name", "target", vector={name: name for name in kinds})
    started = time.perf_counter()
    rows, held_out = load_split(data, columns)
    with rows_folder() as folder:
        kept = [
            keep_rows(folder / f"{index}.arrow", parts, tuple(processor.kinds))
            for index, parts in enumerate(
                input_parts(part, columns, processor, (128, 64), Counter()) for part in (rows, held_out)
            )
        ]
        prepared = time.perf_counter()
        model.fit_fusion(kept[0])
        return {"seconds": prepared - started, "start": time.perf_counter() - prepared}


def generate_rows(data: str, model: str) -> dict[str, float]:
    """Generate a text for each row of a file."""
    from t5fusion.finetune.data import Columns
    from t5fusion.finetune.file_generation import generate_file

    columns = Columns("name", vector="vector")
    started = time.perf_counter()
    generate_file(model, data, columns, f"{data}.out.jsonl", max_new_tokens=2, batch_size=64)
    return {"seconds": time.perf_counter() - started}


WORK: dict[str, Callable[..., dict[str, float]]] = {"prepare": prepare_rows, "generate": generate_rows}


class PeakMemory:
    """Samples the memory of this process, apart from pages of files, in a thread."""

    def __init__(self) -> None:
        self.peak, self.ended = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self) -> None:
        while not self.ended.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, kilobytes / 1024)

    def stop(self) -> float:
        """Return the peak, in MB."""
        self.ended.set()
        self.thread.join()
        return self.peak

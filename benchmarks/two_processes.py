"""What a second process is worth: rows per second of one and of two processes, with one thread each, in turn.

    python -m benchmarks.two_processes           # train and generate, by `accelerate launch`
    python -m benchmarks.two_processes --ray     # examples/ray_generate.py with one and two workers, and one killed

Start-up does not count. Each launch works on a small and on a large set. The difference of their rows is divided by the
difference of their times. Rows per CPU second of the first process hardly depend on the other work of the machine: they
show what the processes cost each other, but not how long they wait. With Ray, time runs from the first file that is
written to the last one. In training, each process has batches of eight rows.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from t5fusion import T5FusionProcessor, T5WithFusion
from t5fusion.finetune import Columns, TrainingOptions, generate_file, train_file
from t5fusion.naming_t5fusion import NEWEST_EMBEDDED

from .speed.machine import describe_machine

DIM, NEW_TOKENS, TASK = 64, 8, 512
WARM_UP, TRAINED, GENERATED = 32, (64, 256), (1024, 3072)  # rows, of the small and of the large set
FILES = 10  # tasks for Ray
COLUMNS = Columns("name", "target", vector="vector")
ROOT = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
MARK = "ROWS PER SECOND "


def main() -> None:
    """Measure, and print the rows per second of each repeat and the ratios of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", action="store_true", help="measure the example for Ray")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        measure_here(Path(given.child))
        return
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model")
        for rows in {WARM_UP, *TRAINED, *GENERATED, TASK * FILES}:
            write_rows(folder / f"{rows}.parquet", rows)
        ways = ray_ways(folder) if given.ray else launch_ways(folder)
        measured: dict[str, dict[str, list[float]]] = {}
        for _ in range(given.repeats):
            for way, run in ways.items():
                for work, speed in run().items():
                    measured.setdefault(work, {}).setdefault(way, []).append(speed)
                    print(f"{work}, {way}: {speed:.1f} rows/s", flush=True)
    for work, speeds in measured.items():
        first = speeds[next(iter(ways))]
        for way, each in speeds.items():
            ratios = [speed / other for speed, other in zip(each, first, strict=True)]
            print(
                f"{work}, {way}: {statistics.median(each):.1f} rows/s; beside {next(iter(ways))} "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def save_model(folder: Path) -> None:
    """Save an untuned fused model for vectors of `DIM` numbers."""
    recipe = {"vectors": {"lexical": DIM}, "lexical_encoder": None, "lexical_source": "given"}
    T5FusionProcessor(NEWEST_EMBEDDED, **recipe).save_pretrained(folder)
    T5WithFusion(NEWEST_EMBEDDED, vectors={"lexical": DIM}).save_pretrained(folder)


def write_rows(file: Path, rows: int) -> None:
    """Write rows with a name, a target and a vector."""
    numbers, words = np.random.default_rng(0), [f"word{index}" for index in range(500)]
    names = [f"{row} {' '.join(numbers.choice(words, 6))}" for row in range(rows)]
    targets = [" ".join(numbers.choice(words, 6)) for _ in range(rows)]
    vectors = numbers.standard_normal((rows, DIM)).astype(np.float32).tolist()
    pq.write_table(pa.table({"name": names, "target": targets, "vector": vectors}), file)


def launch_ways(folder: Path) -> dict[str, Callable[[], dict[str, float]]]:
    """Return functions that launch one and two processes, and return the rows per second of each work."""

    def launch(processes: int) -> dict[str, float]:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
        command += ["--multi_gpu"] if processes > 1 else ["--cpu"]
        command += ["--num_processes", str(processes), "--main_process_port", "0", "-m", f"{__package__}.two_processes"]
        done = subprocess.run(
            [*command, "--child", str(folder)], cwd=ROOT, env=os.environ | ONE_THREAD, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        lines = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
        return {work: float(speed) for work, speed in (line.split(": ") for line in lines)}

    return {"one process": lambda: launch(1), "two processes": lambda: launch(2)}


def measure_here(folder: Path) -> None:
    """Train and generate in this process, one of those of a launch. The first one prints the rows per second."""
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))

    def train(rows: int) -> None:
        # The validation set is that of the small set for both, so that it does not count.
        options = TrainingOptions(NEWEST_EMBEDDED, epochs=1, batch_size=8)
        data, held_out = folder / f"{rows}.parquet", folder / f"{TRAINED[0]}.parquet"
        run = folder / f"run-{processes}-{rows}"
        train_file(data, COLUMNS, run, options, validation=held_out, overwrite=True)

    def generate(rows: int) -> None:
        output = folder / f"out-{processes}-{rows}.parquet"
        settings = {"min_new_tokens": NEW_TOKENS}
        data = folder / f"{rows}.parquet"
        generate_file(
            folder / "model", data, COLUMNS, output, max_new_tokens=NEW_TOKENS, settings=settings, overwrite=True
        )

    for work, do, sizes in (("train", train, TRAINED), ("generate", generate, GENERATED)):
        do(WARM_UP)  # What is imported and loaded at first does not count.
        times = []
        for rows in sizes:
            start, used = time.perf_counter(), time.process_time()
            do(rows)
            times.append((time.perf_counter() - start, time.process_time() - used))
        if rank == 0:
            rows, (seconds, used) = sizes[1] - sizes[0], np.subtract(times[1], times[0])
            print(f"{MARK}{work}: {rows / seconds}", flush=True)
            print(f"{MARK}{work}, per CPU second: {rows / used}", flush=True)


def ray_ways(folder: Path) -> dict[str, Callable[[], dict[str, float]]]:
    """Return functions that run the example for Ray, and return its rows per second."""
    return {
        "one worker": lambda: {"ray": run_ray(folder, 1)},
        "two workers": lambda: {"ray": run_ray(folder, 2)},
        "two workers, one killed": lambda: {"ray": run_ray(folder, 2, kill=True)},
    }


def run_ray(folder: Path, workers: int, kill: bool = False) -> float:
    """Run the example, and return its rows per second from the first file that it writes to the last one.

    Args:
        folder: The folder of the model and the rows.
        workers: Number of workers.
        kill: Whether to kill a worker as soon as the first file is written.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        output = Path(name, "scored")
        command = [sys.executable, ROOT / "examples/ray_generate.py", folder / "model", output]
        command += [folder / f"{TASK * FILES}.parquet", "--text-column", "name", "--vector-column", "vector"]
        command += ["--max-new-tokens", NEW_TOKENS, "--workers", workers, "--rows-per-file", TASK]
        errors = Path(name, "stderr")  # A file, because a pipe that nobody reads meanwhile would fill up.
        with errors.open("w") as stderr:
            process = psutil.Popen(
                list(map(str, command)), env=os.environ | ONE_THREAD | {"RAY_USAGE_STATS_ENABLED": "0"},
                stdout=subprocess.DEVNULL, stderr=stderr,
            )  # fmt: skip
        while kill and process.poll() is None:
            if any(output.glob("*.parquet")):
                names = {child: "".join(child.cmdline()) for child in process.children(recursive=True)}
                os.kill(next(child.pid for child, name in names.items() if "MapWorker" in name), signal.SIGKILL)
                kill = False
            time.sleep(0.05)
        if process.wait():
            raise RuntimeError(f"the example failed: {errors.read_text(errors='replace')[-2000:]}")
        written = sorted(file.stat().st_mtime for file in output.glob("*.parquet"))
    return TASK * (len(written) - 1) / (written[-1] - written[0])


if __name__ == "__main__":
    main()

"""Run the measurements of speed, and write benchmarks/RESULTS.md: `python -m benchmarks.speed [SUBJECT ...]`.

Each subject is a module of this folder. It runs in a process of its own, so that one subject's memory and settings do
not touch the next's. RESULTS.json keeps the results, so a run of some subjects leaves the rows of the others alone.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from .machine import describe_machine
from .results import write_results

SUBJECTS = {
    "training": "Training",
    "generation": "Generation",
    "encoding": "Vectors of texts",
    "fusion_cost": "What fusion costs",
    "loading": "Loading and memory",
    "scale": "Scale",
    "gpu": "On a GPU",
}
NEEDS_GPU = ("gpu",)
FOLDER = Path(__file__).parents[1]
CHILD = """
import importlib, json, sys
from dataclasses import asdict
module = importlib.import_module(f"{sys.argv[1]}.{sys.argv[2]}")
print("\\n" + json.dumps([asdict(result) for result in module.measure()]))
"""


def main() -> None:
    """Measure the subjects that the command line names, or all that need no GPU, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "subjects", nargs="*", metavar="SUBJECT", help=f"one of {', '.join(SUBJECTS)}; default: all but gpu"
    )
    chosen = parser.parse_args().subjects or [name for name in SUBJECTS if name not in NEEDS_GPU]
    unknown = [name for name in chosen if name not in SUBJECTS]
    if unknown:
        parser.error(f"there is no subject {unknown[0]!r}; expected some of {', '.join(SUBJECTS)}")
    if set(chosen) & set(NEEDS_GPU) and not torch.cuda.is_available():
        parser.exit(1, "There is no GPU that torch can use. Install a CUDA build of torch.\n")
    file = FOLDER / "RESULTS.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in chosen:
        start = time.perf_counter()
        print(f"{name} ...", flush=True)
        kept[name] = {"machine": describe_machine(), "results": run(name)}
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    write_results(FOLDER / "RESULTS.md", {title: kept[name] for name, title in SUBJECTS.items() if name in kept})
    print(FOLDER / "RESULTS.md")


def run(subject: str) -> list[dict]:
    """Measure a subject in a process of its own, and return its results."""
    command = [sys.executable, "-c", CHILD, __package__, subject]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    results: list[dict] = json.loads(out.strip().splitlines()[-1])
    return results


if __name__ == "__main__":
    main()

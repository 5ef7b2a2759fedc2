"""Measure several ways to do the same work, one after another in one process."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Times(NamedTuple):
    """Seconds of one way over its repeats."""

    median: float
    min: float
    max: float


def peak_megabytes() -> float:
    """Return the peak memory of this process, in MB. (`getrusage` would count that of the process that started it.)"""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@dataclass(frozen=True)
class Result:
    """One row of the table.

    Args:
        work: What is measured.
        unit: The unit of `peers` and `ours`.
        goal: The goal in words.
        peers, ours: The measured values by name.
        ratios: What follows from them.
        met: Whether the goal is met.
        notes: What holds it back and what was tried, if the goal is not met.
    """

    work: str
    unit: str
    goal: str
    peers: dict[str, float]
    ours: dict[str, float]
    ratios: dict[str, float]
    met: bool
    notes: str = ""


def in_turn(contenders: dict[str, Callable[[], Any]], repeats: int = 5, warmup: int = 1) -> dict[str, Times]:
    """Run each contender `warmup` times, then all in turn `repeats` times, and return their times."""
    for run in contenders.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: Times(statistics.median(each), min(each), max(each)) for name, each in seconds.items()}

"""Training and generation on a GPU, for the shapes of flan-t5-small and flan-t5-large. `make gpu` runs this.

Rows, adapter and steps are those of `training.py`. The bf16 peak is that of a product of large matrices, measured in
the same process. `python -m benchmarks.speed.gpu` runs the same code with a tiny shape on the CPU, to try it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .measure import Result, in_turn
from .shape import LARGE
from .training import PEAK_GOAL, Batch, even_batch, peft_model, step_of

Shape = Mapping[str, int]
SHAPES: Mapping[str, Shape] = {"flan-t5-small": {}, "flan-t5-large": LARGE}
ROWS, NEW_TOKENS = 64, 24
MATRIX = 8192  # rows and columns of the matrices that show the GPU's peak


def measure(device: str = "cuda", shapes: Mapping[str, Shape] = SHAPES, matrix: int = MATRIX) -> list[Result]:
    """Return the results for each shape."""
    results = []
    for name, shape in shapes.items():
        model = peft_model(fast=True, **shape).to(device)
        batch = {field: values.to(device) for field, values in even_batch(model, ROWS).items()}
        results += [measure_step(name, model, batch, matrix), measure_generation(name, model, batch)]
    return results


def measure_step(name: str, model: Any, batch: Batch, matrix: int) -> Result:
    """Measure a training step in bf16, with and without `torch.compile`."""
    device = model.device.type
    left, right = (torch.randn(matrix, matrix, device=device).bfloat16() for _ in range(2))
    eager, compiled = (step_of(each, [batch], bf16=True) for each in (model, torch.compile(model)))
    ways = {"bf16": eager, "bf16, torch.compile": compiled, "peak": lambda: torch.mm(left, right)}
    times = in_turn({way: waiting(work, device) for way, work in ways.items()}, repeats=10, warmup=3)
    seconds = {way: each.median for way, each in times.items()}
    peak = 2 * matrix**3 / seconds.pop("peak")
    with FlopCounterMode(display=False) as counter:
        eager()
    shares = {f"{way}: share of the bf16 peak": counter.get_total_flops() / s / peak for way, s in seconds.items()}
    return Result(
        work=f"{name}: a training step of {ROWS} rows of 36 + 18 tokens",
        unit="s",
        goal=f"{100 * PEAK_GOAL:.0f} % of the bf16 peak",
        peers={},
        ours=seconds,
        ratios=shares,
        met=max(shares.values()) >= PEAK_GOAL,
    )


def measure_generation(name: str, model: Any, batch: Batch) -> Result:
    """Measure greedy decoding in bf16, with a growing cache and with a static one, for which `generate` compiles."""
    device = model.device.type
    merged = model.merge_and_unload().eval().bfloat16()
    inputs = {field: values for field, values in batch.items() if field != "labels"}
    generate = partial(merged.generate, **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
    ways = {"growing cache": generate, "static cache": partial(generate, cache_implementation="static")}
    times = in_turn({way: waiting(work, device) for way, work in ways.items()}, repeats=5, warmup=2)
    seconds = {way: each.median for way, each in times.items()}
    return Result(
        work=f"{name}: generate {NEW_TOKENS} tokens for {ROWS} rows, greedy, bf16",
        unit="s",
        goal="a static cache is faster",
        peers={},
        ours=seconds,
        ratios={"static cache: faster": seconds["growing cache"] / seconds["static cache"]},
        met=seconds["static cache"] < seconds["growing cache"],
    )


def waiting(work: Callable[[], Any], device: str) -> Callable[[], None]:
    """Return a function that does the work, and waits until the GPU has done it."""

    def work_and_wait() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return work_and_wait


if __name__ == "__main__":
    TINY = {"d_model": 64, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    for result in measure("cpu", {"a tiny shape": TINY}, matrix=512):
        print(result)

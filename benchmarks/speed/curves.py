"""What bf16 with packed rows costs in quality: held-out losses compared with those of fp32, on the demo's task.

    python -m benchmarks.speed.curves

Both train with three seeds, as `t5fusion train` does, with the options of docs/method.md. The losses are measured in
fp32 for both. This takes an hour on two idle cores, and is not part of `make bench`.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from t5fusion.common.losses import Losses, paired_bootstrap
from t5fusion.demo.demo import demo_inputs, demo_processor, demo_rows
from t5fusion.finetune.evaluation import losses
from t5fusion.finetune.options import TrainingOptions
from t5fusion.finetune.training import train
from t5fusion.naming_t5fusion import NEWEST_EMBEDDED

from .measure import Result

SEEDS = (0, 1, 2)
EPOCHS, BATCH = 2, 16
GOAL = 0.01  # nats per token
WAYS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "packing": False},
    "bf16, packed": {"precision": "bf16", "packing": True},
}


def measure(limit: int | None = None) -> list[Result]:
    """Train and measure. `limit` takes the first rows only."""
    training, held_out = demo_rows(limit)
    processor = demo_processor(NEWEST_EMBEDDED, "body")
    rows, test = demo_inputs(training, processor), demo_inputs(held_out, processor)
    measured: dict[str, list[Losses]] = {name: [] for name in WAYS}
    for seed in SEEDS:
        for name, choice in WAYS.items():
            options = TrainingOptions(epochs=EPOCHS, batch_size=BATCH, seed=seed, **choice)
            with tempfile.TemporaryDirectory() as folder:
                model = train(rows, test, processor, options, Path(folder) / "run")
            measured[name].append(losses(model, test, processor))
    # The bootstrap draws whole rows, each with its losses of all seeds.
    pooled = {
        name: Losses(sum(run.sums for run in runs), sum(run.tokens for run in runs)) for name, runs in measured.items()
    }
    difference, low, high = paired_bootstrap(pooled["bf16, packed"], pooled["fp32"])
    means = {name: statistics.mean(run.mean for run in runs) for name, runs in measured.items()}
    each = "; ".join(f"{name}: {', '.join(f'{run.mean:.3f}' for run in runs)}" for name, runs in measured.items())
    return [
        Result(
            work=f"held-out loss after {EPOCHS} epochs, three seeds",
            unit="nats per token",
            goal=f"no worse than fp32 by {GOAL}",
            peers={"fp32": means["fp32"]},
            ours={"bf16, packed": means["bf16, packed"]},
            ratios={"difference": difference},
            met=high < GOAL,
            notes=f"Difference: 95 % between {low:+.4f} and {high:+.4f}. Each seed: {each}.",
        )
    ]


if __name__ == "__main__":
    print(*measure(), sep="\n")

"""Draw the losses of a training, on its own rows and on the held-out rows, as a picture."""

import math
from pathlib import Path
from typing import Any

from ..common.charts import Line, line_chart

LOSS_CURVE = "loss.svg"
LINES = {"loss": "training", "eval_loss": "held out"}  # by the name in the Trainer's log


def save_loss_curve(folder: Path, history: list[dict[str, Any]]) -> None:
    """Draw the losses of a training into loss.svg in its folder. Without losses, draw nothing.

    Args:
        folder: The run folder.
        history: The entries of the Trainer's log, as training.json holds them.
    """
    lines = [
        Line(label, [(entry["epoch"], entry[name]) for entry in history if math.isfinite(entry.get(name, math.nan))])
        for name, label in LINES.items()
    ]
    if any(line.points for line in lines):
        chart = line_chart(f"Loss of {folder.resolve().name}", lines, "epochs", "nats per token")
        (folder / LOSS_CURVE).write_text(chart, encoding="utf-8")

"""Check, in a new process, that a reloaded model gives what the trained one gave.

`python -m t5fusion.demo.reload_check FOLDER` reads rows, their losses and their texts from FOLDER/probe.json. It exits
with 1 and names the differences, if there are any.
"""

import json
import sys
from pathlib import Path

import torch

from ..common.run_folder import load_trained
from ..finetune.evaluation import generate_texts, losses


def differences(folder: Path) -> list[str]:
    """Return a sentence for each loss and each text of the reloaded model that differs from the probe's."""
    probe = json.loads((folder / "probe.json").read_text())
    rows = [{**row, "lexical_embeds": torch.tensor(row["lexical_embeds"])} for row in probe["rows"]]
    model, processor = load_trained(folder)
    reloaded_losses = losses(model, rows, processor).sums.tolist()
    reloaded_texts = generate_texts(model, rows, processor)
    pairs = {"loss": (probe["losses"], reloaded_losses), "text": (probe["texts"], reloaded_texts)}
    return [
        f"{name} of row {index}: {now!r}, was {then!r}"
        for name, (before, after) in pairs.items()
        for index, (then, now) in enumerate(zip(before, after, strict=True))
        if then != now
    ]


if __name__ == "__main__":
    lines = differences(Path(sys.argv[1]))
    sys.exit("\n".join(lines) if lines else 0)

"""`python -m t5fusion.demo.reload_check FOLDER`: does a reloaded model give what the trained one gave?

FOLDER/probe.json holds rows, their losses and the texts written for them. Exit code 1, and what differs, if it does
not.
"""

import json
import sys
from pathlib import Path

import torch

from ..common.run_folder import load_trained
from ..finetune.evaluation import generate_texts, losses


def differences(folder: Path) -> list[str]:
    """What the reloaded model gives otherwise than the probe says, a sentence each."""
    probe = json.loads((folder / "probe.json").read_text())
    rows = [{**row, "lexical_embeds": torch.tensor(row["lexical_embeds"])} for row in probe["rows"]]
    model, processor = load_trained(folder)
    found = losses(model, rows, processor).sums.tolist()
    texts = generate_texts(model, rows, processor)
    pairs = {"loss": (probe["losses"], found), "text": (probe["texts"], texts)}
    return [
        f"{name} of row {index}: {now!r}, was {then!r}"
        for name, (before, after) in pairs.items()
        for index, (then, now) in enumerate(zip(before, after, strict=True))
        if then != now
    ]


if __name__ == "__main__":
    lines = differences(Path(sys.argv[1]))
    sys.exit("\n".join(lines) if lines else 0)

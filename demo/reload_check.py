"""Check, in a new process, that a reloaded model gives the losses and texts of the trained one.

`python -m t5fusion.demo.reload_check FOLDER` reads rows, losses and texts from FOLDER/probe.json. If the reloaded model
gives others, the program names the differences and exits with the code `DIFFERS`.
"""

import json
import sys
from pathlib import Path

import torch

from ..common.run_folder import load_trained
from ..finetune.evaluation import generate_texts, losses
from . import DIFFERS, PROBE


def differences(folder: Path) -> list[str]:
    """Return a line for each loss and each text in which the reloaded model differs from the trained one."""
    probe = json.loads((folder / PROBE).read_text())
    rows = [{**row, "lexical_embeds": torch.tensor(row["lexical_embeds"])} for row in probe["rows"]]
    model, processor = load_trained(folder)
    reloaded_losses = losses(model, rows, processor).sums.tolist()
    reloaded_texts = generate_texts(model, rows, processor)
    pairs = {"loss": (probe["losses"], reloaded_losses), "text": (probe["texts"], reloaded_texts)}
    return [
        f"{name} of row {index}: {reloaded!r}, was {trained!r}"
        for name, (of_trained, of_reloaded) in pairs.items()
        for index, (trained, reloaded) in enumerate(zip(of_trained, of_reloaded, strict=True))
        if trained != reloaded
    ]


if __name__ == "__main__":
    lines = differences(Path(sys.argv[1]))
    print("\n".join(lines), end="", file=sys.stderr)
    sys.exit(DIFFERS if lines else 0)

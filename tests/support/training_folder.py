"""A folder to train in: a base model, rows to train on and rows held out."""

import json
from collections.abc import Callable
from pathlib import Path

import torch


def fill_training_folder(folder: Path, save_plain_t5: Callable, target: Callable[[int, str], str], **config) -> Path:
    """Save the base model "base", 32 rows in rows.jsonl and 8 in held_out.jsonl. Return the folder.

    Each row has a name, a text (its target) and a vector of eight numbers.

    Args:
        folder: The folder.
        save_plain_t5: The fixture of this name.
        target: Makes a row's target from its number and the letter in its name.
        **config: Fields of the base model's config.
    """
    save_plain_t5(folder / "base", d_model=32, num_layers=1, **config)
    numbers = torch.Generator().manual_seed(0)
    names = [(a, b) for a in "abcdefgh" for b in "stuvw"]
    rows = [
        {"name": f"app_{a}{b}", "text": target(row, a), "vector": torch.randn(8, generator=numbers).tolist()}
        for row, (a, b) in enumerate(names)
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines[:32]))
    (folder / "held_out.jsonl").write_text("".join(lines[32:]))
    return folder

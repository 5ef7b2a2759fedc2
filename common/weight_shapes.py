"""The shapes of the weights in safetensors files, read from the files' headers. torch is not imported."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from ..naming_t5fusion import first_line
from .errors import unreadable_weights

LONGEST_HEADER = 100_000_000  # bytes; safetensors refuses a longer one


def shapes_in(file: Path) -> dict[str, list[int]]:
    """Return the shape of each weight in a safetensors file by its name; empty if there is no such file.

    Raises:
        ValueError: The file is damaged.
    """
    if not file.exists():
        return {}
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(LONGEST_HEADER, size):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        shapes = {name: entry["shape"] for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise unreadable_weights(file, first_line(error)) from error
    expected_size = 8 + length + end
    if size != expected_size:
        raise unreadable_weights(file, f"it has {size:,} bytes; expected {expected_size:,}")
    return shapes


def count_numbers(shapes: Mapping[str, list[int]]) -> int:
    """Return how many numbers weights of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes.values())


def count_model_weights(folder: Path) -> int | None:
    """Return how many numbers the model files of a folder hold; None if it has no model in safetensors.

    Raises:
        ValueError: A file is damaged.
    """
    files = sorted(folder.glob("model*.safetensors"))
    return sum(count_numbers(shapes_in(file)) for file in files) if files else None

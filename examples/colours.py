"""Rows for the examples: a colour as a vector of three numbers (red, green, blue), and its name."""

import numpy as np

COLOURS = {
    "black": (0, 0, 0), "white": (1, 1, 1), "red": (1, 0, 0), "green": (0, 0.6, 0), "blue": (0, 0, 1),
    "yellow": (1, 1, 0), "orange": (1, 0.6, 0), "purple": (0.5, 0, 0.5), "pink": (1, 0.6, 0.8),
    "brown": (0.5, 0.3, 0.1),
}  # fmt: skip


def draw(count: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Return random shades of the colours above, float32 (count, 3), and their names."""
    random = np.random.default_rng(seed)
    names = random.choice(list(COLOURS), count).tolist()
    colours = np.array([COLOURS[name] for name in names]) + random.normal(0, 0.05, (count, 3))
    return colours.astype(np.float32), names

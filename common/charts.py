"""Draw small charts as SVG: lines, and horizontal bars. Light mode, dark mode and screen readers can read them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .chart_templates import render

WIDTH = 680  # pixels, of every chart
LETTER_WIDTH = 7.0  # pixels, roughly, for a font of 13 pixels
COLOURS = ("first", "second", "third")  # of the lines of a chart, in their order
MOST_DOTS = 30  # points; a line with more of them gets a dot at its end only
LABEL_HEIGHT = 40  # pixels, of a line's label and the value below it
BAR_HEIGHT, BAR_PITCH = 24, 38  # pixels of a bar, and from the top of one bar to the top of the next


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, and its points (x, y) in the order of x."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """A bar of a chart."""

    label: str
    value: float
    note: str = ""  # a few words after the value
    stands_out: bool = False  # in colour; the other bars are grey


@dataclass(frozen=True)
class Axis:
    """A scale from the values `low` to `high` onto the pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return the pixel of a value, to one decimal."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks_at(self, values: Sequence[float]) -> list[dict]:
        """Return the place and the label of a tick at each value."""
        return [{"place": self.place(value), "label": f"{value:g}"} for value in values]


def line_chart(title: str, lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """Return a chart of lines as the text of an SVG file. Lines without points are left out.

    Args:
        title: The title of the chart.
        lines: The lines, each with a colour of its own.
        x_label, y_label: The names of the axes.

    Raises:
        ValueError: No line has a point.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        raise ValueError("no line has a point; expected one or more points to draw.")
    left, top, bottom = 70, 80, 300
    right = WIDTH - 40 - LETTER_WIDTH * max(len(line.label) for line in lines)
    values = [y for line in lines for _, y in line.points]
    y_marks = ticks(min(values), max(values))
    y_axis = Axis(y_marks[0], y_marks[-1], bottom, top)  # SVG counts pixels downwards.
    x_axis = Axis(*_x_range([x for line in lines for x, _ in line.points]), left, right)
    ends = ", ".join(f"{line.label} {line.points[0][1]:.3f} to {line.points[-1][1]:.3f}" for line in lines)
    return render(
        "lines",
        title=title,
        description=f"{y_label} over {x_label}: {ends}.",
        width=WIDTH,
        height=360,
        left=left,
        right=right,
        bottom=bottom,
        x_label=x_label,
        y_label=y_label,
        x_ticks=x_axis.ticks_at(_x_marks(x_axis)),
        y_ticks=y_axis.ticks_at(y_marks),
        lines=_draw_lines(lines, x_axis, y_axis),
    )


def _x_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the x axis. It begins at zero, unless a value is negative or all values are zero."""
    if min(values) >= 0 and max(values) > 0:
        return 0.0, max(values)
    return min(values), max(values) + 1


def _x_marks(axis: Axis) -> list[float]:
    """Return the round numbers within an x axis. If it reaches 1, they are whole numbers, as epochs are."""
    within = [x for x in ticks(axis.low, axis.high) if axis.low <= x <= axis.high]
    return within if axis.high < 1 else [x for x in within if x == int(x)]


def _draw_lines(lines: Sequence[Line], x_axis: Axis, y_axis: Axis) -> list[dict]:
    """Return what the template needs to draw each line: its path, dots, colour and label."""
    drawn = []
    for index, line in enumerate(lines):
        dots = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points]
        drawn.append(
            {
                "label": line.label,
                "colour": COLOURS[index % len(COLOURS)],
                "path": " ".join(f"{x},{y}" for x, y in dots),
                "dots": dots if len(dots) <= MOST_DOTS else dots[-1:],
                "label_y": dots[-1][1],
                "last": f"{line.points[-1][1]:.3f}",
            }
        )
    _spread_labels(drawn)
    return drawn


def _spread_labels(drawn: list[dict]) -> None:
    """Move the labels of lines that end close to each other apart, in place."""
    by_height = sorted(drawn, key=lambda line: line["label_y"])
    for above, below in pairwise(by_height):
        below["label_y"] = max(below["label_y"], above["label_y"] + LABEL_HEIGHT)


def bar_chart(title: str, bars: Sequence[Bar], unit: str) -> str:
    """Return a chart of horizontal bars, which begin at zero, as the text of an SVG file.

    Args:
        title: The title of the chart.
        bars: The bars, from top to bottom.
        unit: What the bars measure, such as "nats per token".

    Raises:
        ValueError: There is no bar, or a value is negative.
    """
    if not bars or any(bar.value < 0 for bar in bars):
        raise ValueError(f"the values are {[bar.value for bar in bars]}; expected one or more numbers from 0.")
    left = 40 + LETTER_WIDTH * max(len(bar.label) for bar in bars)
    right = WIDTH - 72 - LETTER_WIDTH * max(len(bar.note) for bar in bars)
    top = 74
    bottom = top + BAR_PITCH * len(bars)
    longest = max(bar.value for bar in bars) or 1.0
    axis = Axis(0, longest, left, right)
    drawn = [
        {
            "label": bar.label,
            "text": f"{bar.value:.3f}",
            "note": bar.note,
            "y": top + BAR_PITCH * index + (BAR_PITCH - BAR_HEIGHT) // 2,
            "length": round(axis.place(bar.value) - left, 1),
            "colour": "first" if bar.stands_out else "plain",
        }
        for index, bar in enumerate(bars)
    ]
    values = ", ".join(f"{bar.label} {bar.value:.3f}" for bar in bars)
    return render(
        "bars",
        title=title,
        description=f"{unit}: {values}.",
        width=WIDTH,
        height=bottom + 40,
        left=left,
        top=top,
        bottom=bottom,
        unit=unit,
        bar_height=BAR_HEIGHT,
        ticks=axis.ticks_at([x for x in ticks(0, longest) if x <= longest * 1.02]),
        bars=drawn,
    )


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers from `low` or below to `high` or above, in steps of 1, 2 or 5 times a power of ten.

    Args:
        wanted: About how many numbers to return.
    """
    width = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(width / wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if width / (power * factor) <= wanted)
    # Without the small number, a bound that exceeds a multiple of the step by rounding would give one more tick.
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(start, max(end, start + 1) + 1)]

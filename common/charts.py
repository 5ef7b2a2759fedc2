"""Small charts as SVG: lines, and horizontal bars. Readable in light and in dark mode, and by a screen reader.

The colours follow the reader's `prefers-color-scheme`, on a background of their own, so a chart may stand in any page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jinja2 import DictLoader, Environment
from markupsafe import Markup

WIDTH = 680  # of every chart, in pixels
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
LETTER = 7.0  # about the width of a letter of 13 pixels
LIGHT = {
    "background": "#ffffff", "border": "#d1d9e0", "ink": "#1f2328", "muted": "#59636e", "grid": "#e6eaef",
    "first": "#0969da", "second": "#bc4c00", "third": "#1a7f37", "plain": "#afb8c1",
}  # fmt: skip
DARK = {
    "background": "#0d1117", "border": "#3d444d", "ink": "#f0f6fc", "muted": "#9198a1", "grid": "#21262d",
    "first": "#4493f8", "second": "#f0883e", "third": "#3fb950", "plain": "#656c76",
}  # fmt: skip
COLOURS = ("first", "second", "third")  # of the lines of a chart, in their order


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


FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}" width="{{ width }}" height="{{ height }}"
  role="img" aria-labelledby="title description" font-size="13">
<title id="title">{{ title }}</title>
<desc id="description">{{ description }}</desc>
<style>
  svg { {% for name, value in light.items() %}--{{ name }}: {{ value }}; {% endfor %}font-family: {{ font }} }
  @media (prefers-color-scheme: dark) {
    svg { {% for name, value in dark.items() %}--{{ name }}: {{ value }}; {% endfor %}}
  }
  text { fill: var(--ink) }
  .muted { fill: var(--muted); font-size: 12px }
  .title { font-size: 15px; font-weight: 600 }
  .value { font-weight: 600; font-variant-numeric: tabular-nums }
  .grid { stroke: var(--grid) }
  .axis { stroke: var(--muted) }
</style>
<rect x="0.5" y="0.5" width="{{ width - 1 }}" height="{{ height - 1 }}" rx="8" fill="var(--background)"
  stroke="var(--border)"/>
<text class="title" x="24" y="34">{{ title }}</text>
{% block drawing %}{% endblock %}
</svg>
"""
LINES = """\
{% extends "frame" %}{% block drawing -%}
{% for tick in y_ticks -%}
<line class="grid" x1="{{ left }}" x2="{{ right }}" y1="{{ tick.place }}" y2="{{ tick.place }}"/>
<text class="muted" x="{{ left - 10 }}" y="{{ tick.place + 4 }}" text-anchor="end">{{ tick.label }}</text>
{% endfor -%}
{% for tick in x_ticks -%}
<line class="axis" x1="{{ tick.place }}" x2="{{ tick.place }}" y1="{{ bottom }}" y2="{{ bottom + 5 }}"/>
<text class="muted" x="{{ tick.place }}" y="{{ bottom + 20 }}" text-anchor="middle">{{ tick.label }}</text>
{% endfor -%}
<line class="axis" x1="{{ left }}" x2="{{ right }}" y1="{{ bottom }}" y2="{{ bottom }}"/>
<text class="muted" x="{{ (left + right) / 2 }}" y="{{ bottom + 42 }}" text-anchor="middle">{{ x_label }}</text>
<text class="muted" x="24" y="56">{{ y_label }}</text>
{% for line in lines -%}
<g fill="var(--{{ line.colour }})">
<polyline points="{{ line.path }}" fill="none" stroke="var(--{{ line.colour }})" stroke-width="2.5"
  stroke-linejoin="round" stroke-linecap="round"/>
{% for x, y in line.dots %}<circle cx="{{ x }}" cy="{{ y }}" r="3.5"/>{% endfor %}
<text x="{{ right + 14 }}" y="{{ line.label_y }}" style="fill: var(--{{ line.colour }})">{{ line.label }}</text>
<text class="value" x="{{ right + 14 }}" y="{{ line.label_y + 17 }}">{{ line.last }}</text>
</g>
{% endfor -%}
{% endblock %}"""
BARS = """\
{% extends "frame" %}{% block drawing -%}
<text class="muted" x="24" y="56">{{ unit }}</text>
{% for tick in ticks -%}
<line class="grid" x1="{{ tick.place }}" x2="{{ tick.place }}" y1="{{ top }}" y2="{{ bottom }}"/>
<text class="muted" x="{{ tick.place }}" y="{{ bottom + 20 }}" text-anchor="middle">{{ tick.label }}</text>
{% endfor -%}
{% for bar in bars -%}
<text x="{{ left - 12 }}" y="{{ bar.y + 17 }}" text-anchor="end">{{ bar.label }}</text>
<rect x="{{ left }}" y="{{ bar.y }}" width="{{ bar.length }}" height="24" rx="3" fill="var(--{{ bar.colour }})"/>
<text class="value" x="{{ left + bar.length + 8 }}" y="{{ bar.y + 17 }}">{{ bar.text }}\
{% if bar.note %}<tspan class="muted" dx="8" font-weight="400">{{ bar.note }}</tspan>{% endif %}</text>
{% endfor -%}
<line class="axis" x1="{{ left }}" x2="{{ left }}" y1="{{ top }}" y2="{{ bottom }}"/>
{% endblock %}"""
TEMPLATES = Environment(autoescape=True, loader=DictLoader({"frame": FRAME, "lines": LINES, "bars": BARS}))


def line_chart(title: str, lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """Return a chart of lines as the text of an SVG file. Lines without points are left out.

    Raises:
        ValueError: No line has a point.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        raise ValueError("no line has a point; a chart needs one.")
    values = [y for line in lines for _, y in line.points]
    steps = [x for line in lines for x, _ in line.points]
    left, top, bottom = 70, 80, 300
    right = WIDTH - 40 - LETTER * max(len(line.label) for line in lines)
    y_marks = ticks(min(values), max(values))
    low, high = y_marks[0], y_marks[-1]
    first, last = (0.0, max(steps)) if min(steps) >= 0 and max(steps) > 0 else (min(steps), max(steps) + 1)

    x_marks = [x for x in ticks(first, last) if first <= x <= last and (last < 1 or x == int(x))]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(left + (x - first) / (last - first) * (right - left), 1),
            round(bottom - (y - low) / (high - low) * (bottom - top), 1),
        )

    drawn = []
    for index, line in enumerate(lines):
        dots = [place(x, y) for x, y in line.points]
        drawn.append(
            {
                "label": line.label,
                "colour": COLOURS[index % len(COLOURS)],
                "path": " ".join(f"{x},{y}" for x, y in dots),
                "dots": dots if len(dots) <= 30 else dots[-1:],
                "label_y": dots[-1][1],
                "last": f"{line.points[-1][1]:.3f}",
            }
        )
    _spread(drawn, 40)
    ends = ", ".join(f"{line.label} {line.points[0][1]:.3f} to {line.points[-1][1]:.3f}" for line in lines)
    return _render(
        "lines",
        title,
        f"{y_label} over {x_label}: {ends}.",
        height=360,
        left=left,
        right=right,
        bottom=bottom,
        x_label=x_label,
        y_label=y_label,
        x_ticks=[{"place": place(x, low)[0], "label": f"{x:g}"} for x in x_marks],
        y_ticks=[{"place": place(first, y)[1], "label": f"{y:g}"} for y in y_marks],
        lines=drawn,
    )


def bar_chart(title: str, bars: Sequence[Bar], unit: str) -> str:
    """Return a chart of horizontal bars from zero as the text of an SVG file.

    Raises:
        ValueError: There is no bar, or a value is negative.
    """
    if not bars or any(bar.value < 0 for bar in bars):
        raise ValueError(f"the values are {[bar.value for bar in bars]}; expected one or more, from 0.")
    left = 40 + LETTER * max(len(bar.label) for bar in bars)
    right = WIDTH - 72 - LETTER * max(len(bar.note) for bar in bars)
    top, pitch = 74, 38
    bottom = top + pitch * len(bars)
    longest = max(bar.value for bar in bars) or 1.0
    scale = (right - left) / longest
    drawn = [
        {
            "label": bar.label,
            "text": f"{bar.value:.3f}",
            "note": bar.note,
            "y": top + pitch * index + (pitch - 24) // 2,
            "length": round(bar.value * scale, 1),
            "colour": "first" if bar.stands_out else "plain",
        }
        for index, bar in enumerate(bars)
    ]
    return _render(
        "bars",
        title,
        f"{unit}: " + ", ".join(f"{bar.label} {bar.value:.3f}" for bar in bars) + ".",
        height=bottom + 40,
        left=left,
        top=top,
        bottom=bottom,
        unit=unit,
        ticks=[
            {"place": round(left + x * scale, 1), "label": f"{x:g}"} for x in ticks(0, longest) if x <= longest * 1.02
        ],
        bars=drawn,
    )


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers, about as many as wanted, of which the first is at most `low` and the last at least `high`.

    Their step is 1, 2 or 5 times a power of ten.
    """
    width = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(width / wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if width / (power * factor) <= wanted)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(start, max(end, start + 1) + 1)]


def _spread(drawn: list[dict], distance: float) -> None:
    """Move the labels of lines that end close to each other apart."""
    by_height = sorted(drawn, key=lambda line: line["label_y"])
    for above, below in pairwise(by_height):
        below["label_y"] = max(below["label_y"], above["label_y"] + distance)


def _render(template: str, title: str, description: str, **values) -> str:
    return TEMPLATES.get_template(template).render(
        title=title, description=description, width=WIDTH, light=LIGHT, dark=DARK, font=Markup(FONT), **values
    )

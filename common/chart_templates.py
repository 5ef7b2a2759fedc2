"""The SVG templates of `charts.py`, their colours and their font.

A chart has a background of its own, and its colours follow the reader's `prefers-color-scheme`. So it fits any page.
"""

from jinja2 import DictLoader, Environment
from markupsafe import Markup

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
LIGHT = {
    "background": "#ffffff", "border": "#d1d9e0", "ink": "#1f2328", "muted": "#59636e", "grid": "#e6eaef",
    "first": "#0969da", "second": "#bc4c00", "third": "#1a7f37", "plain": "#afb8c1",
}  # fmt: skip
DARK = {
    "background": "#0d1117", "border": "#3d444d", "ink": "#f0f6fc", "muted": "#9198a1", "grid": "#21262d",
    "first": "#4493f8", "second": "#f0883e", "third": "#3fb950", "plain": "#656c76",
}  # fmt: skip

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
<rect x="{{ left }}" y="{{ bar.y }}" width="{{ bar.length }}" height="{{ bar_height }}" rx="3"
  fill="var(--{{ bar.colour }})"/>
<text class="value" x="{{ left + bar.length + 8 }}" y="{{ bar.y + 17 }}">{{ bar.text }}\
{% if bar.note %}<tspan class="muted" dx="8" font-weight="400">{{ bar.note }}</tspan>{% endif %}</text>
{% endfor -%}
<line class="axis" x1="{{ left }}" x2="{{ left }}" y1="{{ top }}" y2="{{ bottom }}"/>
{% endblock %}"""
TEMPLATES = Environment(autoescape=True, loader=DictLoader({"frame": FRAME, "lines": LINES, "bars": BARS}))


def render(template: str, **values) -> str:
    """Return the text of an SVG file.

    Args:
        template: "lines" or "bars".
        **values: The variables of the template and of the frame around it.
    """
    return TEMPLATES.get_template(template).render(light=LIGHT, dark=DARK, font=Markup(FONT), **values)

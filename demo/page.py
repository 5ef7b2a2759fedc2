"""Write the result of the demo as a picture, demo.svg, and as a page for a browser, demo.html, which works offline."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment

from ..common.chart_templates import DARK, LIGHT
from ..common.charts import Bar, bar_chart

PAGE, PICTURE = "demo.html", "demo.svg"


class Example(NamedTuple):
    """A held-out row, and what the models wrote for it."""

    name: str
    target: str
    untuned: str
    tuned: str
    swapped: str  # by the tuned model, with the vector of a different row
    swapped_with: str  # the name of that row


TEMPLATE = Environment(autoescape=True).from_string("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>t5fusion: what the vectors add</title>
<style>
  :root { {% for name, value in light.items() %}--{{ name }}: {{ value }}; {% endfor %}--panel: #f6f8fa; }
  @media (prefers-color-scheme: dark) {
    :root { {% for name, value in dark.items() %}--{{ name }}: {{ value }}; {% endfor %}--panel: #151b23; }
  }
  body { background: var(--background); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
    "Helvetica Neue", Arial, sans-serif; margin: 0 auto; max-width: 960px; padding: 32px 20px 64px; }
  h1 { font-size: 28px; line-height: 1.2; margin: 0 0 8px; }
  h2 { font-size: 20px; margin: 40px 0 4px; }
  p { color: var(--muted); margin: 0 0 16px; max-width: 70ch; }
  p strong { color: var(--ink); }
  code { font: 0.92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
  img { display: block; height: auto; max-width: 100%; width: 680px; }
  article { border: 1px solid var(--border); border-radius: 8px; margin: 16px 0; overflow: hidden; }
  header { background: var(--panel); border-bottom: 1px solid var(--border); padding: 12px 16px; }
  header code { font-weight: 600; }
  header q { color: var(--muted); margin-left: 8px; }
  dl { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); margin: 0;
    padding: 16px; }
  dt { color: var(--muted); font-size: 13px; }
  dd { margin: 2px 0 0; overflow-wrap: anywhere; }
  .tuned { border-left: 3px solid var(--first); padding-left: 12px; }
</style>
</head>
<body>
<h1>What the vectors add</h1>
<p>A T5 of {{ parameters }} parameters learned to describe Python code, on {{ "{:,}".format(rows) }} names of the
standard library. The text of a row is a name. Its vector is an embedding of {{ source }}. The model was measured on
{{ "{:,}".format(held_out_rows) }} names that it had not seen.</p>
<img src="data:image/svg+xml;base64,{{ picture }}" alt="{{ summary }}">
<h2>Another row&rsquo;s vector costs {{ "%+.3f"|format(worth.difference) }} nats per token</h2>
<p>The 95&nbsp;% confidence interval is {{ "%+.3f"|format(worth.low) }} to {{ "%+.3f"|format(worth.high) }}
{%- if worth.low > 0 %}: the model reads its vectors{% endif %}.</p>
<h2>{{ examples|length }} held-out names</h2>
<p>They are spread evenly over the held-out names, and nobody chose them. The last text of each was written with the
vector of a different name.</p>
{% for example in examples -%}
<article>
<header><code>{{ example.name }}</code> <q>{{ example.target }}</q></header>
<dl>
<div><dt>untuned</dt><dd>{{ example.untuned }}</dd></div>
<div class="tuned"><dt>tuned</dt><dd>{{ example.tuned }}</dd></div>
<div><dt>tuned, with the vector of <code>{{ example.swapped_with }}</code></dt><dd>{{ example.swapped }}</dd></div>
</dl>
</article>
{% endfor -%}
<p>The model is small, and its sentences show it. <code>t5fusion demo</code> makes such a page.</p>
</body>
</html>
""")


def save_page(
    folder: Path,
    losses: Mapping[str, float],
    worth: Mapping[str, float],
    examples: Sequence[Example],
    *,
    rows: int,
    held_out_rows: int,
    parameters: str,
    source: str,
) -> Path:
    """Write demo.svg and demo.html into a folder, and return the path of the page.

    Args:
        folder: The run folder.
        losses: Losses on the held-out rows, in nats per token: "untuned" for the untuned model; "true", "shuffled" and
            "none" for the tuned model with such vectors.
        worth: What another row's vectors cost, in nats per token: `difference`, and its 95 % interval `low` to `high`.
        examples: The rows to show.
        rows: Number of rows to train on.
        held_out_rows: Number of rows held out.
        parameters: Number of parameters of the T5 without the fusion layer, such as "6.5 M".
        source: What a vector is an embedding of, such as "the name itself".
    """
    picture = loss_chart(losses, held_out_rows)
    (folder / PICTURE).write_text(picture, encoding="utf-8")
    page = TEMPLATE.render(
        picture=b64encode(picture.encode()).decode(),
        summary=", ".join(f"{condition}: {loss:.3f}" for condition, loss in losses.items()),
        worth=worth,
        examples=examples,
        light=LIGHT,
        dark=DARK,
        rows=rows,
        held_out_rows=held_out_rows,
        parameters=parameters,
        source=source,
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def loss_chart(losses: Mapping[str, float], held_out_rows: int) -> str:
    """Return the chart of the losses as the text of an SVG file; see `save_page` for the arguments."""
    own = losses["true"]
    return bar_chart(
        f"What the vectors add: loss on {held_out_rows:,} held-out rows",
        [
            Bar("untuned", losses["untuned"], f"{losses['untuned'] - own:+.3f}"),
            Bar("tuned, other rows' vectors", losses["shuffled"], f"{losses['shuffled'] - own:+.3f}"),
            Bar("tuned, no vectors", losses["none"], f"{losses['none'] - own:+.3f}"),
            Bar("tuned, own vectors", own, stands_out=True),
        ],
        "nats per token; shorter is better",
    )

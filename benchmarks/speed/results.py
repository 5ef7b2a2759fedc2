"""Write measured results as a page."""

from pathlib import Path

HEAD = """# Speed, measured

`make bench` writes this page. It runs all ways to do the same work in one process, in turn, with the same number of
threads. Times are medians. [docs/speed.md](../docs/speed.md) explains what makes this package fast.

- *Peers* are other ways to do the work, and *ours* are the ways of this package. *The old pipeline* is the training
  that this package replaces: it pads each row to 128 tokens and computes in fp32. All ways to train use the same fused
  model, so "transformers" there means a step without the faster functions of this package.
- *Faster than X: 2* is half the time of X. *Of the fastest repeats* is a ratio of the shortest times, which other work
  disturbs least; the other columns show medians.
- The goal for loading is for `AutoModelForSeq2SeqLM`.
"""


def write_results(file: Path, subjects: dict[str, dict]) -> None:
    """Write the page.

    Args:
        file: The page.
        subjects: For each subject its `machine`, a sentence, and its `results`, as dicts of `measure.Result`.
    """
    parts = [HEAD]
    for title, subject in subjects.items():
        parts.append(f"## {title}\n\n{subject['machine']}\n")
        parts.append("| work | unit | peers | ours | ratios | goal | met |\n|---|---|---|---|---|---|---|")
        for row in subject["results"]:
            cells = [row["work"], row["unit"], *(numbers(row[name]) for name in ("peers", "ours", "ratios"))]
            parts.append(f"| {' | '.join([*cells, row['goal'], 'yes' if row['met'] else 'no'])} |")
        notes = [f"- {row['work']}: {row['notes']}" for row in subject["results"] if row["notes"]]
        parts.append("\n" + "\n".join(notes) + "\n" if notes else "")
    file.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def numbers(values: dict[str, float]) -> str:
    """Return named numbers with three digits, in the lines of one cell."""
    return "<br>".join(
        f"{name} {value:.3g}" if abs(value) < 1000 else f"{name} {value:,.0f}" for name, value in values.items()
    )

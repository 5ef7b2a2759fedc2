"""The demonstration: teach a small T5 to describe Python code by its name, and by a vector of what the code does.

The rows are the standard library of the interpreter that runs this; the vector is MiniLM's of a definition's body.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..common.base_models import make_processor
from ..common.losses import paired_bootstrap
from ..finetune.data import is_held_out
from ..finetune.evaluation import (
    SAMPLES,
    Vectors,
    change_vectors,
    evaluation_record,
    generate_texts,
    losses,
    save_evaluation,
)
from ..finetune.inputs import prepare
from ..finetune.metrics import text_scores
from ..finetune.model import build_model
from ..finetune.options import TrainingOptions
from ..finetune.training import train
from ..finetune.vector_cache import encode_cached
from ..processing_t5fusion import T5FusionProcessor
from .harvest import DocumentedName, harvest, standard_library

TEMPLATE = "describe: {text}"
BATCH, RATE = 16, 3e-3  # half the steps of `train`, and larger ones
DROPOUT = 0.0  # its random numbers take a fifth of the time, and two epochs do without
BODY_TOKENS = 64  # of a body, for its vector
GENERATED = 200  # held-out rows that are written out and scored
SHOWN = 8
PROBE, DEMO = "probe.json", "demo.json"
DECODING: dict[str, Any] = {"max_new_tokens": 32, "no_repeat_ngram_size": 3}  # a model this small falls into loops


def demo_rows(limit: int | None = None) -> tuple[list[DocumentedName], list[DocumentedName]]:
    """Documented names of the standard library to train on, and those held out: one name in ten, with all its rows."""
    rows = list({(row.name, row.description): row for row in harvest(standard_library())}.values())[:limit]
    return [r for r in rows if not is_held_out(r.name, 10)], [r for r in rows if is_held_out(r.name, 10)]


def demo_processor(base: str, lexical: str) -> T5FusionProcessor:
    source = {"body": "given", "name": "text"}[lexical]
    return make_processor(base, template=TEMPLATE, lexical_source=source, lexical_max_tokens=BODY_TOKENS)


def demo_inputs(rows: list[DocumentedName], processor: T5FusionProcessor) -> list[dict]:
    """The rows as the Trainer reads them, with a vector of the body or of the name."""
    names = [row.name for row in rows]
    lexical = [row.body for row in rows] if processor.lexical_source == "given" else names
    return prepare(names, [row.description for row in rows], encode_cached(lexical, processor), processor)


def demo(
    output: Path,
    lexical: str = "body",
    base: str = "tiny_t5",
    epochs: float = 2.0,
    limit: int | None = None,
    seed: int = 42,
    console: Console | None = None,
) -> dict:
    """Harvests, encodes, trains, evaluates, saves, reloads in a new process and compares. Returns the measurements.

    Raises:
        RuntimeError: the reloaded model does not give what the trained one gave.
        ValueError: `limit` leaves too few names to train on, or to compare vectors with.
    """
    console = console or Console()
    start = time.monotonic()
    training, held_out = demo_rows(limit)
    if len(training) < 2 or len(held_out) < 2:
        raise ValueError(
            f"the first {limit} names are {len(training)} to train on and {len(held_out)} held out; expected two or "
            "more of each. Give a --limit of 100 or more."
        )
    console.print(f"{len(training):,} names of the standard library to train on, {len(held_out):,} held out")
    processor = demo_processor(base, lexical)
    inputs = demo_inputs(training, processor)
    test = demo_inputs(held_out, processor)
    options = TrainingOptions(base_model=base, epochs=epochs, seed=seed, batch_size=BATCH, lr=RATE, dropout=DROPOUT)
    with torch.random.fork_rng():
        untuned = build_model(TrainingOptions(base_model=base, fusion_start="random", full=True), processor, inputs)
    model = train(inputs, test, processor, options, output, overwrite=True, mark=DEMO)
    results, evaluation = _compare(untuned, model, test, held_out, processor, console)
    save_evaluation(output, evaluation)
    _prove_reload(output, model, test[:SHOWN], processor)
    console.print(f"Saved in {output}; reloaded in a new process: the same losses, to the bit, and the same texts.")
    results["seconds"] = time.monotonic() - start
    (output / DEMO).write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"{results['seconds'] / 60:.1f} minutes. Next, with a file of your own:", highlight=False)
    next_command = "t5fusion train my.jsonl --text-column name --target-column description --output runs/mine"
    console.print(f"  {next_command}", highlight=False, soft_wrap=True)
    return results


def _compare(
    untuned, model, test: list[dict], held_out: list[DocumentedName], processor, console: Console
) -> tuple[dict, dict]:
    """Measures the model before and after, with and without its vectors, and prints the tables.

    Returns:
        The numbers, and the record of them for the model card.
    """
    before = losses(untuned, test, processor).mean
    kinds: tuple[Vectors, ...] = ("true", "shuffled", "none")
    measured = {kind: losses(model, change_vectors(test, kind), processor) for kind in kinds}
    chosen = range(0, len(test), max(1, len(test) // GENERATED))  # spread over the modules
    rows = [test[index] for index in chosen]
    references = [held_out[index].description for index in chosen]
    texts = {
        "untuned": generate_texts(untuned, rows, processor, **DECODING),
        "true": generate_texts(model, rows, processor, **DECODING),
        "none": generate_texts(model, change_vectors(rows, "none"), processor, **DECODING),
    }
    scores = {name: text_scores(made, references) for name, made in texts.items()}
    _show_scores(console, before, measured, scores)
    costs = {kind: paired_bootstrap(measured[kind], measured["true"]) for kind in ("shuffled", "none")}
    worth = costs["shuffled"]
    console.print(
        f"Another row's vector instead of its own costs {worth.difference:+.3f} nats per token "
        f"(95 % between {worth.low:+.3f} and {worth.high:+.3f})."
    )
    _show_examples(console, [held_out[index].name for index in chosen[:SHOWN]], references, texts)
    mean: dict[str, float] = {kind: found.mean for kind, found in measured.items()}
    record = evaluation_record(
        rows=len(test),
        scored_rows=len(rows),
        measures={name: {"loss": loss, **scores.get(name, {})} for name, loss in ({"untuned": before} | mean).items()},
        worth={kind: cost._asdict() for kind, cost in costs.items()},
        samples=[
            {"text": held_out[index].name, "reference": held_out[index].description, "output": text}
            for index, text in list(zip(chosen, texts["true"], strict=True))[:SAMPLES]
        ],
    )
    return {"untuned_loss": before, "loss": mean, "worth_of_vectors": worth._asdict(), "scores": scores}, record


def _show_scores(console: Console, before: float, measured: dict, scores: dict) -> None:
    table = Table("held-out rows", "loss", "ROUGE-1", "ROUGE-L", "chrF")
    rows = [
        ("untuned", before, "untuned"),
        ("tuned", measured["true"].mean, "true"),
        ("tuned, other rows' vectors", measured["shuffled"].mean, None),
        ("tuned, no vectors", measured["none"].mean, "none"),
    ]
    for label, loss, name in rows:
        score = [f"{scores[name][key]:.3f}" for key in ("rouge1", "rougeL", "chrf")] if name else [""] * 3
        table.add_row(label, f"{loss:.3f}", *score)
    console.print(table)


def _show_examples(console: Console, names: list[str], references: list[str], texts: dict[str, list[str]]) -> None:
    table = Table("name", "its docstring", "untuned", "tuned", "tuned, no vector", show_lines=True)
    for index, name in enumerate(names):
        made = [texts[kind][index] for kind in ("untuned", "true", "none")]
        table.add_row(name, references[index], *made)
    console.print(table)


def _prove_reload(output: Path, model, rows: list[dict], processor: T5FusionProcessor) -> None:
    """Reloads `output` in a process of its own and compares logits and texts with what the model in memory gives."""
    probe = {
        "rows": [{**row, "lexical_embeds": row["lexical_embeds"].tolist()} for row in rows],
        "losses": losses(model, rows, processor).sums.tolist(),
        "texts": generate_texts(model, rows, processor),
    }
    (output / PROBE).write_text(json.dumps(probe))
    ran = subprocess.run(
        [sys.executable, "-m", "t5fusion.demo.reload_check", str(output)], capture_output=True, text=True
    )
    if ran.returncode:
        raise RuntimeError(f"the model reloaded from {output} differs from the trained one: {ran.stderr.strip()}")

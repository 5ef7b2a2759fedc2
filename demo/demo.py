"""The demonstration: train a small T5 to describe Python code, given its name and a vector of what it does.

The rows are the documented names of the running interpreter's standard library. The vector is MiniLM's embedding of a
definition's code, or with `lexical="name"` of its name.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Column, Table

from ..common.base_models import make_processor
from ..common.losses import paired_bootstrap
from ..common.measures import SCORE_NAMES
from ..common.next_commands import command
from ..finetune.data import HELD_OUT_ONE_IN, is_held_out
from ..finetune.evaluation import (
    SAMPLES,
    VectorCondition,
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
from ..kinds_t5fusion import counted
from ..naming_t5fusion import NEWEST_EMBEDDED
from ..processing_t5fusion import T5FusionProcessor
from . import DEMO, DIFFERS, PROBE
from .harvest import DocumentedName, harvest, standard_library
from .page import Example, save_page

TEMPLATE = "describe: {text}"
BATCH_SIZE, LEARNING_RATE = 16, 3e-3  # Training takes half as many steps as with the defaults, and larger steps.
DROPOUT = 0.0  # Two epochs hardly need dropout, and its random numbers take a fifth of the time.
# In fp32, the losses are the same on machines with and without bf16, and matrices as small as these are faster.
PRECISION: Literal["fp32"] = "fp32"
PACKING = False  # Packing would change the last digits of the published losses.
BODY_TOKENS = 64  # tokens of a body that the encoder reads
SCORED_ROWS = 200  # About this many of the held-out rows get a generated text and scores.
TABLE_EXAMPLES, PAGE_EXAMPLES = 8, 5  # rows shown in the terminal and in demo.html
DECODING: dict[str, Any] = {"max_new_tokens": 32, "no_repeat_ngram_size": 3}  # Small models tend to repeat themselves.


def demo_rows(limit: int | None = None) -> tuple[list[DocumentedName], list[DocumentedName]]:
    """Return documented names of the standard library: those to train on, and those held out.

    One name in ten is held out, with all its rows.
    """
    rows = list({(row.name, row.description): row for row in harvest(standard_library())}.values())[:limit]
    training = [row for row in rows if not is_held_out(row.name, HELD_OUT_ONE_IN)]
    return training, [row for row in rows if is_held_out(row.name, HELD_OUT_ONE_IN)]


def demo_processor(base_model: str, lexical: str) -> T5FusionProcessor:
    """Return the demo's processor.

    Args:
        base_model: Hub id, folder, or "tiny_t5_v2".
        lexical: What the vector is made from: "body", the code of a definition, or "name".
    """
    source = {"body": "given", "name": "text"}[lexical]
    return make_processor(base_model, template=TEMPLATE, lexical_source=source, lexical_max_tokens=BODY_TOKENS)


def demo_inputs(rows: list[DocumentedName], processor: T5FusionProcessor) -> list[dict]:
    """Return the rows as the Trainer reads them, with vectors of the bodies or the names, as the processor says."""
    names = [row.name for row in rows]
    lexical = [row.body for row in rows] if processor.lexical_source == "given" else names
    return prepare(names, [row.description for row in rows], encode_cached(lexical, processor), processor)


def demo(
    output: Path,
    lexical: str = "body",
    base_model: str = NEWEST_EMBEDDED,
    epochs: float = 2.0,
    limit: int | None = None,
    seed: int = 42,
    console: Console | None = None,
) -> dict:
    """Harvest rows, train and evaluate a model, save it, and check that a new process reloads the same model.

    Args:
        output: The run folder.
        lexical: What the vector is made from, "body" or "name".
        base_model: Hub id or folder of a T5, or the name of an embedded base model.
        epochs: Passes over the rows.
        limit: Use at most this many names, the first ones; None for all.
        seed: Seed of the training.
        console: Prints the tables and messages; None for standard output.

    Returns:
        The measurements, which are also saved in `output`.

    Raises:
        RuntimeError: The reloaded model gives different losses or texts than the trained one, or could not be checked.
        ValueError: `limit` leaves too few names to train on, or to compare vectors with.
    """
    console = console or Console()
    start = time.monotonic()
    training, held_out = _read_rows(limit, console)
    processor = demo_processor(base_model, lexical)
    inputs = demo_inputs(training, processor)
    test = demo_inputs(held_out, processor)
    options = _training_options(base_model, epochs, seed)
    with torch.random.fork_rng():  # Building the untuned model must not change the random numbers of the training.
        untuned_options = TrainingOptions(base_model=base_model, fusion_start="random", full=True)
        untuned = build_model(untuned_options, processor, inputs)
    model = train(inputs, test, processor, options, output, overwrite=True, mark=DEMO)
    results, evaluation = _compare(untuned, model, test, held_out, processor, console)
    save_evaluation(output, evaluation)
    examples = _examples(untuned, model, test, held_out, processor)
    page = save_page(
        output,
        {"untuned": results["untuned_loss"], **results["loss"]},
        results["worth_of_vectors"],
        examples,
        rows=len(training),
        held_out_rows=len(held_out),
        parameters=_parameters_of_base(untuned),
        source={"body": "the code beneath that name", "name": "the name itself"}[lexical],
    )
    _check_reload(output, model, test[:TABLE_EXAMPLES], processor)
    console.print(
        f"Saved in {output}. A new process reloaded it, with the same losses, bit for bit, and the same texts."
    )
    console.print(f"A picture of the result, for a browser: {page}", highlight=False, soft_wrap=True)
    results["examples"] = [example._asdict() for example in examples]
    results["seconds"] = time.monotonic() - start
    (output / DEMO).write_text(json.dumps(results, indent=1) + "\n")
    _show_next_commands(console, output, results["seconds"])
    return results


def _parameters_of_base(fused_model: torch.nn.Module) -> str:
    """Return the number of parameters of the T5 in a fused model, such as "6.5 M"."""
    sizes = (each.numel() for name, each in fused_model.named_parameters() if ".fusion." not in name)
    return f"{sum(sizes) / 1e6:.1f} M"


def _read_rows(limit: int | None, console: Console) -> tuple[list[DocumentedName], list[DocumentedName]]:
    """Return the rows of `demo_rows`, and print how many they are.

    Raises:
        ValueError: They are too few.
    """
    console.print("Reading the names and docstrings of the standard library")
    training, held_out = demo_rows(limit)
    if len(training) < 2 or len(held_out) < 2:
        raise _too_few_names(limit, len(training), len(held_out))
    console.print(f"{len(training):,} names of the standard library to train on, {len(held_out):,} held out")
    return training, held_out


def _too_few_names(limit: int | None, training: int, held_out: int) -> ValueError:
    """Return the error for too few names, because of the limit or, without one, of the Python that runs."""
    expected = "expected two or more of each"
    if limit is None:
        return ValueError(
            f"the standard library in {standard_library()} has {counted(training, 'documented name')} to train on and "
            f"{held_out} held out; {expected}. Use a Python whose library is there as .py files."
        )
    return ValueError(
        f"--limit {limit} gives {counted(training, 'name')} to train on and {held_out} held out; {expected}. Pass a "
        "--limit of 100 or more."
    )


def _training_options(base_model: str, epochs: float, seed: int) -> TrainingOptions:
    return TrainingOptions(
        base_model=base_model,
        epochs=epochs,
        seed=seed,
        batch_size=BATCH_SIZE,
        lr=LEARNING_RATE,
        dropout=DROPOUT,
        precision=PRECISION,
        packing=PACKING,
    )


def _show_next_commands(console: Console, output: Path, seconds: float) -> None:
    """Print how long the demo took, and the commands to type next."""
    console.print(f"{seconds / 60:.1f} minutes. Next, to share it, or to train on a file of your own:")
    columns = ("--text-column", "name", "--target-column", "description")
    for line in (
        command("export", output, "bundles/demo", "--kind", "standalone"),
        command("train", "my.jsonl", *columns, "--output", "runs/mine"),
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def _compare(
    untuned, model, test: list[dict], held_out: list[DocumentedName], processor, console: Console
) -> tuple[dict, dict]:
    """Measure the model before and after training, with and without its vectors, and print the tables.

    Args:
        untuned: The model before training.
        model: The model after training.
        test: The held-out rows as the Trainer reads them.
        held_out: The same rows as they were harvested.

    Returns:
        The measurements for demo.json, and the same as a record for the model card.
    """
    untuned_loss = losses(untuned, test, processor).mean
    conditions: tuple[VectorCondition, ...] = ("true", "shuffled", "none")
    measured = {condition: losses(model, change_vectors(test, condition), processor) for condition in conditions}
    costs = {condition: paired_bootstrap(measured[condition], measured["true"]) for condition in ("shuffled", "none")}
    chosen = range(0, len(test), max(1, len(test) // SCORED_ROWS))  # These rows are spread over all modules.
    names = [held_out[index].name for index in chosen]
    references = [held_out[index].description for index in chosen]
    texts = _generate(untuned, model, [test[index] for index in chosen], processor)
    scores = {condition: text_scores(outputs, references) for condition, outputs in texts.items()}
    _show_scores(console, untuned_loss, measured, scores)
    worth = costs["shuffled"]
    console.print(
        f"Another row's vector instead of its own costs {worth.difference:+.3f} nats per token "
        f"(95 % between {worth.low:+.3f} and {worth.high:+.3f})."
    )
    _show_examples(console, names[:TABLE_EXAMPLES], references, texts)
    tuned_losses: dict[str, float] = {condition: row_losses.mean for condition, row_losses in measured.items()}
    all_losses = {"untuned": untuned_loss} | tuned_losses
    record = evaluation_record(
        rows=len(test),
        scored_rows=len(chosen),
        measures={condition: {"loss": loss, **scores.get(condition, {})} for condition, loss in all_losses.items()},
        worth={condition: cost._asdict() for condition, cost in costs.items()},
        samples=[
            {"text": name, "reference": reference, "output": text}
            for name, reference, text in list(zip(names, references, texts["true"], strict=True))[:SAMPLES]
        ],
    )
    results = {
        "untuned_loss": untuned_loss,
        "loss": tuned_losses,
        "worth_of_vectors": worth._asdict(),
        "scores": scores,
    }
    return results, record


def _examples(
    untuned, model, test: list[dict], held_out: list[DocumentedName], processor: T5FusionProcessor
) -> list[Example]:
    """Return rows that are spread evenly over the held-out ones, with the texts that the models generate for them."""
    count = min(PAGE_EXAMPLES, len(test))
    chosen = [index * len(test) // count for index in range(count)]
    others = chosen[1:] + chosen[:1]
    rows = [test[index] for index in chosen]
    swapped = [
        test[own] | {"lexical_embeds": test[other]["lexical_embeds"]} for own, other in zip(chosen, others, strict=True)
    ]
    before = generate_texts(untuned, rows, processor, **DECODING)
    after = generate_texts(model, rows, processor, **DECODING)
    mixed_up = generate_texts(model, swapped, processor, **DECODING)
    return [
        Example(
            held_out[own].name,
            held_out[own].description,
            before[number],
            after[number],
            mixed_up[number],
            swapped_with=held_out[other].name,
        )
        for number, (own, other) in enumerate(zip(chosen, others, strict=True))
    ]


def _generate(untuned, model, rows: list[dict], processor) -> dict[str, list[str]]:
    """Return the texts of the untuned model, and of the trained one with its true vectors and with none."""
    return {
        "untuned": generate_texts(untuned, rows, processor, **DECODING),
        "true": generate_texts(model, rows, processor, **DECODING),
        "none": generate_texts(model, change_vectors(rows, "none"), processor, **DECODING),
    }


def _show_scores(console: Console, untuned_loss: float, measured: dict, scores: dict) -> None:
    """Print a table of losses, in nats per token, and scores."""
    keys = ("rouge1", "rougeL", "chrf")
    table = Table("held-out rows", "loss", *(SCORE_NAMES[key] for key in keys))
    rows = [
        ("untuned", untuned_loss, "untuned"),
        ("tuned", measured["true"].mean, "true"),
        ("tuned, other rows' vectors", measured["shuffled"].mean, None),
        ("tuned, no vectors", measured["none"].mean, "none"),
    ]
    for label, loss, name in rows:
        score = [f"{scores[name][key]:.3f}" for key in keys] if name else [""] * 3
        table.add_row(label, f"{loss:.3f}", *score)
    console.print(table)


def _show_examples(console: Console, names: list[str], references: list[str], texts: dict[str, list[str]]) -> None:
    """Print names with their docstrings and the texts of the models. A wide table would cut them in a terminal."""
    table = Table(Column("held-out name", no_wrap=True), Column("", overflow="fold"))
    labels = {"untuned": "untuned", "true": "tuned", "none": "tuned, no vector"}
    for index, name in enumerate(names):
        table.add_row("name", name)
        table.add_row("its docstring", references[index])
        for condition, label in labels.items():
            table.add_row(label, texts[condition][index], end_section=condition == "none")
    console.print(table)


def _check_reload(output: Path, model, rows: list[dict], processor: T5FusionProcessor) -> None:
    """Check that `output`, reloaded in a new process, gives the losses and texts of the model in memory.

    Raises:
        RuntimeError: The reloaded model gives different ones, or the check itself failed.
    """
    probe = {
        "rows": [{**row, "lexical_embeds": row["lexical_embeds"].tolist()} for row in rows],
        "losses": losses(model, rows, processor).sums.tolist(),
        "texts": generate_texts(model, rows, processor),
    }
    (output / PROBE).write_text(json.dumps(probe))
    check = subprocess.run(
        [sys.executable, "-m", "t5fusion.demo.reload_check", str(output)], capture_output=True, text=True
    )
    if check.returncode == DIFFERS:
        raise RuntimeError(f"the model reloaded from {output} differs from the trained one: {check.stderr.strip()}")
    if check.returncode:
        raise RuntimeError(f"the check of {output} failed ({check.returncode}): {check.stderr.strip()}")

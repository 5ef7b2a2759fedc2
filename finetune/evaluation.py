"""Measure how well a model generates: its loss and scores, with true vectors, with other rows' vectors, with none."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from ..common.console import say
from ..common.losses import Losses, losses_of, paired_bootstrap
from ..common.progress import Progress
from ..common.run_files import EVALUATION
from ..common.writing import replace_text
from ..engines.names import REFERENCE
from ..kinds_t5fusion import counted
from ..processing_t5fusion import T5FusionProcessor
from .generation import Advance, generate_texts
from .inputs import batches
from .metrics import measures_of
from .parallel import shared
from .streaming import spread

VectorCondition = Literal["true", "shuffled", "none"]  # which vectors the rows have while they are evaluated
SAMPLES = 3  # number of generated texts that an evaluation keeps as samples


def change_vectors(rows: list[dict], vectors: VectorCondition, seed: int = 0) -> list[dict]:
    """Return rows with their own vectors ("true"), with other rows' vectors ("shuffled"), or without vectors ("none").

    Args:
        rows: Rows of `inputs.prepare`. They are not changed.
        vectors: The condition.
        seed: Seed that shuffles the vectors.

    Raises:
        ValueError: `vectors` is "shuffled", and fewer than two rows have a vector.
    """
    if vectors == "true":
        return rows
    if vectors == "none":
        return [{name: value for name, value in row.items() if name != "lexical_embeds"} for row in rows]
    with_vector = [index for index, row in enumerate(rows) if row.get("lexical_embeds") is not None]
    if len(with_vector) < 2:
        number = f"{len(with_vector)} of {counted(len(rows), 'row')}"
        have = "has a vector" if len(with_vector) == 1 else "have vectors"
        raise ValueError(f"{number} {have}; expected two or more to shuffle.")
    # In a rotation of a random order, no row keeps its own vector.
    order = np.random.default_rng(seed).permutation(with_vector)
    changed = list(rows)
    for own, other in zip(order, np.roll(order, 1), strict=True):
        changed[own] = {**rows[own], "lexical_embeds": rows[other]["lexical_embeds"]}
    return changed


@torch.inference_mode()
def losses(model, rows: list[dict], processor: T5FusionProcessor, batch_size: int = 64) -> Losses:
    """Return the loss of each row.

    Args:
        model: A fused model, with or without an adapter.
        rows: Rows of `inputs.prepare`, with labels.
        processor: The processor of the rows.
        batch_size: Rows in a batch.
    """
    model.eval()
    sums, tokens = np.zeros(len(rows)), np.zeros(len(rows))
    for indices, batch in batches(rows, processor, batch_size, "labels"):
        sums[indices], tokens[indices] = losses_of(model, batch.to(model.device))
    return Losses(sums, tokens)


def evaluate(
    model,
    processor: T5FusionProcessor,
    rows: list[dict],
    references: Sequence[str],
    vectors: VectorCondition = "true",
    batch_size: int = 64,
    **options,
) -> tuple[dict[str, float], Losses]:
    """Return all measures of a model on rows, and the losses of the rows, for `paired_bootstrap`.

    Args:
        model: A fused model, with or without an adapter.
        processor: The processor of the rows.
        rows: Rows of `inputs.prepare`, with labels.
        references: The targets as texts, uncut, one per row.
        vectors: The condition to evaluate in (see `change_vectors`).
        batch_size: Rows in a batch.
        **options: Arguments of `model.generate`.

    Returns:
        Two values. The first is the measures: `rows`, `loss` (nats per token of the labels, the same for all batch
        sizes), and the scores of `metrics.text_scores` (from 0 to 1). The second is the losses of the rows.

    Raises:
        ValueError: `vectors` is "shuffled", and fewer than two rows have a vector.
    """
    row_losses, texts = _losses_and_texts(model, processor, rows, vectors, batch_size, **options)
    return measures_of(row_losses, texts, references), row_losses


def _losses_and_texts(
    model,
    processor,
    rows: list[dict],
    vectors: VectorCondition,
    batch_size: int = 64,
    advance: Advance | None = None,
    seed: int = 0,
    generator: Any = None,
    **options,
) -> tuple[Losses, list[str]]:
    """Return the losses and the generated texts of rows. `generate_texts` gets `advance` and `options`."""
    changed = change_vectors(rows, vectors, seed)
    row_losses = losses(model, changed, processor, batch_size)
    texts = generate_texts(generator or model, changed, processor, batch_size, advance, **options)
    return row_losses, texts


def evaluate_large(
    model,
    processor: T5FusionProcessor,
    row_count: int,
    make_inputs: Callable[[np.ndarray, Counter], list[dict]],
    conditions: Sequence[VectorCondition],
    progress: Progress | None = None,
    has_vector: np.ndarray | None = None,
    seed: int = 0,
    generator: Any = None,
) -> tuple[dict[VectorCondition, tuple[Losses, list[str]]], Counter[str]]:
    """Return the losses and generated texts of a set of any size, with some hundreds of its rows in memory at a time.

    All processes must call it. They share the work, and each gets all results. The set is divided into parts, each
    drawn at random from all rows, and vectors are shuffled within a part.

    Args:
        model: A fused model, with or without an adapter.
        processor: The processor of the rows.
        row_count: Number of rows in the set.
        make_inputs: Takes row numbers and a counter. Returns the inputs of these rows, with labels, and updates the
            counter as `inputs.prepare` does.
        conditions: The conditions to evaluate in.
        progress: Counts each row once for each of `conditions`; None to show nothing.
        has_vector: bool (rows,), which rows have a vector; None if all have one.
        seed: Seed that shuffles the vectors.
        generator: What generates the texts, with transformers' `generate`; None for the model.

    Returns:
        Losses and texts in the order of the rows, by condition; and the counts.
    """
    progress = progress or Progress("Evaluating", None)
    shown = 0  # number of rows of the current part that `progress` has counted

    def advance(count: int) -> None:
        nonlocal shown
        shown += count
        progress.advance(count)

    def work(part: np.ndarray) -> tuple[dict[VectorCondition, tuple[Losses, list[str]]], Counter[str]]:
        counts: Counter[str] = Counter()
        inputs = make_inputs(part, counts)
        # A part without vectors has nothing to shuffle. (If the whole set has too few, `change_vectors` raises.)
        lacks_vectors = has_vector is not None and has_vector.sum() > 1 and not has_vector[part].any()
        return {
            condition: _losses_and_texts(
                model, processor, inputs, "true" if lacks_vectors else condition,
                advance=advance, seed=seed, generator=generator,
            )
            for condition in conditions
        }, counts  # fmt: skip

    total_counts: Counter[str] = Counter()
    results = {
        condition: (Losses(np.zeros(row_count), np.zeros(row_count)), [""] * row_count) for condition in conditions
    }
    for part, (part_results, counts) in shared(spread(row_count, has_vector), work):
        total_counts.update(counts)
        progress.advance(len(part) * len(conditions) - shown)
        shown = 0
        for condition, (part_losses, part_texts) in part_results.items():
            all_losses, all_texts = results[condition]
            all_losses.sums[part], all_losses.tokens[part] = part_losses
            for row, text in zip(part, part_texts, strict=True):
                all_texts[row] = text
    return results, total_counts


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Args:
        measures: `rows`, `loss` (nats per token) and the scores of `metrics.text_scores` (from 0 to 1), by condition:
            "true" for the rows' own vectors, "shuffled" for other rows' vectors, "none" for no vectors.
        worth_of_vectors: How much larger the loss is with "shuffled" vectors and with "none" than with "true" ones:
            `difference`, and the bounds `low` and `high` of its 95 % confidence interval, in nats per token. Empty
            unless the rows were evaluated in all conditions.
        samples: `text`, `reference` and `output` of the first rows, with the true vectors.
        is_saved: Whether the evaluation was saved in the folder of the model (see `save_evaluation`).
        eval_loss: Loss on the rows that the training held out, as the Trainer measures it: the mean over rows of the
            mean loss of their batch, in nats per token. None for other rows.
        engine: The engine that generated the texts.
    """

    measures: dict[str, dict[str, float]]
    worth_of_vectors: dict[str, dict[str, float]]
    samples: list[dict[str, str]]
    is_saved: bool = False
    eval_loss: float | None = None
    engine: str = REFERENCE

    def record(self, **source: Any) -> dict:
        """Return what evaluation.json holds.

        Args:
            **source: `data` and `split`, if the rows are a data set on the Hub.
        """
        rows = int(next(iter(self.measures.values()))["rows"])
        measures = {
            condition: {name: value for name, value in values.items() if name != "rows"}
            for condition, values in self.measures.items()
        }
        record = evaluation_record(rows, rows, measures, self.worth_of_vectors, self.samples, **source)
        return record | {"engine": self.engine}


def vector_conditions(vectors: VectorCondition | Literal["all"]) -> list[VectorCondition]:
    """Return the conditions that an argument `vectors` names: one, or "all"; ValueError for any other word."""
    if vectors not in (*get_args(VectorCondition), "all"):
        raise ValueError(f"`vectors` is {vectors!r}; expected one of {', '.join(get_args(VectorCondition))}, all.")
    return [condition for condition in get_args(VectorCondition) if vectors in (condition, "all")]


def summarize(
    results: dict[VectorCondition, tuple[Losses, list[str]]], texts: Sequence[str], references: Sequence[str]
) -> Evaluation:
    """Return the evaluation that the losses and texts of `evaluate_large` give.

    Args:
        results: Losses and generated texts of all rows, by condition.
        texts, references: The input and the target of each row.
    """
    worth: dict[str, dict[str, float]] = {
        condition: paired_bootstrap(row_losses, results["true"][0])._asdict()
        for condition, (row_losses, _) in results.items()
        if len(results) > 1 and condition != "true"
    }
    outputs = results["true"][1][:SAMPLES] if "true" in results else []
    triples = zip(texts, references, outputs, strict=False)  # Only the first rows have an output here.
    return Evaluation(
        measures={condition: measures_of(*result, references) for condition, result in results.items()},
        worth_of_vectors=worth,
        samples=[dict(zip(("text", "reference", "output"), triple, strict=True)) for triple in triples],
    )


def evaluation_record(
    rows: int,
    scored_rows: int,
    measures: dict[str, dict[str, float]],
    worth: dict[str, dict[str, float]],
    samples: list[dict[str, str]],
    **source: Any,
) -> dict:
    """Return what `save_evaluation` writes.

    Args:
        rows: Number of rows whose losses were measured.
        scored_rows: Number of rows for which texts were generated and scored.
        measures: `loss`, and the scores of `metrics.text_scores` if they were measured: by condition ("true",
            "shuffled" or "none"), and as "untuned" for the untuned model.
        worth: See `Evaluation.worth_of_vectors`.
        samples: See `Evaluation.samples`.
        **source: `data` and `split`, if the rows are a data set on the Hub.
    """
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    counts = {"rows": rows, "scored_rows": scored_rows}
    return source | counts | {"measures": measures, "worth_of_vectors": worth, "samples": samples, "versions": versions}


def save_evaluation(folder: Path, record: dict) -> bool:
    """Write `record` to evaluation.json in a folder, unless that file covers more rows or more conditions.

    A damaged file is replaced, because the new result may have taken hours. For the same reason, a full disk is not an
    error.

    Returns:
        Whether it was written. If not, a message has said why.
    """
    file = folder / EVALUATION
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        # The demonstration also measures the untuned model, which `evaluate` never does.
        conditions, earlier_conditions = (
            [condition for condition in get_args(VectorCondition) if condition in each["measures"]]
            for each in (record, earlier)
        )
        if earlier["rows"] > record["rows"] or len(earlier_conditions) > len(conditions):
            say(
                f"Not saved: {file} covers {counted(earlier['rows'], 'row')} with --vectors "
                f"{', '.join(earlier_conditions)}, which is more than this evaluation. To replace it, delete it first."
            )
            return False
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        pass
    try:
        replace_text(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        say(f"Not saved: {error}")
        return False
    return True

"""How well a model describes: loss, ROUGE and chrF, with the true vectors, with other rows' vectors, with none."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..common.losses import Losses, losses_of
from ..common.run_folder import EVALUATION
from ..processing_t5fusion import T5FusionProcessor
from .generation import generate_texts
from .inputs import batches
from .metrics import measures_of
from .parallel import shared
from .streaming import spread

Vectors = Literal["true", "shuffled", "none"]
SAMPLES = 3  # texts that are kept with the measures


def change_vectors(rows: list[dict], vectors: Vectors, seed: int = 0) -> list[dict]:
    """The rows with their own vectors, each with another row's, or without.

    Raises:
        ValueError: to shuffle them takes two rows with vectors, and there are fewer.
    """
    if vectors == "true":
        return rows
    if vectors == "none":
        return [{name: value for name, value in row.items() if name != "lexical_embeds"} for row in rows]
    having = [index for index, row in enumerate(rows) if row.get("lexical_embeds") is not None]
    if len(having) < 2:
        raise ValueError(f"{len(having)} of {len(rows)} rows have vectors; to shuffle them takes two or more.")
    # a rotation of a random order: nobody keeps their own
    order = np.random.default_rng(seed).permutation(having)
    changed = list(rows)
    for own, other in zip(order, np.roll(order, 1), strict=True):
        changed[own] = {**rows[own], "lexical_embeds": rows[other]["lexical_embeds"]}
    return changed


@torch.inference_mode()
def losses(model, rows: list[dict], processor: T5FusionProcessor, batch_size: int = 64, progress=None) -> Losses:
    """The loss of each row (as `prepare` makes them, with labels)."""
    model.eval()
    sums, tokens = np.zeros(len(rows)), np.zeros(len(rows))
    for indices, batch in batches(rows, processor, batch_size, "labels", progress):
        sums[indices], tokens[indices] = losses_of(model, batch.to(model.device))
    return Losses(sums, tokens)


def evaluate(
    model,
    processor: T5FusionProcessor,
    rows: list[dict],
    references: Sequence[str],
    vectors: Vectors = "true",
    batch_size: int = 64,
    progress: bool = False,
    **options,
) -> tuple[dict[str, float], Losses]:
    """All measures of a model on rows (as `data.prepare` makes them, with labels).

    Args:
        references: the targets as texts, uncut, one per row.
        vectors: the rows' own, other rows', or none.
        **options: of `model.generate`.

    Returns:
        `rows`, `loss` (nats per token of the labels, exact whatever the batches), `rouge1`, `rouge2`, `rougeL`, `chrf`;
        and the losses of the rows, for `paired_bootstrap`.
    """
    found, texts = _losses_and_texts(model, processor, rows, vectors, batch_size, progress, **options)
    return measures_of(found, texts, references), found


def _losses_and_texts(
    model, processor, rows: list[dict], vectors: Vectors, batch_size: int = 64, progress: bool = False, **options
) -> tuple[Losses, list[str]]:
    changed = change_vectors(rows, vectors)
    found = losses(model, changed, processor, batch_size, "Loss" if progress else None)
    return found, generate_texts(model, changed, processor, batch_size, "Writing" if progress else None, **options)


def evaluate_large(
    model,
    processor: T5FusionProcessor,
    rows: int,
    inputs: Callable[[np.ndarray, Counter], list[dict]],
    kinds: Sequence[Vectors],
    progress: bool = False,
    having: np.ndarray | None = None,
) -> tuple[dict[Vectors, tuple[Losses, list[str]]], Counter[str]]:
    """Losses and texts of a set of any size; at no time more than some hundreds of its rows are inputs in memory.

    All processes must call it; they share the work, and each gets all that comes of it. Vectors are shuffled among the
    rows of a part of the set, which are drawn from all of it.

    Args:
        rows: their number.
        inputs: the inputs, with labels, of the rows of these numbers; it counts, as `data.prepare` does.
        kinds: of vectors.
        having: bool (rows,), which rows have a vector; None for all.

    Returns:
        By kind of vectors the losses and the texts, in the order of rows; and what `inputs` counted.
    """

    def work(part: np.ndarray) -> tuple[dict[Vectors, tuple[Losses, list[str]]], Counter[str]]:
        counted: Counter[str] = Counter()
        made = inputs(part, counted)
        bare = having is not None and having.sum() > 1 and not having[part].any()  # of them there is nothing to shuffle
        changes: dict[Vectors, Vectors] = {kind: "true" if bare else kind for kind in kinds}
        return {
            kind: _losses_and_texts(model, processor, made, change, progress=progress)
            for kind, change in changes.items()
        }, counted

    counted: Counter[str] = Counter()
    every = {kind: (Losses(np.zeros(rows), np.zeros(rows)), [""] * rows) for kind in kinds}
    for part, (found, counts) in shared(spread(rows, having), work):
        counted.update(counts)
        for kind, (of_part, texts) in found.items():
            whole, written = every[kind]
            whole.sums[part], whole.tokens[part] = of_part
            for row, text in zip(part, texts, strict=True):
                written[row] = text
    return every, counted


def evaluation_record(
    rows: int,
    scored_rows: int,
    measures: dict[str, dict[str, float]],
    worth: dict[str, dict[str, float]],
    samples: list[dict[str, str]],
    **known: Any,
) -> dict:
    """What `save_evaluation` writes.

    Args:
        rows: of which the losses are.
        scored_rows: those of them of which ROUGE and chrF are.
        measures: by what the model was given ("true", "shuffled", "none", or "untuned" for the base): `loss`, and
            `rouge1`, `rouge2`, `rougeL`, `chrf` where they were taken.
        worth: intervals by which the loss with other vectors, or none, lies above that with the rows' own.
        samples: `text`, `reference` and `output` of some rows with their own vectors.
        **known: `data` and `split`, where the rows are a data set of the Hub.
    """
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    counts = {"rows": rows, "scored_rows": scored_rows}
    return known | counts | {"measures": measures, "worth_of_vectors": worth, "samples": samples, "versions": versions}


def save_evaluation(folder: Path, record: dict) -> bool:
    """Writes `folder`/evaluation.json unless the one there is of more rows, or of more kinds of vectors.

    Returns:
        Whether it was written.
    """
    file = folder / EVALUATION
    if file.exists():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        if earlier["rows"] > record["rows"] or len(earlier["measures"]) > len(record["measures"]):
            return False
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return True

"""How well a model describes: loss, ROUGE and chrF, with the true vectors, with other rows' vectors, with none."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from ..processing_t5fusion import DataCollatorWithFusion, T5FusionProcessor

Vectors = Literal["true", "shuffled", "none"]


class Losses(NamedTuple):
    """Cross entropy of each row: its sum over the target's tokens, in nats, and their number; float64 (rows,)."""

    sums: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per token, whatever the batches were."""
        return float(self.sums.sum() / self.tokens.sum())


class Interval(NamedTuple):
    """A difference and the bounds that hold it with 95 % probability."""

    difference: float
    low: float
    high: float


def change_vectors(rows: list[dict], vectors: Vectors, seed: int = 0) -> list[dict]:
    """The rows with their own vectors, each with another row's, or without."""
    if vectors == "true":
        return rows
    if vectors == "none":
        return [{name: value for name, value in row.items() if name != "lexical_embeds"} for row in rows]
    # a rotation of a random order: nobody keeps their own
    order = np.random.default_rng(seed).permutation(len(rows))
    changed = list(rows)
    for own, other in zip(order, np.roll(order, 1), strict=True):
        changed[own] = {**rows[own], "lexical_embeds": rows[other]["lexical_embeds"]}
    return changed


def _batches(rows: list[dict], processor: T5FusionProcessor, batch_size: int, length: str, progress: str | None):
    """Indices and batches of rows of like length."""
    collate = DataCollatorWithFusion(processor.tokenizer)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][length]))
    for start in tqdm(range(0, len(order), batch_size), desc=progress, disable=progress is None, leave=False):
        indices = order[start : start + batch_size]
        yield indices, collate([rows[index] for index in indices])


@torch.inference_mode()
def losses(model, rows: list[dict], processor: T5FusionProcessor, batch_size: int = 64, progress=None) -> Losses:
    """The loss of each row (as `prepare` makes them, with labels)."""
    model.eval()
    sums, tokens = np.zeros(len(rows)), np.zeros(len(rows))
    for indices, batch in _batches(rows, processor, batch_size, "labels", progress):
        batch = batch.to(model.device)
        logits = model(**batch).logits.float()
        each = cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none", ignore_index=-100)
        sums[indices] = each.double().sum(1).cpu()
        tokens[indices] = (batch["labels"] != -100).sum(1).cpu()
    return Losses(sums, tokens)


@torch.inference_mode()
def generate_texts(
    model, rows: list[dict], processor: T5FusionProcessor, batch_size: int = 64, progress=None, **options
) -> list[str]:
    """What the model writes for each row, in the rows' order; `options` are those of `model.generate`."""
    model.eval()
    options = {"max_new_tokens": 64, "do_sample": False, **options}
    texts = [""] * len(rows)
    rows = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
    for indices, batch in _batches(rows, processor, batch_size, "input_ids", progress):
        written = processor.batch_decode(model.generate(**batch.to(model.device), **options), skip_special_tokens=True)
        for index, text in zip(indices, written, strict=True):
            texts[index] = text
    return texts


def text_scores(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2, -L (F measure, stemmed, mean over rows) by rouge-score and chrF by sacrebleu; all from 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_chrf

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=True)
    scores = [scorer.score(reference, text) for reference, text in zip(references, texts, strict=True)]
    means = {name: float(np.mean([score[name].fmeasure for score in scores])) for name in names}
    return means | {"chrf": corpus_chrf(texts, [references]).score / 100}


def paired_bootstrap(a: Losses, b: Losses, samples: int = 10_000, seed: int = 0) -> Interval:
    """The difference of the mean losses of two models (or inputs) on the same rows, a - b, in nats per token.

    Rows are drawn with replacement, the same for both (Koehn 2004); the bounds are the 2.5th and 97.5th percentiles.
    """
    drawn = np.random.default_rng(seed).multinomial(len(a.sums), np.full(len(a.sums), 1 / len(a.sums)), size=samples)
    differences = (drawn @ (a.sums - b.sums)) / (drawn @ a.tokens)
    low, high = np.percentile(differences, [2.5, 97.5])
    return Interval(a.mean - b.mean, float(low), float(high))

"""Score generated texts by ROUGE and chrF."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.losses import Losses

if TYPE_CHECKING:
    from transformers import EvalPrediction


def measures_of(losses: Losses, texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return `rows`, `loss` (nats per token) and the scores of generated texts."""
    return {"rows": len(texts), "loss": losses.mean, **text_scores(texts, references)}


def text_scores(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return ROUGE-1, -2 and -L by rouge-score (F measure, stemmed, mean over rows) and chrF by sacrebleu, from 0 to 1.

    Raises:
        ValueError: The numbers of texts and references differ.
    """
    # Both packages are slow to import, and only an evaluation needs them.
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    names = ("rouge1", "rouge2", "rougeL")
    scorer, chrf = RougeScorer(names, use_stemmer=True), CHRF()
    rouge, statistics = np.zeros((len(names), len(texts))), []
    for row, (reference, text) in enumerate(zip(references, texts, strict=True)):
        score = scorer.score(reference, text)
        rouge[:, row] = [score[name].fmeasure for name in names]
        # `CHRF.corpus_score` does the same in two steps, but it holds the n-grams of all rows in memory at once.
        statistics += chrf._extract_corpus_statistics([text], [[reference]])
    means = dict(zip(names, rouge.mean(1).tolist(), strict=True))
    return means | {"chrf": chrf._aggregate_and_compute(statistics).score / 100}


def rouge_metrics(tokenizer: Any) -> "Callable[[EvalPrediction], dict[str, float]]":
    """Return a `compute_metrics` for a `Seq2SeqTrainer` with `predict_with_generate=True`.

    It gives `rouge1`, `rouge2`, `rougeL` and `chrf` of the generated texts, from 0 to 1 (see `text_scores`). The
    references are the labels as texts.

    Args:
        tokenizer: The tokenizer of the rows, or their processor.

    Raises:
        ValueError: The returned function got logits, because the Trainer does not generate.
    """
    pad = getattr(tokenizer, "tokenizer", tokenizer).pad_token_id

    def texts(ids: Any) -> list[str]:
        decoded: list[str] = tokenizer.batch_decode(np.where(ids < 0, pad, ids), skip_special_tokens=True)
        return decoded

    def compute_metrics(prediction: "EvalPrediction") -> dict[str, float]:
        predicted = prediction.predictions
        if isinstance(predicted, tuple) or predicted.ndim != 2:
            raise ValueError(
                "`rouge_metrics` got logits; expected generated ids. Use `Seq2SeqTrainer` with "
                "`Seq2SeqTrainingArguments(predict_with_generate=True)`."
            )
        return text_scores(texts(predicted), texts(prediction.label_ids))

    return compute_metrics

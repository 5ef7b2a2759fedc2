"""Score generated texts: ROUGE, chrF, BLEU, token F1 and exact match."""

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
    """Score generated texts against references. All scores are from 0 to 1.

    Returns:
        `rouge1`, `rouge2` and `rougeL`: F measure of stemmed words, by rouge-score; mean over the rows.
        `chrf` and `bleu`: of the whole corpus, by sacrebleu.
        `token_f1`: F measure of the words that text and reference share, not stemmed; mean over the rows.
        `exact_match`: share of the texts that equal their reference, except for spaces at the ends.

    Raises:
        ValueError: The numbers of texts and references differ.
    """
    # Both packages are slow to import, and only an evaluation needs them.
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    names = ("rouge1", "rouge2", "rougeL")
    stemmed, plain = RougeScorer(names, use_stemmer=True), RougeScorer(["rouge1"])
    corpus = {"chrf": CHRF(), "bleu": BLEU()}
    counts: dict[str, Any] = dict.fromkeys(corpus, 0)
    of_rows = np.zeros((len(texts), len(names) + 2))
    for row, (reference, text) in enumerate(zip(references, texts, strict=True)):
        score = stemmed.score(reference, text)
        token_f1 = plain.score(reference, text)["rouge1"].fmeasure
        of_rows[row] = [*(score[name].fmeasure for name in names), token_f1, text.strip() == reference.strip()]
        # `corpus_score` does the same in two steps, but it holds the n-grams of all rows in memory at once.
        for name, metric in corpus.items():
            counts[name] += np.array(metric._extract_corpus_statistics([text], [[reference]])[0])
    means = dict(zip((*names, "token_f1", "exact_match"), of_rows.mean(0).tolist(), strict=True))
    return means | {
        name: metric._aggregate_and_compute([counts[name].tolist()]).score / 100 for name, metric in corpus.items()
    }


def rouge_metrics(tokenizer: Any) -> "Callable[[EvalPrediction], dict[str, float]]":
    """Return a `compute_metrics` for a `Seq2SeqTrainer` with `predict_with_generate=True`.

    It gives the scores of the generated texts (see `text_scores`). The references are the labels as texts.

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

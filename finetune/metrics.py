"""The scores of written texts: ROUGE and chrF."""

from collections.abc import Sequence

import numpy as np

from ..common.losses import Losses


def measures_of(found: Losses, texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`rows`, `loss` and the scores, as `evaluate` gives them."""
    return {"rows": len(texts), "loss": found.mean, **text_scores(texts, references)}


def text_scores(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2, -L (F measure, stemmed, mean over rows) by rouge-score and chrF by sacrebleu; all from 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    names = ("rouge1", "rouge2", "rougeL")
    scorer, chrf = RougeScorer(names, use_stemmer=True), CHRF()
    rouge, statistics = np.zeros((len(names), len(texts))), []
    for row, (reference, text) in enumerate(zip(references, texts, strict=True)):
        score = scorer.score(reference, text)
        rouge[:, row] = [score[name].fmeasure for name in names]
        # the two steps of its `corpus_score`, the first row by row: that holds the n-grams of all rows at once
        statistics += chrf._extract_corpus_statistics([text], [[reference]])
    means = dict(zip(names, rouge.mean(1).tolist(), strict=True))
    return means | {"chrf": chrf._aggregate_and_compute(statistics).score / 100}

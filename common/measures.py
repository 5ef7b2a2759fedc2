"""The measures: the key that saved files have for each, and the name that tables and model cards show."""

SCORE_NAMES = {
    "loss": "loss", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "chrf": "chrF", "bleu": "BLEU",
    "token_f1": "token F1", "exact_match": "exact match",
}  # fmt: skip

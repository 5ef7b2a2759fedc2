"""The names of measures, as tables and cards show them. Saved files have the keys."""

SCORE_NAMES = {"loss": "loss", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "chrf": "chrF"}

"""Search for the learning rate and the rank of LoRA with `Trainer.hyperparameter_search` and optuna.

pip install optuna    # or the extra "search" of this package
python examples/hyperparameter_search.py 10    # ten trials
"""

import sys

import torch
from colours import draw
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion

BASE = "tiny_t5_v2"  # or "google/flan-t5-small"

processor = T5FusionProcessor(BASE, vectors={"colour": 3}, lexical_encoder=None, lexical_source="given")


def rows_of(colours, names):
    """Return rows to train on or to evaluate with."""
    return processor.rows(["describe: colour"] * len(names), names, lexical_embeds=colours)


def build_model(trial):
    """Return a new model for a trial. The Trainer also calls this once without a trial, before the search."""
    rank = trial.suggest_categorical("rank", [4, 8, 16, 32]) if trial else 32
    model = T5WithFusion(BASE, vectors={"colour": 3}, dtype=torch.float32)
    return get_peft_model(model, model.lora_config(r=rank, lora_alpha=rank))


trainer = Trainer(
    args=TrainingArguments(
        "runs/hyperparameter_search", num_train_epochs=1, per_device_train_batch_size=16, eval_strategy="epoch",
        save_strategy="no", report_to="none",
    ),
    data_collator=DataCollatorWithFusion(processor),
    train_dataset=rows_of(*draw(320)),
    eval_dataset=rows_of(*draw(80, seed=1)),
    model_init=build_model,
)  # fmt: skip
best = trainer.hyperparameter_search(
    hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True)},
    direction="minimize",  # the loss on `eval_dataset`
    backend="optuna",
    n_trials=int(sys.argv[1]) if len(sys.argv) > 1 else 3,
)
print(f"The best trial has a loss of {best.objective:.3f}, with {best.hyperparameters}.")

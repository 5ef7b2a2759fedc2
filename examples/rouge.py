"""Evaluate the generated texts with ROUGE and chrF: `Seq2SeqTrainer` with `predict_with_generate=True`.

python examples/rouge.py
"""

import torch
from colours import draw
from peft import get_peft_model
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion
from t5fusion.finetune import rouge_metrics

BASE = "tiny_t5_v2"  # or "google/flan-t5-small"

processor = T5FusionProcessor(BASE, vectors={"colour": 3}, lexical_encoder=None, lexical_source="given")


def rows_of(colours, names):
    """Return rows to train on or to evaluate with."""
    targets = [f"The colour is {name}." for name in names]
    return processor.rows(["describe: colour"] * len(names), targets, lexical_embeds=colours)


model = T5WithFusion(BASE, vectors={"colour": 3}, dtype=torch.float32)
model = get_peft_model(model, model.lora_config())
arguments = Seq2SeqTrainingArguments(
    "runs/rouge", num_train_epochs=2, learning_rate=2e-3, per_device_train_batch_size=16, eval_strategy="epoch",
    predict_with_generate=True, generation_max_length=12, save_strategy="no", report_to="none",
)  # fmt: skip
trainer = Seq2SeqTrainer(
    model=model,
    args=arguments,
    data_collator=DataCollatorWithFusion(processor),
    train_dataset=rows_of(*draw(320)),
    eval_dataset=rows_of(*draw(40, seed=1)),
    compute_metrics=rouge_metrics(processor),
)
trainer.train()
results = trainer.evaluate()
print({name: round(results[f"eval_{name}"], 3) for name in ("loss", "rouge1", "rougeL", "chrf")})

"""`rouge_metrics`: ROUGE and chrF of what a Seq2SeqTrainer generates from texts and vectors."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from shared_fixtures import make_tokenizer
from transformers import EvalPrediction, Seq2SeqTrainer, Seq2SeqTrainingArguments

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion
from t5fusion.finetune import generate_texts, rouge_metrics
from t5fusion.finetune.metrics import text_scores

TEXTS = ["a"] * 6  # so that only the vectors tell the rows apart
SCORES = ("rouge1", "rouge2", "rougeL", "chrf", "bleu", "token_f1", "exact_match")


@pytest.fixture
def trainer(plain_folders, tmp_path):
    """A trainer with vectors. Now and then it generates, and it keeps the model with the best chrF."""
    processor = T5FusionProcessor(str(plain_folders["flan"]), lexical_dim=8)
    model = T5WithFusion(plain_folders["flan"], lexical_dim=8)
    vectors = torch.eye(8)[[0, 1, 0, 1, 1, 0]]
    targets = ["app settings b" if vector[0] else "settings c" for vector in vectors]
    rows = processor.rows(TEXTS, targets, lexical_embeds=vectors)
    args = Seq2SeqTrainingArguments(
        str(tmp_path),
        max_steps=80,
        learning_rate=2e-2,
        per_device_eval_batch_size=4,  # two batches of unequal length, which the Trainer pads with -100
        predict_with_generate=True,
        generation_max_length=9,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=40,
        save_steps=40,
        load_best_model_at_end=True,
        metric_for_best_model="chrf",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return Seq2SeqTrainer(
        model=get_peft_model(model, model.lora_config(r=8, lora_dropout=0.0)),
        args=args,
        data_collator=DataCollatorWithFusion(processor),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=rouge_metrics(processor),
        processing_class=processor,
    )


def test_the_scores_of_what_the_trainer_generates(trainer, tmp_path):
    trainer.train()
    scores = trainer.evaluate()
    processor, rows = trainer.processing_class, trainer.eval_dataset
    written = generate_texts(trainer.model, rows, processor, max_new_tokens=8)  # and the start token
    references = processor.batch_decode([row["labels"] for row in rows], skip_special_tokens=True)
    expected = text_scores(written, references)
    assert {name: scores[f"eval_{name}"] for name in SCORES} == pytest.approx(expected)
    assert scores["eval_chrf"] == trainer.state.best_metric > 0
    without = generate_texts(
        trainer.model, [{**row, "lexical_embeds": None} for row in rows], processor, max_new_tokens=8
    )
    assert without != written  # so the vectors reach `generate`
    (checkpoint, *_) = tmp_path.glob("checkpoint-*")
    assert T5FusionProcessor.from_pretrained(checkpoint).lexical_dim == 8


def test_padding_counts_for_nothing():
    tokenizer = make_tokenizer()
    ids = tokenizer(["app_config", "settings"], padding=True, return_tensors="np")["input_ids"]
    labels = np.where(ids == 0, -100, ids)
    predictions = np.concatenate([np.zeros((2, 1), dtype=int), labels], axis=1)  # the start token, then the text
    for decoder in (tokenizer, T5FusionProcessor(tokenizer)):
        scores = rouge_metrics(decoder)(EvalPrediction(predictions, labels))
        assert scores == pytest.approx(text_scores(["app_config", "settings"], ["app_config", "settings"]))
        assert scores["rougeL"] == 1


def test_logits_are_refused():
    compute = rouge_metrics(make_tokenizer())
    for predictions in (np.zeros((2, 3, 5)), (np.zeros((2, 3, 5)), np.zeros((2, 3)))):
        with pytest.raises(ValueError, match="got logits; expected generated ids.*predict_with_generate=True"):
            compute(EvalPrediction(predictions, np.zeros((2, 3), dtype=int)))

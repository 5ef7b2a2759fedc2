"""The checks of the Trainer that are most likely to break."""

import pytest
from compat import trainer

FAST = [
    "rows without vectors among others",
    "`predict_with_generate`, `compute_metrics`, beams",
    "`Trainer.predict`, `eval_accumulation_steps`",
    "label smoothing, the collator with `model=`",
    "resume",
    "`load_best_model_at_end`, early stopping",
    "`gradient_accumulation_steps`",
    "`Dataset.map` with `num_proc=2`",
    "`save_model`, `from_pretrained`",
]


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA on top"])
@pytest.mark.parametrize("row", FAST)
def test_trainer(row, lora):
    trainer.CHECKS[row]("T5WithFusion", lora)


def test_lengths_are_grouped():
    trainer.CHECKS["`train_sampling_strategy='group_by_length'`"]("T5WithFusion", False)


def test_label_smoothing_says_what_it_needs():
    with pytest.raises(ValueError, match=r"DataCollatorWithFusion\(tokenizer, model=model\)"):
        trainer.smooths_labels_without_a_model("T5WithFusion", False)


def test_accumulated_losses_of_a_tuple():
    model = trainer.load("T5WithFusion")
    batch = trainer.batch_for("T5WithFusion")
    tokens = batch["labels"].numel()
    loss, *_ = model(**batch, num_items_in_batch=4 * tokens, return_dict=False)
    assert loss.item() == pytest.approx(model(**batch).loss.item() / 4)


def test_what_is_pushed_is_read_in_one_line():
    trainer.pushes("T5WithFusion", False)

"""What the Trainer's hook checks before a training, and measures at its end."""

import pytest
import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion
from t5fusion.hooks.trainer_hook import measure_vectors


@pytest.mark.parametrize(("size", "expected"), [(64, list(range(10))), (4, [0, 1, 2, 3, 8, 9])])
def test_rows_that_fill_up_a_batch_of_several_processes_are_not_counted(plain_folders, tokenizer, size, expected):
    """accelerate fills up each process' last batch with rows from the beginning."""
    model = T5WithFusion(plain_folders["flan"])
    vectors = torch.randn(10, 384, generator=torch.Generator().manual_seed(0))
    rows = [
        {"input_ids": [5, 1], "labels": [3 + row, 1], "lexical_embeds": vector} for row, vector in enumerate(vectors)
    ]
    loader = DataLoader(rows, batch_size=size, collate_fn=DataCollatorWithFusion(tokenizer))
    alone, _ = measure_vectors(model, loader)
    own, other = measure_vectors(model, prepare_data_loader(loader, num_processes=2, process_index=0))
    assert own.sums == pytest.approx(alone.sums[expected])
    assert len(other.sums) == len(expected)


def trainer_with(collator, model, rows, folder):
    options = {"per_device_train_batch_size": 2, "max_steps": 1, "save_strategy": "no", "report_to": "none"}
    arguments = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **options)
    return Trainer(model, arguments, train_dataset=rows, data_collator=collator)


@pytest.mark.parametrize("name", ["DataCollatorForSeq2Seq", "DataCollatorWithPadding", "default_data_collator"])
@pytest.mark.parametrize("kinds", [{"image": 3}, {"image": 3, "price": 1}], ids=["one kind", "two kinds"])
def test_collators_of_transformers_are_refused(plain_folders, tokenizer, tmp_path, name, kinds):
    """They put no placeholders into the rows, and some of them cannot stack the vectors."""
    processor = T5FusionProcessor(tokenizer, vectors=kinds, lexical_encoder=None, lexical_source="given")
    vectors = {kind: torch.ones(4, dim) for kind, dim in kinds.items()}
    rows = processor.rows(["a", "b", "ab", "app"], ["a", "b", "c", "d"], lexical_embeds=vectors)
    collator = getattr(transformers, name)
    collator = collator if name == "default_data_collator" else collator(tokenizer)
    trainer = trainer_with(collator, T5WithFusion(plain_folders["flan"], vectors=kinds), rows, tmp_path)
    with pytest.raises(ValueError, match=f"data collator is {name}, .*; expected DataCollatorWithFusion. Pass"):
        trainer.train()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_fusion_layer_in_half_precision_is_told(plain_folders, tokenizer, tmp_path, capsys, dtype):
    """PEFT trains LoRA in float32 whatever the dtype of the model, and other layers in that dtype."""
    processor = T5FusionProcessor(tokenizer, vectors={"image": 3}, lexical_encoder=None, lexical_source="given")
    rows = processor.rows(["a", "b"], ["a", "b"], lexical_embeds=torch.ones(2, 3))
    model = T5WithFusion(plain_folders["flan"], vectors={"image": 3}, dtype=dtype)
    adapted = get_peft_model(model, model.lora_config())
    trainer_with(DataCollatorWithFusion(processor), adapted, rows, tmp_path).train()
    told = "The fusion layer trains in bfloat16, which rounds small updates away. Load the model with `dtype=torch.f"
    assert (told in capsys.readouterr().err) == (dtype == torch.bfloat16)


def test_other_collators_are_left_alone(plain_folders, tokenizer, tmp_path):
    """Rows may hold their placeholders already, or no vectors; or a collator of the user makes the batch."""
    model = T5WithFusion(plain_folders["flan"], vectors={"image": 3})
    processor = T5FusionProcessor(tokenizer, vectors={"image": 3}, lexical_encoder=None, lexical_source="given")
    texts, vectors = ["a", "b", "ab", "app"], torch.ones(4, 3)
    made = processor(texts, lexical_embeds=vectors, text_target=texts, return_tensors=None)
    with_placeholders = [{name: made[name][row] for name in made} for row in range(4)]
    plain = processor.rows(texts, texts, lexical_embeds=False)
    fused, of_transformers = DataCollatorWithFusion(processor), transformers.DataCollatorForSeq2Seq(tokenizer)
    for collator, rows in (
        (of_transformers, with_placeholders),
        (of_transformers, plain),
        (lambda batch: fused(batch), processor.rows(texts, texts, lexical_embeds=vectors)),
    ):
        trainer_with(collator, model, rows, tmp_path).train()

"""The six steps of a user: build, add LoRA, train, save, reload elsewhere, generate."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5WithFusion

NAMES = ["app_config", "settings:b", "a", "readme", "app_d", "utils_x"]
RELOAD = """
import sys
import torch
from peft import PeftModel
from transformers import AutoTokenizer
from t5fusion import T5WithFusion

base, out, file = sys.argv[1:]
batch = torch.load(file)
model = PeftModel.from_pretrained(T5WithFusion(base), out).eval()
with torch.no_grad():
    logits = model(**batch).logits
    ids = model.generate(**{key: value for key, value in batch.items() if key != "labels"}, max_new_tokens=6)
torch.save({"logits": logits, "ids": ids, "tokens": len(AutoTokenizer.from_pretrained(out))}, file)
"""


def user_lora():
    return LoraConfig(
        r=32,
        lora_alpha=32,
        target_modules=["q", "v"],
        lora_dropout=0.05,
        bias="none",
        task_type=TaskType.SEQ_2_SEQ_LM,
    )


def make_rows(tokenizer, padded):
    """Return preprocessed rows: no placeholder, one vector, and a column that the model does not read."""
    limit = {"padding": "max_length", "max_length": 128} if padded else {}
    rows = [dict(tokenizer(f"Filename: {name}", **limit)) for name in NAMES]
    vectors = torch.nn.functional.normalize(torch.randn(len(NAMES), 384, generator=torch.Generator().manual_seed(1)))
    for row, name, vector in zip(rows, NAMES, vectors, strict=True):
        row |= {"labels": tokenizer(name[::-1], **limit)["input_ids"], "lexical_embeds": vector.tolist()}
        row["filename"] = name
    return Dataset.from_list(rows)


def arguments(kind, folder, **more):
    return kind(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        num_train_epochs=2,
        learning_rate=1e-2,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **more,
    )


@pytest.mark.slow
@pytest.mark.parametrize("padded", [True, False], ids=["padded to 128", "not padded"])
def test_the_six_steps_of_a_user(plain_folders, tokenizer, tmp_path, run_python, padded):
    base, out = str(plain_folders["flan"]), tmp_path / "out"
    model = T5WithFusion(base)
    peft_model = get_peft_model(model, user_lora())
    rows = make_rows(tokenizer, padded)
    trainer = Trainer(
        model=peft_model,
        args=arguments(TrainingArguments, tmp_path / "runs"),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithFusion(tokenizer),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    peft_model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    assert json.loads((out / "adapter_config.json").read_text())["modules_to_save"] == ["fusion"]

    batch = dict(DataCollatorWithFusion(tokenizer)([{k: v for k, v in row.items() if k != "filename"} for row in rows]))
    peft_model.eval()
    with torch.no_grad():
        logits = peft_model(**batch).logits
        with_other_vectors = peft_model(**batch | {"lexical_embeds": batch["lexical_embeds"].roll(1, 0)}).logits
        ids = peft_model.generate(**{k: v for k, v in batch.items() if k != "labels"}, max_new_tokens=6)
    assert not torch.equal(logits, with_other_vectors)
    torch.save(batch, tmp_path / "batch.pt")
    run_python(RELOAD, base, out, tmp_path / "batch.pt")
    reloaded = torch.load(tmp_path / "batch.pt")
    assert torch.equal(reloaded["logits"], logits)
    assert torch.equal(reloaded["ids"], ids)
    assert reloaded["tokens"] == len(tokenizer) == model.config.lexical_token_id + 1


def test_the_vectors_reach_the_model_through_trainer_and_peft(plain_folders, tokenizer, tmp_path):
    """With the default `remove_unused_columns`, the Trainer keeps the vectors and drops the unused column."""
    seen = []
    peft_model = get_peft_model(T5WithFusion(str(plain_folders["v1.1"])), user_lora())
    fusion = peft_model.get_base_model().encoder.fusion
    fusion.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    rows = make_rows(tokenizer, padded=True)
    trainer = Trainer(
        model=peft_model,
        args=arguments(TrainingArguments, tmp_path),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithFusion(tokenizer),
    )
    trainer.evaluate()
    assert torch.equal(torch.cat(seen).squeeze(1), torch.tensor(rows["lexical_embeds"][:]))


def test_seq2seq_trainer_generates_with_the_vectors(plain_folders, tokenizer, tmp_path):
    peft_model = get_peft_model(T5WithFusion(str(plain_folders["flan"])), user_lora())
    rows = make_rows(tokenizer, padded=False)
    collator = DataCollatorWithFusion(tokenizer)
    more = {"predict_with_generate": True, "generation_max_length": 6, "per_device_eval_batch_size": len(NAMES)}
    trainer = Seq2SeqTrainer(
        model=peft_model,
        args=arguments(Seq2SeqTrainingArguments, tmp_path, **more),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collator,
    )
    trainer.train()
    predicted = torch.tensor(trainer.predict(rows).predictions)
    batch = collator([{k: v for k, v in row.items() if k not in ("filename", "labels")} for row in rows])
    peft_model.eval()
    expected = peft_model.generate(**batch, max_length=6)
    assert torch.equal(predicted[:, : expected.shape[1]], expected)


def test_a_second_adapter_of_the_same_base_reloads_in_this_process(plain_folders, tmp_path, inputs_for):
    base = str(plain_folders["v1.0"])
    peft_model = get_peft_model(T5WithFusion(base), user_lora()).eval()
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    peft_model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(T5WithFusion(base), tmp_path).eval()
    batch = inputs_for(reloaded)
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).logits, peft_model(**batch).logits)
        with peft_model.disable_adapter():
            assert torch.equal(peft_model(**batch).logits, T5WithFusion(base).eval()(**batch).logits)

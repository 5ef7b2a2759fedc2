"""The lines that this package prints raise no warnings in transformers or PEFT that a user cannot act on."""

import json

import pytest
import torch
from peft import get_peft_model
from transformers import T5ForConditionalGeneration

from t5fusion import T5FusionProcessor, T5WithFusion
from t5fusion.common.remote_code import write_code

SHOW_WARNINGS = """
import sys, warnings
warnings.simplefilter("always")
print_warning = lambda message, category, *rest: print("WARNED", category.__name__, message)
warnings.showwarning = print_warning
"""
READ = """
import torch
from peft import AutoPeftModelForSeq2SeqLM
from transformers import AutoModelForSeq2SeqLM, AutoProcessor

name = sys.argv[1]
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
one_line = AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=True)
inputs = processor(["app_config"], lexical_embeds=torch.randn(1, 384))
one_line.generate(**inputs, max_new_tokens=4)
model = AutoPeftModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=True, is_trainable=True)
model.generate(**inputs, max_new_tokens=4)
model(**inputs, labels=torch.tensor([[5, 1]])).loss.backward()
"""
TRAIN = """
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer
from t5fusion import DataCollatorWithFusion, T5WithFusion

model, tokenizer = T5WithFusion(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
peft_model = get_peft_model(model, LoraConfig(r=4, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"))
batch = DataCollatorWithFusion(tokenizer)([{**tokenizer("app"), "labels": [5, 1], "lexical_embeds": [0.05] * 384}] * 2)
for _ in range(2):
    peft_model(**batch).loss.backward()
peft_model.generate(**{name: value for name, value in batch.items() if name != "labels"}, max_new_tokens=4)
peft_model.save_pretrained("out")
"""


def warned(out):
    return [line for line in out.splitlines() if line.startswith("WARNED")]


@pytest.mark.slow
def test_the_lines_of_a_reader_warn_of_nothing(flan, tokenizer, run_python, tmp_path):
    """The adapter names itself as its base model, like a pushed one, and the package is not installed."""
    folder = tmp_path / "adapter"
    get_peft_model(flan, flan.lora_config(r=2)).save_pretrained(folder)
    write_code(flan, folder)
    T5FusionProcessor(tokenizer, lexical_encoder=None, lexical_source="given").save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert warned(run_python(SHOW_WARNINGS + READ, folder, hidden=True, fresh=True)) == []


@pytest.mark.slow
def test_the_lines_of_an_author_warn_of_nothing(plain_folders, run_python):
    assert warned(run_python(SHOW_WARNINGS + TRAIN, plain_folders["flan"], fresh=True)) == []


@pytest.mark.parametrize("given", [{}, {"cache": None}])
def test_a_deprecated_name_is_used_only_by_callers(flan, inputs_for, monkeypatch, given):
    """From transformers 5.24 on, `past_key_values` is called `cache`, and each use of the old name warns."""
    seen = {}

    def spy(self, **kwargs):
        seen.update(kwargs)
        return forward(self, **{name: value for name, value in kwargs.items() if name != "cache"})

    forward = T5ForConditionalGeneration.forward
    monkeypatch.setattr(T5ForConditionalGeneration, "forward", spy)
    with torch.no_grad():
        flan(**inputs_for(flan), **given)
    assert "past_key_values" not in seen and seen.keys() >= given.keys()


def test_gradient_checkpointing_is_reported_as_in_t5(plain_folders):
    model = T5WithFusion(str(plain_folders["v1.0"]))
    assert model.is_gradient_checkpointing is False
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing is True

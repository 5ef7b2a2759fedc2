"""The fusion layer of a quantised model, and adapters on top. The tests need bitsandbytes or torchao."""

import pytest
from compat import quantized
from peft import get_peft_model
from shared_fixtures import make_tokenizer

from t5fusion.hub_export.bundle import export

NEEDS = {"bitsandbytes: nf4, double, in bf16": "bitsandbytes", "torchao: Int8WeightOnlyConfig": "torchao"}


@pytest.mark.parametrize("row", NEEDS)
def test_quantised(row):
    pytest.importorskip(NEEDS[row])
    for check in (quantized.loads, quantized.trains, quantized.reloads_base):
        check("T5WithFusion", quantized.SCHEMES[row])


def test_a_quantised_model_is_saved_again(tmp_path):
    """This transformers fails to do so with a plain T5 (docs/upstream/quantised_saved_again.py)."""
    pytest.importorskip("bitsandbytes")
    quantized.SCHEMES["bitsandbytes: nf4"].quantised("T5WithFusion").save_pretrained(tmp_path / "once")
    once = quantized.load("T5WithFusion", tmp_path / "once")
    once.save_pretrained(tmp_path / "twice")
    batch = quantized.batch_for("T5WithFusion")
    twice = quantized.load("T5WithFusion", tmp_path / "twice")
    assert quantized.logits(twice, batch).equal(quantized.logits(once, batch))


def test_lora_is_not_folded_into_a_quantised_base(tmp_path):
    pytest.importorskip("bitsandbytes")
    quantized.SCHEMES["bitsandbytes: nf4"].quantised("T5WithFusion").save_pretrained(tmp_path / "base")
    base = quantized.load("T5WithFusion", tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "lora")
    get_peft_model(base, base.lora_config(r=2)).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="is quantised: part of a merged LoRA would be lost by rounding. Use --kind"):
        export(tmp_path / "lora", tmp_path / "bundle", kind="merged")
    assert export(tmp_path / "lora", tmp_path / "bundle", kind="standalone").exists()

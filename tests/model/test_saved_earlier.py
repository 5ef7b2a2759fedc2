"""Models and adapters that 0.1.0 saved (saved_by_0_1) still load, with the same outputs."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from t5fusion import T5FusionProcessor, T5WithFusion

SAVED = Path(__file__).parent / "saved_by_0_1"


@pytest.fixture(autouse=True)
def folder_of_saved(monkeypatch):
    monkeypatch.chdir(SAVED)  # The adapters name their base model by a relative path.


def reference(name):
    tensors = load_file(SAVED / "reference.safetensors")
    batch = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    return batch, batch.pop("logits")


@torch.no_grad()
def check(model, name):
    """Compare in float64, because float32 rounds differently on other processors. The reference is float32."""
    batch, expected = reference(name)
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    logits = model.eval().double()(**batch).logits
    torch.testing.assert_close(logits, expected.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", ["adapter-frozen", "adapter-trained", "adapter-wide"])
def test_an_adapter_over_a_model_built_by_the_old_calls(name, trainable):
    width = 7 if name == "adapter-wide" else 384
    model = PeftModel.from_pretrained(T5WithFusion("plain", lexical_dim=width), name, is_trainable=trainable)
    check(model, name)


@pytest.mark.parametrize("name", ["adapter-frozen", "adapter-trained"])
def test_an_adapter_by_its_folder_alone(name):
    check(T5WithFusion.from_pretrained(name), name)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", ["adapter-frozen", "adapter-trained"])
def test_an_adapter_loaded_into_a_model(name, trainable):
    model = T5WithFusion("plain")
    model.load_adapter(name, is_trainable=trainable)
    check(model, name)


def test_a_fused_model_and_its_processor():
    check(T5WithFusion("fused"), "fused")
    assert T5FusionProcessor.from_pretrained("fused").template == "Filename: {text}"

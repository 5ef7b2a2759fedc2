"""PEFT's functions for the state of the base model, with each kind of adapter on a fused model."""

import peft
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from t5fusion import T5WithFusion

SEQ2SEQ = {"task_type": "SEQ_2_SEQ_LM"}
CONFIGS = [
    LoraConfig(**SEQ2SEQ, r=2, target_modules=["q"]),
    PromptTuningConfig(**SEQ2SEQ, num_virtual_tokens=2),
    PrefixTuningConfig(**SEQ2SEQ, num_virtual_tokens=2),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.peft_type.value)
def test_the_state_of_the_base_model_has_its_own_names(plain_folders, config):
    base = T5WithFusion(plain_folders["flan"])
    expected = {name: value.clone() for name, value in base.state_dict().items()}
    peft_model = get_peft_model(base, config)
    state = peft.get_base_model_state_dict(peft_model)
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)
    changed = {name: value + 1 for name, value in expected.items()}
    result = peft.set_base_model_state_dict(peft_model, changed)
    assert not result.missing_keys and not result.unexpected_keys
    state = peft.get_base_model_state_dict(peft_model)
    assert all(torch.equal(state[name], changed[name]) for name in expected)
    with pytest.raises(RuntimeError, match="unknown"):
        peft.set_base_model_state_dict(peft_model, changed | {"unknown": torch.zeros(1)})


def test_the_switch(plain_folders, monkeypatch):
    peft_model = get_peft_model(T5WithFusion(plain_folders["flan"]), CONFIGS[1])
    monkeypatch.setenv("T5FUSION_PEFT_HOOK", "0")
    assert any("original_module" in name for name in peft.get_base_model_state_dict(peft_model))

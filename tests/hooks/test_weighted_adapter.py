"""Combined adapters: the fusion layers are combined as PEFT combines the adapters' other weights."""

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from peft.utils.merge_utils import magnitude_prune, ties

from t5fusion import T5WithFusion

S2S = {"task_type": TaskType.SEQ_2_SEQ_LM}
LORA = LoraConfig(**S2S, r=4, target_modules=["q", "v"], init_lora_weights=False)
IA3 = IA3Config(**S2S, init_ia3_weights=False)


@pytest.fixture
def base(plain_folders):
    return plain_folders["flan"]


def fusion_of(peft_model, name):
    """Return the weights of an adapter's fusion layer, or of the base model's if `name` is None."""
    wrapper = peft_model.get_base_model().encoder.fusion
    layer = wrapper.original_module if name is None else wrapper.modules_to_save[name]
    return {key: value.detach().clone() for key, value in layer.named_parameters()}


@pytest.fixture
def trained(base):
    """A model with three trained adapters: "left" and "right" hold the fusion layer, "frozen" does not."""

    def make(config):
        torch.manual_seed(0)
        fields = config.to_dict() | {"modules_to_save": None}
        peft_model = get_peft_model(T5WithFusion(base), type(config)(**fields), "left").eval()
        peft_model.add_adapter("right", type(config)(**fields))
        peft_model.add_adapter("frozen", type(config)(**fields | {"modules_to_save": []}))
        with torch.no_grad():
            for copy in peft_model.get_base_model().encoder.fusion.modules_to_save.values():
                for parameter in copy.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return peft_model

    return make


@torch.no_grad()
def logits(peft_model, name, batch):
    peft_model.set_adapter(name)
    return peft_model(**batch).logits


@pytest.mark.parametrize("config", [LORA, IA3], ids=["LoRA", "IA3"])
def test_one_adapter_of_weight_one_is_that_adapter(trained, inputs_for, config):
    peft_model = trained(config)
    batch = inputs_for(peft_model)
    peft_model.add_weighted_adapter(["left"], [1.0], "again")
    torch.testing.assert_close(logits(peft_model, "again", batch), logits(peft_model, "left", batch))


@pytest.mark.parametrize("weights", [[0.3, 0.7], [1.0, 1.0], [1.5, -0.8]])
@pytest.mark.parametrize("kind", ["linear", "cat", "svd"])
def test_what_training_changed_is_added_up(trained, kind, weights):
    peft_model = trained(LORA)
    peft_model.add_weighted_adapter(["left", "right"], weights, "both", combination_type=kind)
    start, a, b, both = (fusion_of(peft_model, name) for name in (None, "left", "right", "both"))
    for key in start:
        expected = start[key] + weights[0] * (a[key] - start[key]) + weights[1] * (b[key] - start[key])
        torch.testing.assert_close(both[key], expected)


def test_ia3_too(trained):
    peft_model = trained(IA3)
    peft_model.add_weighted_adapter(["left", "right"], [0.5, 0.5], "both")
    a, b, both = (fusion_of(peft_model, name) for name in ("left", "right", "both"))
    for key in a:
        torch.testing.assert_close(both[key], (a[key] + b[key]) / 2)


@pytest.mark.parametrize("suffix", ["", "_svd"])
@pytest.mark.parametrize("method", [magnitude_prune, ties])
def test_pruning_is_that_of_peft(trained, method, suffix):
    peft_model = trained(LORA)
    options = {"combination_type": method.__name__ + suffix, "density": 0.5}
    peft_model.add_weighted_adapter(["left", "right"], [0.5, 0.5], "both", **options)
    start, a, b, both = (fusion_of(peft_model, name) for name in (None, "left", "right", "both"))
    for key in start:
        differences = [a[key] - start[key], b[key] - start[key]]
        expected = start[key] + method(differences, torch.tensor([0.5, 0.5]), 0.5)
        torch.testing.assert_close(both[key], expected)


@pytest.mark.parametrize("order", [["frozen", "left"], ["left", "frozen"]])
def test_beside_an_adapter_that_leaves_the_layer_frozen(trained, order):
    peft_model = trained(LORA)
    peft_model.add_weighted_adapter(order, [0.5, 0.5], "both", combination_type="cat")
    start, a, both = (fusion_of(peft_model, name) for name in (None, "left", "both"))
    for key in start:
        torch.testing.assert_close(both[key], (start[key] + a[key]) / 2)


def test_it_is_saved_and_reloads_to_the_bit(base, trained, tmp_path, inputs_for):
    peft_model = trained(LORA)
    batch = inputs_for(peft_model)
    peft_model.add_weighted_adapter(["left", "right"], [0.5, 0.5], "both", combination_type="cat")
    expected = logits(peft_model, "both", batch)
    peft_model.save_pretrained(tmp_path, selected_adapters=["both"])
    reloaded = PeftModel.from_pretrained(T5WithFusion(base), tmp_path / "both").eval()
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).logits, expected)


def test_a_name_that_is_taken_stays_as_it_is(trained):
    peft_model = trained(LORA)
    before = fusion_of(peft_model, "right")
    peft_model.add_weighted_adapter(["left"], [1.0], "right")
    assert all(torch.equal(value, before[key]) for key, value in fusion_of(peft_model, "right").items())


def test_what_peft_refuses_is_refused(base, trained, monkeypatch):
    peft_model = trained(LORA)
    with pytest.raises(ValueError, match="Invalid combination_type"):
        peft_model.add_weighted_adapter(["left", "right"], [1, 1], "both", combination_type="sum")
    monkeypatch.setenv("T5FUSION_PEFT_HOOK", "0")
    with pytest.raises(ValueError, match="modules_to_save"):
        peft_model.add_weighted_adapter(["left", "right"], [1, 1], "both")
    monkeypatch.undo()
    config = LoraConfig(**S2S, r=4, target_modules=["q"], modules_to_save=["lm_head"])
    with_heads = get_peft_model(T5WithFusion(base), config, "left")
    with_heads.add_adapter("right", config)
    with pytest.raises(ValueError, match="modules_to_save, but found 1 such"):  # the heads
        with_heads.add_weighted_adapter(["left", "right"], [1, 1], "both")
    prompts = get_peft_model(T5WithFusion(base), PromptTuningConfig(**S2S, num_virtual_tokens=2))
    with pytest.raises(AttributeError, match="add_weighted_adapter"):
        prompts.add_weighted_adapter(["default"], [1], "both")

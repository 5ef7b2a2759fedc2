"""PEFT's methods on a fused model, by their defaults."""

import copy
import json
import re
import shutil
import sys

import pytest
import torch
from peft import (
    AdaLoraConfig,
    AutoPeftModelForSeq2SeqLM,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from peft.utils import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from t5fusion import T5WithFusion
from t5fusion.common.remote_code import write_code

S2S = {"task_type": "SEQ_2_SEQ_LM"}
METHODS = {
    "lora": LoraConfig(**S2S),
    "ia3": IA3Config(**S2S),
    "adalora": AdaLoraConfig(**S2S, total_step=10, tinit=1, tfinal=1),
    "prefix tuning": PrefixTuningConfig(**S2S, num_virtual_tokens=3),
    "prompt tuning": PromptTuningConfig(**S2S, num_virtual_tokens=3),
}
FROZEN = "The fusion layer is frozen"


def step(model, batch):
    """Train one step. Return the loss and the names of the changed parameters."""
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    return loss.item(), {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_every_table_of_peft_with_t5_has_the_fused_model():
    mappings = {name: value for name, value in vars(constants).items() if isinstance(value, dict) and "t5" in value}
    assert len(mappings) >= 5
    for mapping in mappings.values():
        assert mapping["t5_fusion"] == mapping["t5"]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_with_vectors(flan, inputs_for, method):
    batch = inputs_for(flan)
    model = get_peft_model(flan, copy.deepcopy(METHODS[method]))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len({name for name in trainable if "fusion.modules_to_save.default" in name}) == 3 < len(trainable)
    loss, changed = step(model, batch)
    assert torch.isfinite(torch.tensor(loss))
    assert changed and changed <= trainable
    model.eval()
    moved = model(**batch | {"lexical_embeds": batch["lexical_embeds"].roll(1, 0)}).logits
    assert not torch.allclose(model(**batch).logits, moved)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_saves_and_reloads(plain_folders, tmp_path, inputs_for, method):
    base = plain_folders["flan"]
    model = get_peft_model(T5WithFusion(base), copy.deepcopy(METHODS[method]))
    batch = inputs_for(model)
    step(model, batch)
    model.eval().save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(T5WithFusion(base), tmp_path).eval()
    batch["decoder_input_ids"] = batch.pop("labels")  # With labels, PEFT's AdaLoRA needs training mode.
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_generates(flan, inputs_for, method):
    batch = {name: value for name, value in inputs_for(flan).items() if name != "labels"}
    model = get_peft_model(flan, copy.deepcopy(METHODS[method])).eval()
    first = []
    for vectors in (batch["lexical_embeds"], batch["lexical_embeds"].roll(1, 0)):
        options = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
        first.append(model.generate(**batch | {"lexical_embeds": vectors}, **options).logits[0])
    assert not torch.allclose(*first)


def test_lora_acts_on_q_and_v_by_default(flan):
    model = get_peft_model(flan, LoraConfig(**S2S))
    assert {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith(".lora_A")} == {"q", "v"}


def test_recommended_lora(flan):
    config = flan.lora_config()
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (32, 32, 0.05, "none")
    assert set(config.target_modules) == {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}
    assert config.modules_to_save == ["fusion"] and config.task_type == "SEQ_2_SEQ_LM"
    changed = flan.lora_config(r=4, target_modules=["o"], use_rslora=True)
    assert changed.r == 4 and set(changed.target_modules) == {"o"} and changed.use_rslora
    assert changed.modules_to_save == ["fusion"]


def test_recommended_lora_trains_and_reloads_the_fusion_layer(plain_folders, tmp_path, inputs_for):
    base = plain_folders["flan"]
    model = get_peft_model(T5WithFusion(base), T5WithFusion(base).lora_config())
    batch = inputs_for(model)
    _, changed = step(model, batch)
    assert any("fusion" in name and "projection.weight" in name for name in changed)
    assert any("fusion" in name and "norm.weight" in name for name in changed)
    assert any("lora_B" in name for name in changed)
    model.eval().save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(T5WithFusion(base), tmp_path).eval()
    assert torch.equal(reloaded(**batch).logits, model(**batch).logits)
    fresh = T5WithFusion(base).encoder.fusion.projection.weight
    trained = reloaded.get_base_model().encoder.fusion.modules_to_save["default"].projection.weight
    assert not torch.equal(fresh, trained)


def test_lora_config_without_peft(flan, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="makes a config of peft, and peft is not installed. Type `pip install peft`"):
        flan.lora_config()


def test_a_frozen_fusion_layer_is_reported_once(flan, inputs_for, logged_messages, monkeypatch):
    monkeypatch.setenv("T5FUSION_PEFT_HOOK", "0")  # as if this package were not imported
    model = get_peft_model(flan, LoraConfig(**S2S))
    batch = inputs_for(flan)
    model.eval()(**batch)
    assert not any(FROZEN in message for message in logged_messages())
    model.train()
    for _ in range(3):
        model(**batch)
    told = [message for message in logged_messages() if FROZEN in message]
    assert len(told) == 1 and "`import t5fusion`" in told[0] and "modules_to_save=['fusion']" in told[0]


@pytest.mark.parametrize("modules_to_save", [None, []], ids=["trains", "meant to be frozen"])
def test_an_intended_fusion_layer_is_not_reported(flan, inputs_for, logged_messages, modules_to_save):
    model = get_peft_model(flan, LoraConfig(**S2S, modules_to_save=modules_to_save)).train()
    model(**inputs_for(flan))
    assert not any(FROZEN in message for message in logged_messages())


@pytest.mark.parametrize("recommended", [False, True])
def test_merged_equals(plain_folders, tmp_path, inputs_for, recommended):
    fused = T5WithFusion(plain_folders["flan"])
    model = get_peft_model(fused, fused.lora_config() if recommended else LoraConfig(**S2S))
    batch = inputs_for(fused)
    step(model, batch)
    with torch.no_grad():
        expected = model.eval()(**batch).logits
    merged = model.merge_and_unload()
    assert type(merged) is T5WithFusion
    merged.save_pretrained(tmp_path)
    with torch.no_grad():
        logits = merged(**batch).logits
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(T5WithFusion(tmp_path).eval()(**batch).logits, logits)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(plain_folders, inputs_for, reentrant):
    """Gradients of LoRA and the fusion layer are the same as without."""
    flan = T5WithFusion(plain_folders["flan"], dropout_rate=0.0)
    batch = inputs_for(flan)
    model = get_peft_model(flan, flan.lora_config(lora_dropout=0.0))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train().zero_grad()
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert any("fusion" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
        assert "lora_A" in name or gradient.abs().sum() > 0


@pytest.fixture
def trained(plain_folders, tmp_path, inputs_for):
    """A folder with an adapter and its fusion layer, a batch, and the logits of the trained model."""
    base = T5WithFusion(plain_folders["flan"])
    model = get_peft_model(base, base.lora_config(r=4))
    batch = inputs_for(base)
    step(model, batch)
    model.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return tmp_path / "adapter", batch, model(**batch).logits


@torch.no_grad()
def test_the_folder_of_an_adapter_loads_with_its_base_model(trained):
    folder, batch, expected = trained
    model = T5WithFusion(folder, adapter_name="mine")
    assert model.active_adapters() == ["mine"] and torch.equal(model.eval()(**batch).logits, expected)


@pytest.mark.parametrize("loader", [AutoModelForSeq2SeqLM, AutoPeftModelForSeq2SeqLM])
def test_no_other_class_loads_the_plain_t5_beneath_an_adapter(plain_folders, trained, loader):
    folder, _, _ = trained
    name = f"T5WithFusion({plain_folders['flan']})"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == name
    told = "is not on a Hub yet. Type T5WithFusion.from_pretrained" if "Peft" in loader.__name__ else re.escape(name)
    with pytest.raises(OSError, match=told):
        loader.from_pretrained(folder)
    assert T5WithFusion.from_pretrained(name).config.backbone == str(plain_folders["flan"])


@torch.no_grad()
@pytest.mark.parametrize("wrapped_first", [False, True])
def test_an_adapter_of_a_resized_model_holds_its_table(plain_folders, tmp_path, inputs_for, wrapped_first):
    base = T5WithFusion(plain_folders["flan"])
    batch = inputs_for(base)
    rows = base.config.vocab_size + 3
    if not wrapped_first:
        base.resize_token_embeddings(rows)
    model = get_peft_model(base, base.lora_config(r=4)).eval()
    if wrapped_first:
        base.resize_token_embeddings(rows)
    model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=re.escape(f"T5WithFusion({plain_folders['flan']})")):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    base = T5WithFusion(plain_folders["flan"])
    base.resize_token_embeddings(rows)
    assert torch.equal(PeftModel.from_pretrained(base, tmp_path).eval()(**batch).logits, model(**batch).logits)


def test_an_adapter_of_transformers_cannot_hold_a_resized_table(flan, tmp_path):
    flan.add_adapter(LoraConfig(**S2S))
    flan.resize_token_embeddings(170)
    with pytest.raises(ValueError, match="was resized to 170 rows, and transformers saves an adapter without it"):
        flan.save_pretrained(tmp_path)
    assert not [*tmp_path.iterdir()]


@torch.no_grad()
def test_an_adapter_loaded_into_a_fused_model(plain_folders, trained):
    folder, batch, expected = trained
    model = T5WithFusion(plain_folders["flan"])
    untuned = model.eval()(**batch).logits
    model.load_adapter(folder)
    assert torch.equal(model(**batch).logits, expected) and not any(p.requires_grad for p in model.parameters())
    model.disable_adapters()
    assert torch.equal(model(**batch).logits, untuned)
    with pytest.raises(ValueError, match="the model already has an adapter 'default'. Pass a different `adapter_name`"):
        model.load_adapter(folder)


@torch.no_grad()
def test_the_last_of_several_loaded_adapters_is_active(plain_folders, tmp_path, inputs_for):
    names, expected = ("0", "block"), {}  # The names of T5's own weights contain these.
    for seed, name in enumerate(names):
        model = T5WithFusion(plain_folders["flan"])
        batch = inputs_for(model)
        torch.manual_seed(seed)
        model = get_peft_model(model, model.lora_config(r=4, init_lora_weights=False)).eval()
        model.get_base_model().encoder.fusion.modules_to_save["default"].projection.weight.add_(seed + 1)
        expected[name] = model(**batch).logits
        model.save_pretrained(tmp_path / name)
    model = T5WithFusion(plain_folders["flan"])
    for name in names:
        model.load_adapter(tmp_path / name, name)
        assert model.active_adapters() == [name] and torch.equal(model(**batch).logits, expected[name])
    model.set_adapter("0")
    assert torch.equal(model(**batch).logits, expected["0"])


@torch.no_grad()
def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(plain_folders, trained, tmp_path):
    folder, batch, expected = trained
    wide = T5WithFusion(plain_folders["flan"], lexical_dim=7)
    get_peft_model(wide, wide.lora_config(r=4, init_lora_weights=False)).save_pretrained(tmp_path / "wide")
    lacking = shutil.copytree(folder, tmp_path / "lacking")
    weights = load_file(lacking / "adapter_model.safetensors")
    save_file(
        {key: value for key, value in weights.items() if "fusion" not in key}, lacking / "adapter_model.safetensors"
    )
    model = T5WithFusion(plain_folders["flan"]).eval()
    untuned = model(**batch).logits
    width = "with `lexical_dim` 7, but this model has 384. Load both with"
    for bad, named in ((tmp_path / "wide", width), (lacking, "does not fit this model .*fusion")):
        with pytest.raises(ValueError, match=named):
            model.load_adapter(bad)
        assert torch.equal(model(**batch).logits, untuned)
    model.load_adapter(folder)
    assert torch.equal(model(**batch).logits, expected)


def test_an_adapter_can_be_loaded_for_more_training(plain_folders, trained):
    folder, batch, _ = trained
    model = T5WithFusion(plain_folders["flan"])
    model.load_adapter(folder, is_trainable=True)
    _, changed = step(model, batch)
    assert any("lora_A" in name for name in changed) and any("fusion.modules_to_save" in name for name in changed)
    assert all("lora_" in name or "modules_to_save" in name for name in changed)


@torch.no_grad()
def test_in_half_precision_an_adapter_stays_in_fp32(plain_folders, trained):
    """The adapter's weights keep their exact values in fp32, as PEFT loads them, beside a base model in bf16."""
    folder, batch, _ = trained
    ours = T5WithFusion(folder, dtype=torch.bfloat16).eval()
    theirs = PeftModel.from_pretrained(T5WithFusion(plain_folders["flan"], dtype=torch.bfloat16), folder).eval()
    assert ours.dtype == torch.bfloat16 and torch.equal(ours(**batch).logits, theirs(**batch).logits)


@torch.no_grad()
def test_a_config_stands_for_its_base_model_and_the_adapter_beside_it(plain_folders, trained, flan):
    folder, batch, expected = trained
    write_code(flan, folder)
    assert torch.equal(T5WithFusion(folder).eval()(**batch).logits, expected)
    for file in folder.glob("adapter_*"):
        file.unlink()
    with pytest.raises(OSError, match=r"holds an adapter, but its adapter_config.json cannot be read"):
        T5WithFusion(folder)

"""The fusion layer trains and is saved with every adapter. Saving refuses a model that a reload would change."""

import json
import os

import pytest
import torch
from datasets import Dataset
from peft import (
    IA3Config,
    KasaConfig,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
    inject_adapter_in_model,
)
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration, Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5WithFusion
from t5fusion.hooks.trainer_hook import FusionCallback

S2S = {"task_type": TaskType.SEQ_2_SEQ_LM}
QV = {**S2S, "r": 4, "target_modules": ["q", "v"], "init_lora_weights": False}


def fusion_trains(model):
    return any("fusion" in name and parameter.requires_grad for name, parameter in model.named_parameters())


@pytest.fixture
def base(plain_folders):
    return plain_folders["flan"]


@torch.no_grad()
def logits(model, batch):
    return model.eval()(**batch).logits


# Putting an adapter on


def put_on_by_get_peft_model(model, config):
    return get_peft_model(model, config)


def put_on_by_transformers(model, config):
    model.add_adapter(config)
    return model


def put_on_by_injection(model, config):
    return inject_adapter_in_model(config, model)


def put_on_as_a_second(model, config):
    peft_model = get_peft_model(model, IA3Config(**S2S) if isinstance(config, IA3Config) else LoraConfig(**QV))
    peft_model.add_adapter("second", config)
    peft_model.set_adapter("second")
    return peft_model


WAYS = [put_on_by_get_peft_model, put_on_by_transformers, put_on_by_injection, put_on_as_a_second]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [LoraConfig, IA3Config])
def test_the_fusion_layer_trains_with_every_way_to_add_an_adapter(base, way, kind):
    assert fusion_trains(way(T5WithFusion(base), kind(**S2S)))


def test_a_config_can_be_used_again(base, tmp_path, inputs_for):
    config = LoraConfig(**QV)
    peft_model = get_peft_model(T5WithFusion(base), config)
    change_projection(peft_model.get_base_model())
    batch = inputs_for(peft_model)
    peft_model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(T5WithFusion(base), tmp_path, config=config)
    assert again.peft_config["default"] is config and torch.equal(logits(again, batch), logits(peft_model, batch))


def test_the_fusion_layer_is_counted_and_saved(base, tmp_path):
    peft_model = get_peft_model(T5WithFusion(base), LoraConfig(**QV))
    frozen = get_peft_model(T5WithFusion(base), LoraConfig(**QV, modules_to_save=[]))
    size = sum(parameter.numel() for parameter in T5WithFusion(base).encoder.fusion.parameters())
    assert peft_model.get_nb_trainable_parameters()[0] == frozen.get_nb_trainable_parameters()[0] + size
    peft_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == ["fusion"]


@pytest.mark.parametrize("config", [LoraConfig(**QV), IA3Config(**S2S, init_ia3_weights=False)], ids=["LoRA", "IA3"])
def test_the_fusion_layer_stays_when_adapters_are_merged(base, inputs_for, config):
    peft_model = get_peft_model(T5WithFusion(base), config)
    change_projection(peft_model.get_base_model())
    batch, fusion = inputs_for(peft_model), peft_model.get_base_model().encoder.fusion.modules_to_save["default"]
    expected = logits(peft_model, batch)
    merged = peft_model.merge_and_unload()
    assert merged.encoder.fusion is fusion
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-4)


def test_other_modules_to_save_are_kept(base):
    peft_model = get_peft_model(T5WithFusion(base), LoraConfig(**QV, modules_to_save=["lm_head"]))
    assert peft_model.peft_config["default"].modules_to_save == ["lm_head", "fusion"] and fusion_trains(peft_model)


@pytest.mark.parametrize("named", [["fusion"], ["encoder.fusion"], ["projection"]])
def test_the_fusion_layer_is_not_named_twice(base, named):
    peft_model = get_peft_model(T5WithFusion(base), LoraConfig(**QV, modules_to_save=named))
    assert peft_model.peft_config["default"].modules_to_save == named and fusion_trains(peft_model)


def test_all_linear_excludes_the_projection_of_the_fusion_layer(base):
    peft_model = get_peft_model(T5WithFusion(base), LoraConfig(**S2S, target_modules="all-linear"))
    assert fusion_trains(peft_model) and not any("fusion" in n and "lora_" in n for n, _ in peft_model.named_modules())


def test_an_adapter_records_that_the_fusion_layer_is_frozen(base, tmp_path):
    get_peft_model(T5WithFusion(base), LoraConfig(**QV, modules_to_save=[])).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == []
    assert not fusion_trains(PeftModel.from_pretrained(T5WithFusion(base), tmp_path, is_trainable=True))


def test_a_variable_switches_the_hook_off(base, monkeypatch):
    monkeypatch.setenv("T5FUSION_PEFT_HOOK", "0")
    assert not fusion_trains(get_peft_model(T5WithFusion(base), LoraConfig(**QV)))


def test_a_config_can_be_used_on_a_plain_t5_afterwards(base, tmp_path, inputs_for):
    config = LoraConfig(**QV)
    get_peft_model(T5WithFusion(base), config)
    plain = get_peft_model(T5ForConditionalGeneration.from_pretrained(base), config)
    assert all("lora_" in name for name, parameter in plain.named_parameters() if parameter.requires_grad)
    plain.save_pretrained(tmp_path)
    batch = inputs_for(T5WithFusion(base), vectors=(0, 0))
    batch = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    again = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(base), tmp_path)
    assert torch.equal(logits(again, batch), logits(plain, batch))


def test_other_models_are_unchanged(base):
    config = LoraConfig(**QV)
    peft_model = get_peft_model(T5ForConditionalGeneration.from_pretrained(base), config)
    assert peft_model.peft_config["default"] is config and config.modules_to_save is None and config.revision is None
    decoder = get_peft_model(T5WithFusion(base).decoder, LoraConfig(r=2, target_modules=["q"]))
    assert decoder.peft_config["default"].modules_to_save is None


@pytest.mark.parametrize(
    "load", [PeftModel.from_pretrained, T5ForConditionalGeneration.load_adapter], ids=["peft", "transformers"]
)
def test_a_plain_model_refuses_the_saved_adapter_of_a_fused_model(base, tmp_path, load, monkeypatch):
    get_peft_model(T5WithFusion(base), LoraConfig(**QV)).save_pretrained(tmp_path)
    plain = T5ForConditionalGeneration.from_pretrained(base)
    with pytest.raises(ValueError, match=r"a T5ForConditionalGeneration has no fusion layer.*T5WithFusion.from_pre"):
        load(plain, str(tmp_path))
    monkeypatch.setenv("T5FUSION_PEFT_HOOK", "0")
    PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(base), tmp_path)


# Saving a model that a reload would change


def change_projection(model):
    with torch.no_grad():
        model.encoder.fusion.projection.weight.mul_(2)


def rows_for(model, count=40):
    """Return rows whose vectors determine their targets, which are four."""
    numbers = torch.Generator().manual_seed(0)
    kinds = torch.randint(4, (count,), generator=numbers)
    labels = [[5 + 3 * kind, 6 + 3 * kind, 1] for kind in kinds.tolist()]
    noise = 0.1 * torch.randn(count, model.config.lexical_dim, generator=numbers)
    vectors = torch.nn.functional.one_hot(kinds, model.config.lexical_dim) + noise
    pairs = zip(labels, vectors.tolist(), strict=True)
    return [{"input_ids": [5, 6, 1], "labels": ids, "lexical_embeds": vector} for ids, vector in pairs]


@pytest.mark.parametrize("change", [change_projection, lambda model: model.fit_fusion(rows_for(model))])
@pytest.mark.parametrize("config", [LoraConfig(**QV), PromptTuningConfig(**S2S, num_virtual_tokens=2)])
def test_a_fusion_layer_changed_before_is_saved_with_the_adapter(base, tmp_path, inputs_for, change, config):
    model = T5WithFusion(base)
    change(model)
    peft_model, batch = get_peft_model(model, config), inputs_for(model)
    peft_model.save_pretrained(tmp_path)
    assert torch.equal(
        logits(PeftModel.from_pretrained(T5WithFusion(base), tmp_path), batch), logits(peft_model, batch)
    )


def train_beside(peft_model):
    """Train the fusion layer together with an adapter that does not hold it."""
    fusion = peft_model.get_base_model().encoder.fusion.requires_grad_(True)
    with torch.no_grad():
        fusion.projection.bias.add_(0.1)


def train_another_matrix(peft_model):
    with torch.no_grad():
        peft_model.get_base_model().decoder.block[0].layer[0].SelfAttention.o.weight.add_(1e-3)


def merge_into_base(peft_model):
    peft_model.add_adapter("other", LoraConfig(**QV, modules_to_save=[]))
    peft_model.set_adapter("other")
    layer = peft_model.get_base_model().encoder.block[0].layer[0].SelfAttention.q
    layer.merge(adapter_names=["other"])
    layer.merged_adapters.clear()  # PEFT then regards the merge as permanent.


def train_one_number(peft_model):
    with torch.no_grad():
        peft_model.get_base_model().encoder.fusion.projection.weight[3, 7] += 1


def give_a_token_its_embedding(peft_model):
    """T5's table has spare rows for the tokens of a user, so it need not be resized for them."""
    with torch.no_grad():
        peft_model.get_base_model().shared.weight[141] = 0.5


CHANGES = [train_beside, train_another_matrix, merge_into_base, train_one_number, give_a_token_its_embedding]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_base_model_is_refused(base, tmp_path, change):
    peft_model = get_peft_model(T5WithFusion(base), LoraConfig(**QV, modules_to_save=[]))
    peft_model.save_pretrained(tmp_path / "before")
    change(peft_model)
    with pytest.raises(ValueError, match="has changed since it was loaded, and the adapter 'default' does not hold"):
        peft_model.save_pretrained(tmp_path / "after", selected_adapters=["default"])
    assert not (tmp_path / "after").exists()


def test_a_table_that_was_changed_beneath_trained_tokens_is_refused(base, tmp_path):
    peft_model = get_peft_model(T5WithFusion(base), LoraConfig(**QV, trainable_token_indices=[5, 6]))
    with torch.no_grad():
        peft_model.get_base_model().shared.token_adapter.base_layer.weight[20] += 1
    with pytest.raises(ValueError, match=r"does not hold \d changed weights?, such as shared.weight: a reload"):
        peft_model.save_pretrained(tmp_path)


def test_a_changed_table_may_be_saved_with_the_adapter(base, tmp_path, inputs_for):
    peft_model = get_peft_model(T5WithFusion(base), LoraConfig(**QV))
    batch = inputs_for(peft_model)
    batch["input_ids"][:, 1] = 141
    give_a_token_its_embedding(peft_model)
    peft_model.save_pretrained(tmp_path, save_embedding_layers=True)
    expected = logits(peft_model, batch)
    assert torch.equal(logits(PeftModel.from_pretrained(T5WithFusion(base), tmp_path), batch), expected)
    assert torch.equal(logits(T5WithFusion.from_pretrained(tmp_path), batch), expected)


def test_a_kasa_adapter_is_saved(base, tmp_path, inputs_for):
    """Adding KaSA changes the base weights. A reload changes them in the same way."""
    kasa = LoraConfig(**QV | {"init_lora_weights": True}, kasa_config=KasaConfig())
    model = T5WithFusion(base)
    peft_model, batch = get_peft_model(model, kasa), inputs_for(model)
    peft_model.save_pretrained(tmp_path)
    assert torch.equal(
        logits(PeftModel.from_pretrained(T5WithFusion(base), tmp_path), batch), logits(peft_model, batch)
    )


@pytest.mark.parametrize("config", [LoraConfig(**QV), PromptTuningConfig(**S2S, num_virtual_tokens=2)])
def test_a_disabled_adapter_leaves_the_base_model(base, inputs_for, config):
    """This holds for prompt learning too, where PEFT would keep the trained fusion layer in use."""
    model = T5WithFusion(base)
    batch = inputs_for(model)
    expected = logits(model, batch)
    peft_model = get_peft_model(model, config)
    with torch.no_grad():
        model.encoder.fusion.modules_to_save["default"].projection.weight.mul_(2)
    trained = logits(peft_model, batch)
    with peft_model.disable_adapter():
        assert torch.equal(logits(peft_model, batch), expected)
    assert torch.equal(logits(peft_model, batch), trained)
    assert fusion_trains(peft_model)


def test_an_adapter_of_transformers_is_refused_too(base, tmp_path):
    model = T5WithFusion(base)
    model.add_adapter(LoraConfig(**QV, modules_to_save=[]))
    change_projection(model)
    with pytest.raises(ValueError, match="a reload would give a different model"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_another_dtype_is_not_a_change(base, tmp_path, cast):
    peft_model = get_peft_model(T5WithFusion(base), LoraConfig(**QV, modules_to_save=[])).to(cast)
    peft_model.save_pretrained(tmp_path)


def test_a_projection_of_another_width_is_refused(base, tmp_path):
    model = T5WithFusion(base)
    model.encoder.fusion.projection = torch.nn.Linear(512, model.config.d_model)
    for folder, saved in (("model", model), ("adapter", get_peft_model(model, LoraConfig(**QV)))):
        with pytest.raises(
            ValueError, match=r"shapes: projection.weight 16x512; expected projection.weight 16x384, which"
        ):
            saved.save_pretrained(tmp_path / folder)


def test_a_layer_of_another_layout_is_refused(base, tmp_path):
    model = T5WithFusion(base)
    model.encoder.fusion.projection = torch.nn.Sequential(
        torch.nn.Linear(384, 8), torch.nn.GELU(), torch.nn.Linear(8, model.config.d_model)
    )
    layout = r"of these shapes: .*projection.0.weight 8x384, .*; expected projection.bias 16, projection.weight 16x384"
    with pytest.raises(ValueError, match=layout):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=layout):
        get_peft_model(model, LoraConfig(**QV)).save_pretrained(tmp_path / "adapter")


def test_others_can_read_an_adapter(base, tmp_path):
    peft_model = get_peft_model(T5WithFusion(base), LoraConfig(**QV))
    peft_model.add_adapter("second", LoraConfig(**QV))
    mask = os.umask(0o027)
    try:
        peft_model.save_pretrained(tmp_path)
    finally:
        os.umask(mask)
    assert [oct(file.stat().st_mode & 0o777) for file in tmp_path.rglob("*.safetensors")] == ["0o640"] * 2


# Options of the model that an adapter records


CHOICES = [{"lexical_dim": 7}, {"lexical_token_id": 150}, {"dropout_rate": 0.3}, {"lexical_dim": 7, "num_layers": 1}]


@pytest.mark.parametrize("choices", CHOICES)
def test_the_folder_of_an_adapter_gives_the_model_back(base, tmp_path, inputs_for, choices):
    model = T5WithFusion(base, **choices)
    batch = inputs_for(model)
    peft_model = get_peft_model(model, LoraConfig(**QV))
    peft_model.save_pretrained(tmp_path)
    reloaded = T5WithFusion.from_pretrained(tmp_path)
    assert {name: getattr(reloaded.config, name) for name in choices} == choices
    assert torch.equal(logits(reloaded, batch), logits(peft_model, batch))


def test_a_subfolder_is_part_of_the_name(base, tmp_path, inputs_for, save_plain_t5):
    save_plain_t5(tmp_path / "repo", seed=5)
    save_plain_t5(tmp_path / "repo" / "inner", seed=6)
    model = T5WithFusion(tmp_path / "repo", subfolder="inner")
    peft_model, batch = get_peft_model(model, LoraConfig(**QV)), inputs_for(model)
    peft_model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(T5WithFusion.from_pretrained(tmp_path / "adapter"), batch), logits(peft_model, batch))


def test_another_placeholder_than_in_training_is_refused(base, tmp_path):
    get_peft_model(T5WithFusion(base, lexical_token_id=150), LoraConfig(**QV)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="with `lexical_token_id` 150, but this model has 135"):
        PeftModel.from_pretrained(T5WithFusion(base), tmp_path)


@pytest.mark.parametrize("rows", [136, 170], ids=["shrunk", "grown"])
@pytest.mark.parametrize("kind", ["v1.1", "flan"])
@pytest.mark.parametrize("resized_first", [True, False])
def test_a_resized_table_is_reloaded(plain_folders, tmp_path, inputs_for, kind, rows, resized_first):
    model = T5WithFusion(plain_folders[kind])
    batch = inputs_for(model)
    if resized_first:
        model.resize_token_embeddings(rows)
    peft_model = get_peft_model(model, LoraConfig(**QV))
    if not resized_first:
        model.resize_token_embeddings(rows)
    peft_model.save_pretrained(tmp_path)
    expected = logits(peft_model, batch)
    assert torch.equal(logits(T5WithFusion.from_pretrained(tmp_path), batch), expected)
    over = PeftModel.from_pretrained(T5WithFusion(plain_folders[kind]), tmp_path)
    assert torch.equal(logits(over, batch), expected) and over.get_base_model().shared.num_embeddings == rows


@pytest.mark.parametrize("kind", ["v1.1", "flan"])
@pytest.mark.parametrize("rows", [136, 170], ids=["shrunk", "grown"])
@pytest.mark.parametrize("with_tables", [None, True])
def test_trained_tokens_of_a_resized_table_are_reloaded(plain_folders, tmp_path, inputs_for, kind, rows, with_tables):
    model = T5WithFusion(plain_folders[kind])
    batch = inputs_for(model)
    model.resize_token_embeddings(rows)
    peft_model = get_peft_model(model, LoraConfig(**QV, trainable_token_indices=[5, rows - 1]))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(1)
    peft_model.save_pretrained(tmp_path, **({} if with_tables is None else {"save_embedding_layers": with_tables}))
    expected = logits(peft_model, batch)
    assert torch.equal(logits(T5WithFusion.from_pretrained(tmp_path), batch), expected)


def test_trained_tokens_are_reloaded_if_the_tables_were_saved_too(base, tmp_path, inputs_for):
    model = T5WithFusion(base)
    peft_model, batch = get_peft_model(model, LoraConfig(**QV, trainable_token_indices=[5, 6])), inputs_for(model)
    peft_model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert torch.equal(logits(T5WithFusion.from_pretrained(tmp_path), batch), logits(peft_model, batch))


def test_the_adapter_of_a_resized_model_is_not_put_on_a_plain_t5(plain_folders, tmp_path, inputs_for):
    """AutoPeft resizes a base model to the tokenizer in the adapter's folder, so the tables would fit."""
    folder = plain_folders["flan"]
    model = T5WithFusion(folder)
    batch = inputs_for(model)
    model.resize_token_embeddings(170)
    peft_model = get_peft_model(model, LoraConfig(**QV))
    peft_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"T5WithFusion({folder})"
    assert peft_model.peft_config["default"].base_model_name_or_path == str(folder)
    assert torch.equal(logits(T5WithFusion.from_pretrained(tmp_path), batch), logits(peft_model, batch))
    plain = T5ForConditionalGeneration.from_pretrained(folder)
    plain.resize_token_embeddings(170)
    with pytest.raises(ValueError, match="a T5ForConditionalGeneration has no fusion layer"):
        PeftModel.from_pretrained(plain, tmp_path)
    # Earlier code recorded the plain name. Such adapters still load.
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(folder)}))
    assert torch.equal(logits(T5WithFusion.from_pretrained(tmp_path), batch), logits(peft_model, batch))


def test_a_resized_table_is_saved_where_the_hub_cannot_be_asked(base, tmp_path):
    """PEFT asks the Hub for the size of the base model's table; offline, it assumes that it was not resized."""
    model = T5WithFusion(base)
    model.resize_token_embeddings(170)
    peft_model = get_peft_model(model, LoraConfig(**QV))
    peft_model.peft_config["default"].base_model_name_or_path = "google/not-cached"
    peft_model.save_pretrained(tmp_path)
    assert any(name.endswith("shared.weight") for name in load_file(tmp_path / "adapter_model.safetensors"))


def test_trained_tokens_are_reloaded(base, tmp_path, inputs_for):
    model = T5WithFusion(base)
    peft_model, batch = get_peft_model(model, LoraConfig(**QV, trainable_token_indices=[5, 6])), inputs_for(model)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(1)
    peft_model.save_pretrained(tmp_path)
    assert torch.equal(logits(T5WithFusion.from_pretrained(tmp_path), batch), logits(peft_model, batch))


def test_the_start_does_not_depend_on_the_default_dtype(base):
    expected = T5WithFusion(base).encoder.fusion.state_dict()
    try:
        torch.set_default_dtype(torch.float64)
        model = T5WithFusion(base, dtype=torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in model.encoder.fusion.state_dict().items():
        assert torch.equal(value, expected[name]), name


DEFAULT_DEVICE = """
import json, sys, torch
torch.set_default_device("meta")
from t5fusion import T5WithFusion
from t5fusion.modeling_t5fusion import initial_projection

start = initial_projection(torch.Size([16, 384]))
torch.set_default_device("cpu")  # transformers loads no weights to "meta"
model = T5WithFusion(sys.argv[1])
weight = model.encoder.fusion.projection.weight
assert torch.equal(start, weight)
torch.set_default_device("meta")
model.fit_fusion(json.load(open(sys.argv[2])))
torch.set_default_device("cpu")
torch.save(weight.detach(), sys.argv[3])
"""


def test_the_start_does_not_depend_on_the_default_device(base, run_python, tmp_path):
    """The default device "meta" stands in for a GPU: a tensor that is made there by mistake has no numbers."""
    model = T5WithFusion(base)
    rows = rows_for(model)
    model.fit_fusion(rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    run_python(DEFAULT_DEVICE, base, tmp_path / "rows.json", tmp_path / "weight.pt")
    assert torch.equal(torch.load(tmp_path / "weight.pt"), model.encoder.fusion.projection.weight)


# Fitting the layer


@pytest.mark.parametrize("kind", [list, iter, Dataset.from_list], ids=["list", "iterator", "Dataset"])
def test_it_is_fitted_to_rows_of_any_kind_before_or_after_the_adapter(base, kind):
    before, after = T5WithFusion(base), T5WithFusion(base)
    rows = rows_for(before)
    explained = before.fit_fusion(rows)
    peft_model = get_peft_model(after, LoraConfig(**QV))
    assert peft_model.fit_fusion(kind(rows)) == pytest.approx(explained)
    fitted = after.encoder.fusion.modules_to_save["default"].projection.weight
    torch.testing.assert_close(fitted, before.encoder.fusion.projection.weight)
    assert not torch.equal(after.encoder.fusion.original_module.projection.weight, fitted)


def test_what_would_not_be_saved_is_not_fitted(base):
    model = T5WithFusion(base)
    get_peft_model(model, LoraConfig(**QV, modules_to_save=[]))
    with pytest.raises(ValueError, match="'default' does not hold the fusion layer, so fitted weights would not be"):
        model.fit_fusion(rows_for(model))


def test_the_error_names_the_active_adapter(base):
    model = T5WithFusion(base)
    peft_model = get_peft_model(model, LoraConfig(**QV), adapter_name="holds")
    peft_model.add_adapter("lacks", LoraConfig(**QV, modules_to_save=[]))
    peft_model.set_adapter("lacks")
    with pytest.raises(ValueError, match="the active adapter 'lacks' does not hold the fusion layer"):
        model.fit_fusion(rows_for(model))


# In the Trainer


def trainer_for(model, rows, folder, **more):
    options = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "report_to": [], "use_cpu": True}
    arguments = TrainingArguments(str(folder), disable_tqdm=True, save_strategy="no", **options | more)
    from_rows = {"train_dataset": rows, "eval_dataset": rows[:20]}
    tokenizer = pytest.importorskip("shared_fixtures").make_tokenizer()
    return Trainer(model=model, args=arguments, data_collator=DataCollatorWithFusion(tokenizer), **from_rows)


def test_training_starts_a_fusion_layer_with_initial_weights(base, tmp_path, capsys):
    fitted, model = T5WithFusion(base), T5WithFusion(base)
    rows = rows_for(model)
    fitted.fit_fusion(rows)
    peft_model = get_peft_model(model, LoraConfig(**QV))
    trainer_for(peft_model, rows, tmp_path, learning_rate=0.0).train()
    weight = model.encoder.fusion.modules_to_save["default"].projection.weight
    assert torch.equal(weight, fitted.encoder.fusion.projection.weight)
    assert capsys.readouterr().err.count("fit_fusion: the vectors of 40 rows explain") == 2


@pytest.mark.parametrize("why", ["callback removed", "switched off", "started", "frozen"])
def test_training_leaves_alone_a_fusion_layer_that(base, tmp_path, monkeypatch, why):
    model = T5WithFusion(base)
    rows = rows_for(model)
    if why == "started":
        change_projection(model)
    if why == "switched off":
        monkeypatch.setenv("T5FUSION_TRAINER_HOOK", "0")
    before = model.encoder.fusion.projection.weight.detach().clone()
    peft_model = get_peft_model(model, LoraConfig(**QV, modules_to_save=[] if why == "frozen" else None))
    trainer = trainer_for(peft_model, rows, tmp_path, learning_rate=0.0)
    if why == "callback removed":
        trainer.remove_callback(FusionCallback)
    trainer.train()
    fusion = model.encoder.fusion
    held = fusion if why == "frozen" else fusion.modules_to_save["default"]
    assert torch.equal(held.projection.weight, before)


def test_useless_vectors_are_reported_once_at_the_end(base, tmp_path, capsys):
    model = T5WithFusion(base)
    rows = [row | {"labels": [7, 8, 1]} for row in rows_for(model)]
    trainer_for(get_peft_model(model, LoraConfig(**QV)), rows, tmp_path, eval_strategy="epoch").train()
    printed = capsys.readouterr().err
    assert printed.count("The vectors do not help: on 20 held-out rows the loss is") == 1
    assert ", or 20 rows are too few to tell. Check" in printed


def test_useful_vectors_are_not_reported(base, tmp_path, capsys):
    model = T5WithFusion(base)
    words = torch.randint(3, 35, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    vectors = torch.nn.functional.one_hot(torch.tensor(words), 384).float()
    pairs = zip(words, vectors.tolist(), strict=True)
    rows = [{"input_ids": [5, 1], "labels": [word, 1], "lexical_embeds": vector} for word, vector in pairs]
    options = {"eval_strategy": "epoch", "num_train_epochs": 12, "learning_rate": 3e-2}
    trainer_for(get_peft_model(model, LoraConfig(**QV)), rows, tmp_path, **options).train()
    assert "The vectors do not help" not in capsys.readouterr().err


@pytest.mark.parametrize("column", ["embeddings", "lexical_vectors"])
def test_a_column_of_vectors_with_another_name_is_reported(base, tmp_path, logged_messages, column):
    """The Trainer drops such a column before the collator or the model can see it."""
    model = T5WithFusion(base)
    rows = [{name.replace("lexical_embeds", column): value for name, value in row.items()} for row in rows_for(model)]
    trainer_for(get_peft_model(model, LoraConfig(**QV)), Dataset.from_list(rows), tmp_path).train()
    assert len([line for line in logged_messages() if "Vectors are read from the column `lexical_embeds`" in line]) == 1


def test_batches_without_vectors_are_not_reported(base, inputs_for, logged_messages):
    model = T5WithFusion(base).train()
    model(**inputs_for(model))
    model(**inputs_for(model, vectors=(0, 0)) | {"lexical_embeds": None})
    assert not any("no vectors" in line for line in logged_messages())

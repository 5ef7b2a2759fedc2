"""The fused model: its computation, building, saving, loading, and errors."""

import copy
import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    BertConfig,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from t5fusion import DataCollatorWithFusion, T5FusionConfig, T5FusionProcessor, T5WithFusion, checking_t5fusion
from t5fusion.checking_t5fusion import check_token_id
from t5fusion.modeling_t5fusion import LexicalFusion

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VECTORS, LENGTHS = (2, 1, 0, 3), (4, 7, 5, 2)
TINY = {"vocab_size": 40, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "lexical_dim": 5}
TINY["decoder_start_token_id"] = 0


def without_vectors(batch):
    return {name: value for name, value in batch.items() if name != "lexical_embeds"}


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def padded(batch, left, right):
    """Return the batch with more padding, on either side."""
    more = {name: torch.nn.functional.pad(batch[name], (left, right)) for name in ("input_ids", "attention_mask")}
    return batch | more


# --- what it computes


def test_without_vectors_it_is_the_plain_t5(plain_folder, inputs_for):
    plain = T5ForConditionalGeneration.from_pretrained(plain_folder).eval()
    fused = T5WithFusion(plain_folder).eval()
    batch = without_vectors(inputs_for(fused, (0, 0)))
    expected, output = plain(**batch), fused(**batch)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)
    assert torch.equal(fused(**batch, lexical_embeds=torch.zeros(2, 0, 384)).logits, expected.logits)
    weights = fused.state_dict()
    assert all(torch.equal(weights.pop(name), value) for name, value in plain.state_dict().items())
    assert set(weights) == {f"encoder.fusion.{name}" for name in LexicalFusion(fused.config).state_dict()}


def test_without_vectors_its_gradients_are_the_plain_ones(plain_folder, inputs_for):
    models = T5ForConditionalGeneration.from_pretrained(plain_folder).eval(), T5WithFusion(plain_folder).eval()
    batch = without_vectors(inputs_for(models[1], (0, 0)))
    for model in models:
        model(**batch).loss.backward()
    fused = dict(models[1].named_parameters())
    assert all(torch.equal(fused[name].grad, parameter.grad) for name, parameter in models[0].named_parameters())


def test_an_untied_head_stays_untied(plain_folders):
    weights = load_file(plain_folders["flan"] / "model.safetensors")
    fused = T5WithFusion(plain_folders["flan"])
    assert torch.equal(fused.lm_head.weight, weights["lm_head.weight"])
    assert torch.equal(fused.shared.weight, weights["shared.weight"])
    assert not torch.equal(fused.lm_head.weight, fused.shared.weight)
    assert fused.encoder.embed_tokens.weight is fused.shared.weight
    from_config = T5WithFusion(fused.config)
    from_config.load_state_dict(fused.state_dict())
    assert torch.equal(from_config.lm_head.weight, weights["lm_head.weight"])


def test_a_vector_changes_only_its_own_row(flan, inputs_for):
    batch = inputs_for(flan, (1, 1, 1), (3, 5, 4))
    before = flan(**batch).logits
    batch["lexical_embeds"][1] *= -1
    moved = (flan(**batch).logits != before).flatten(1).any(1)
    assert moved.tolist() == [False, True, False]


def test_a_vector_takes_the_place_of_its_placeholder(flan, inputs_for):
    batch = inputs_for(flan, (2, 1), (3, 4))
    ids, vectors = batch["input_ids"], batch["lexical_embeds"]
    ids[0, :4] = torch.tensor([flan.config.lexical_token_id, 7, flan.config.lexical_token_id, 8])
    embedded = flan.encoder.embed(ids, lexical_embeds=vectors)
    expected = flan.shared(ids)
    expected[0, 0], expected[0, 2] = flan.encoder.fusion(vectors[0])
    expected[1, 0] = flan.encoder.fusion(vectors[1, 0])
    assert_close(embedded, expected)
    assert torch.equal(
        embedded[ids != flan.config.lexical_token_id], flan.shared(ids)[ids != flan.config.lexical_token_id]
    )


def test_the_order_of_several_vectors_matters(flan, inputs_for):
    batch = inputs_for(flan, (2,), (4,))
    turned = batch | {"lexical_embeds": batch["lexical_embeds"].flip(1)}
    assert not torch.allclose(flan(**batch).logits, flan(**turned).logits, atol=1e-3)


def test_ragged_rows_equal_one_by_one(flan, inputs_for):
    batch = inputs_for(flan, VECTORS, LENGTHS)
    together = flan(**batch).logits
    for row, (count, length) in enumerate(zip(VECTORS, LENGTHS, strict=True)):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        for name in ("input_ids", "attention_mask"):
            alone[name] = alone[name][:, : count + length + 1]
        alone["lexical_embeds"] = alone["lexical_embeds"][:, :count] if count else None
        assert_close(flan(**alone).logits[0], together[row])


@pytest.mark.parametrize(("left", "right"), [(0, 9), (9, 0), (3, 4)])
def test_padding_changes_nothing(flan, inputs_for, left, right):
    batch = inputs_for(flan, VECTORS, LENGTHS)
    assert_close(flan(**padded(batch, left, right)).logits, flan(**batch).logits)


def test_padding_each_row_on_the_left_changes_nothing(flan, inputs_for):
    batch = inputs_for(flan, VECTORS, LENGTHS)
    turned = dict(batch)
    for name in ("input_ids", "attention_mask"):
        spare = batch["attention_mask"].shape[1] - batch["attention_mask"].sum(1)
        turned[name] = torch.stack([row.roll(int(n)) for row, n in zip(batch[name], spare, strict=True)])
    assert not torch.equal(turned["input_ids"], batch["input_ids"])
    assert_close(flan(**turned).logits, flan(**batch).logits)


def test_spare_vectors_of_zeros_change_nothing(flan, inputs_for):
    batch = inputs_for(flan, (2, 1), (4, 4))
    more = batch | {"lexical_embeds": torch.nn.functional.pad(batch["lexical_embeds"], (0, 0, 0, 3))}
    assert torch.equal(flan(**more).logits, flan(**batch).logits)


def test_a_vector_of_zeros_counts_where_it_has_a_placeholder(flan, inputs_for):
    batch = inputs_for(flan, (2, 2), (4, 4))
    batch["lexical_embeds"][0] = 0
    assert torch.isfinite(flan(**batch).logits).all()


def test_two_dimensions_are_one_vector_each(flan, inputs_for):
    batch = inputs_for(flan)
    flat = batch | {"lexical_embeds": batch["lexical_embeds"].squeeze(1)}
    assert torch.equal(flan(**flat).logits, flan(**batch).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_of_other_precisions(flan, inputs_for, dtype):
    batch = inputs_for(flan)
    rounded = batch["lexical_embeds"].to(dtype)
    logits = flan(**batch | {"lexical_embeds": rounded}).logits
    assert torch.equal(logits, flan(**batch | {"lexical_embeds": rounded.float()}).logits)


def test_a_placeholder_past_the_table(save_plain_t5, tmp_path, inputs_for):
    """If a tokenizer fills the embedding table, the placeholder's id has no row, and needs none."""
    folder = save_plain_t5(tmp_path / "full", vocab_size=135)
    fused = T5WithFusion(folder).eval()
    assert fused.config.lexical_token_id >= fused.shared.num_embeddings == 135
    batch = inputs_for(fused)
    within = T5WithFusion(folder, lexical_token_id=30).eval()  # Here, the placeholder has a row.
    other = batch | {"input_ids": batch["input_ids"].where(batch["input_ids"] < 135, 30)}
    other["input_ids"][:, 1:][other["input_ids"][:, 1:] == 30] = 31
    batch["input_ids"][:, 1:][batch["input_ids"][:, 1:] == 30] = 31
    assert torch.equal(fused(**batch).logits, within(**other).logits)
    assert fused.generate(**{k: v for k, v in batch.items() if k != "labels"}, max_new_tokens=3).shape[0] == 2
    fused(**batch).loss.backward()
    embeds = torch.zeros(2, 4, 16)
    sentence = "cannot show where <lexical> stands, because its id, 135, lies past the embedding table of 135"
    with pytest.raises(ValueError, match=sentence):
        fused(inputs_embeds=embeds, lexical_embeds=torch.ones(2, 384), labels=batch["labels"])


def test_inputs_embeds(flan, inputs_for):
    batch = inputs_for(flan, VECTORS, LENGTHS)
    expected = flan(**batch).logits
    rest = {name: batch[name] for name in ("attention_mask", "labels")}
    tokens = flan.shared(batch["input_ids"])
    assert torch.equal(flan(inputs_embeds=tokens, lexical_embeds=batch["lexical_embeds"], **rest).logits, expected)
    embedded = flan.encoder.embed(batch["input_ids"], lexical_embeds=batch["lexical_embeds"])
    assert torch.equal(flan(inputs_embeds=embedded, **rest).logits, expected)


def test_encoder_outputs(flan, inputs_for):
    batch = inputs_for(flan, VECTORS, LENGTHS)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "lexical_embeds")}
    encoded = flan.encoder(**inputs)
    rest = {name: batch[name] for name in ("attention_mask", "labels")}
    expected = flan(**batch).logits
    assert torch.equal(flan(encoder_outputs=encoded, **rest).logits, expected)
    assert torch.equal(flan(encoder_outputs=(encoded[0],), **rest).logits, expected)
    assert torch.equal(flan(encoder_outputs=encoded, **batch).logits, expected)
    assert torch.equal(flan.get_encoder()(**inputs)[0], encoded[0])


def test_hidden_states_attentions_and_tuples(flan, inputs_for):
    flan.set_attn_implementation("eager")
    batch = inputs_for(flan)
    output = flan(**batch, output_hidden_states=True, output_attentions=True)
    length = batch["input_ids"].shape[1]
    assert len(output.encoder_hidden_states) == 3 and len(output.encoder_attentions) == 2
    assert output.encoder_attentions[0].shape == (2, 4, length, length)
    embedded = flan.encoder.embed(batch["input_ids"], lexical_embeds=batch["lexical_embeds"])
    assert torch.equal(output.encoder_hidden_states[0], embedded)
    as_tuple = flan(**batch, return_dict=False)
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits)


def test_sdpa_and_eager_agree(plain_folders, inputs_for):
    models = {}
    for name in ("eager", "sdpa"):
        try:
            models[name] = T5WithFusion(plain_folders["flan"], attn_implementation=name).eval()
        except ValueError as error:  # Some releases of transformers lack it in T5.
            pytest.skip(str(error))
    batch = inputs_for(models["eager"], VECTORS, LENGTHS)
    assert_close(models["sdpa"](**batch).logits, models["eager"](**batch).logits)


def test_resized_table(flan, inputs_for):
    batch = inputs_for(flan, VECTORS, LENGTHS)
    before = flan(**batch).logits
    flan.resize_token_embeddings(200)
    assert flan.encoder.embed_tokens.weight is flan.shared.weight and flan.shared.num_embeddings == 200
    assert_close(flan(**batch).logits[..., :160], before)  # The head keeps its own weights.
    flan.tie_weights()
    assert_close(flan(**batch).logits[..., :160], before)


def test_weights_of_a_model_with_another_table_are_refused(flan, plain_folders):
    """Only an adapter brings a table of its own."""
    rows = flan.shared.num_embeddings
    other = T5WithFusion(plain_folders["flan"])
    other.resize_token_embeddings(200)
    with pytest.raises(RuntimeError, match="size mismatch for shared.weight"):
        flan.load_state_dict(other.state_dict())
    assert flan.shared.num_embeddings == rows


def test_gradients_reach_the_fusion_layer(flan, inputs_for):
    flan.train()(**inputs_for(flan)).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in flan.encoder.fusion.parameters())


@pytest.mark.parametrize("given", ["input_ids", "inputs_embeds"])
def test_without_vectors_the_fusion_layer_gets_gradients_of_zero(flan, inputs_for, given):
    batch = inputs_for(flan, vectors=(0, 0))
    if given == "inputs_embeds":
        batch["inputs_embeds"] = flan.shared(batch.pop("input_ids")).detach()
    for vectors in (None, batch.pop("lexical_embeds")):
        flan.zero_grad()
        flan(**batch, lexical_embeds=vectors).loss.backward()
        assert all(p.grad is not None for name, p in flan.named_parameters() if name != "shared.weight")
        assert not any(p.grad.any() for p in flan.encoder.fusion.parameters())


def test_gradient_checkpointing_changes_nothing(plain_folders, inputs_for):
    flan = T5WithFusion(plain_folders["flan"], dropout_rate=0.0)
    batch = inputs_for(flan)
    gradients = []
    for enable in (lambda: None, flan.gradient_checkpointing_enable):
        enable()
        flan.train().zero_grad()
        flan(**batch).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in flan.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


def test_exported_encoder(flan, inputs_for):
    batch = {k: v for k, v in inputs_for(flan, VECTORS, LENGTHS).items() if k != "labels"}
    exported = torch.export.export(flan.encoder, (), batch)
    assert_close(exported.module()(**batch)[0], flan.encoder(**batch)[0])
    other = {k: v for k, v in inputs_for(flan, VECTORS, LENGTHS, seed=5).items() if k != "labels"}
    assert_close(exported.module()(**other)[0], flan.encoder(**other)[0])


@pytest.mark.slow
def test_compiled(flan, inputs_for):
    torch._dynamo.reset()
    batch = inputs_for(flan, VECTORS, LENGTHS)
    compiled = torch.compile(flan, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(**batch).logits, flan(**batch).logits)
        wrong = batch | {"lexical_embeds": batch["lexical_embeds"].flip(0)}
        with pytest.raises(RuntimeError, match="placeholders and vectors differ in number"):
            compiled(**wrong)


# --- the fusion layer


def test_the_same_base_model_gives_the_same_fusion_layer(plain_folder):
    torch.manual_seed(1)
    first = T5WithFusion(plain_folder).encoder.fusion.state_dict()
    torch.manual_seed(2)
    second = T5WithFusion(plain_folder).encoder.fusion.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert first["projection.weight"].std() > 0


@pytest.mark.parametrize("scale", [1.0, 25.0])
def test_the_vectors_are_as_large_as_the_tokens(save_plain_t5, tmp_path, scale):
    folder = save_plain_t5(tmp_path / "scaled", d_model=64)
    weights = load_file(folder / "model.safetensors")
    weights["shared.weight"] *= scale
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    fused = T5WithFusion(folder)
    size = weights["shared.weight"].square().mean().sqrt()
    norm = fused.encoder.fusion.norm.weight
    assert (norm == norm[0]).all()
    torch.testing.assert_close(norm[0].detach(), size, rtol=5e-3, atol=0)
    vectors = torch.nn.functional.normalize(torch.randn(100, 384), dim=-1)
    projected = fused.encoder.fusion(vectors)
    torch.testing.assert_close(projected.square().mean(-1).sqrt(), size.expand(100), rtol=1e-2, atol=0)
    assert torch.pdist(projected).min() > 0.5 * size


def test_other_base_models_and_sizes_give_other_fusion_layers(plain_folders):
    sizes = {
        T5WithFusion(plain_folders["flan"], lexical_dim=dim).encoder.fusion.projection.weight.shape for dim in (8, 9)
    }
    assert sizes == {(16, 8), (16, 9)}


def test_a_quantised_projection_gets_vectors_not_integers(flan, inputs_for):
    """A quantised linear layer holds integers. Vectors cast to that dtype would become zeros."""

    class Quantised(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear, self.weight = linear, torch.zeros(3, dtype=torch.uint8)

        def forward(self, vectors):
            return self.linear(vectors)

    fusion, vectors = flan.encoder.fusion, inputs_for(flan)["lexical_embeds"]
    expected = fusion(vectors)
    fusion.projection = Quantised(fusion.projection)
    assert torch.equal(fusion(vectors), expected)


def test_hidden_parameters_are_not_reported_as_frozen(flan, inputs_for, logged_messages, monkeypatch):
    """Replicas of DataParallel, and FSDP, hide parameters."""
    monkeypatch.setattr(LexicalFusion, "parameters", lambda self: iter(()))
    flan.train()(**inputs_for(flan))
    assert not any("frozen" in message for message in logged_messages())


# --- building


def test_from_a_plain_t5(plain_folder):
    fused = T5WithFusion(str(plain_folder))
    assert type(fused) is T5WithFusion and type(fused.config) is T5FusionConfig
    assert fused.config.model_type == "t5_fusion" and fused.config.lexical_dim == 384
    assert fused.config.backbone == str(plain_folder) and fused.config.backbone_revision is None
    assert fused.config.lexical_token_id == 135  # the first that the tokenizer leaves free
    assert fused.encoder.config.is_decoder is False and fused.dtype == torch.float32
    assert not fused.training


def test_building_from_a_plain_t5_warns_of_nothing(plain_folder, logged_messages):
    T5WithFusion(plain_folder)
    T5WithFusion.from_pretrained(str(plain_folder), lexical_dim=8, dtype="bfloat16")
    assert logged_messages() == []  # For a plain FLAN-T5, transformers itself warns that the head is not tied.


def test_the_id_of_the_placeholder_comes_from_the_tokenizer(plain_folders, tmp_path, tokenizer):
    folder = shutil.copytree(plain_folders["v1.0"], tmp_path / "with_token")
    tokenizer.add_tokens(["more", "<lexical>", "still more"])
    tokenizer.save_pretrained(folder)
    assert T5WithFusion(folder).config.lexical_token_id == 136


@pytest.mark.parametrize("weights", ["flan", "v1.1"])  # with an untied head, and with a tied one
def test_an_mt5_is_the_stock_mt5_to_the_bit(plain_folders, tmp_path, inputs_for, weights):
    plain = shutil.copytree(plain_folders[weights], tmp_path / "mt5")
    saved = json.loads((plain / "config.json").read_text()) | {"model_type": "mt5", "tie_word_embeddings": True}
    for name in ("feed_forward_proj", "dense_act_fn", "is_gated_act", "decoder_start_token_id"):
        saved.pop(name)
    (plain / "config.json").write_text(json.dumps(saved))
    stock = MT5ForConditionalGeneration.from_pretrained(plain).eval()
    fused = T5WithFusion(plain).eval()
    config = T5FusionConfig(lexical_dim=384, **stock.config.to_dict())  # It would scale the head.
    batch = without_vectors(inputs_for(fused, (0, 0)))
    fused.save_pretrained(tmp_path / "fused")
    opened = [fused, T5WithFusion(tmp_path / "fused"), T5WithFusion.from_pretrained(plain, config=config)]
    (tmp_path / "fused" / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):  # The base model's weights are not a substitute.
        T5WithFusion(tmp_path / "fused")
    saved = json.loads((tmp_path / "fused" / "config.json").read_text())
    (tmp_path / "fused" / "config.json").write_text(
        json.dumps(saved | {"weights_from_backbone": True})
    )  # as in a bundle
    for model in [*opened, T5WithFusion(tmp_path / "fused")]:
        assert torch.equal(model.eval()(**batch).logits, stock(**batch).logits)
        assert model.config.backbone == str(plain)


def test_a_tokenizer_that_cannot_be_loaded(plain_folders, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(plain_folders["v1.0"] / name, folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (folder / "spiece.model").write_bytes(b"no vocabulary")
    sentence = r"the tokenizer of .*plain cannot be loaded \(.+\), so the id of <lexical> is unknown.*Or pass"
    with pytest.raises(ValueError, match=sentence):
        T5WithFusion(folder)
    assert T5WithFusion(folder, lexical_token_id=135).config.lexical_token_id == 135


def test_an_encoder_alone(plain_folders, tmp_path):
    folder = shutil.copytree(plain_folders["v1.0"], tmp_path / "plain")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("decoder.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="the weights of .*plain lack some or all weights of the decoder; expected"):
        T5WithFusion(folder)


def test_in_fp16_the_fusion_layer_still_trains(plain_folders, inputs_for):
    fused = T5WithFusion(plain_folders["flan"], dtype=torch.float16)
    assert fused.dtype == torch.float16 and fused.encoder.fusion.projection.weight.dtype == torch.float32
    fused.requires_grad_(False).encoder.fusion.requires_grad_(True)
    batch, optimizer, losses = inputs_for(fused), torch.optim.AdamW(fused.encoder.fusion.parameters(), lr=1e-2), []
    for _ in range(4):
        losses.append(fused(**batch).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


def test_without_a_tokenizer_the_id_is_that_of_t5(plain_folders, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(plain_folders["v1.0"] / name, tmp_path)
    assert T5WithFusion(tmp_path).config.lexical_token_id == 160  # the table is smaller than T5's
    assert T5FusionConfig().lexical_token_id == 32100


def test_keywords_set_fields_of_the_config(plain_folders):
    fused = T5WithFusion(plain_folders["flan"], lexical_dim=8, dropout_rate=0.0)
    assert fused.config.lexical_dim == 8 and fused.config.dropout_rate == 0.0
    assert fused.encoder.fusion.projection.weight.shape == (16, 8)


def test_chosen_fields_are_kept_and_checked(plain_folders):
    config = T5WithFusion(plain_folders["flan"], lexical_token_id=33, backbone="me/flan").config
    assert config.lexical_token_id == 33 and config.backbone == "me/flan"
    with pytest.raises(ValueError, match="`lexical_dim` is '8'; expected a positive integer"):
        T5WithFusion(plain_folders["flan"], lexical_dim="8")


def test_from_a_config():
    config = T5FusionConfig(**TINY)
    fused = T5WithFusion(config)
    assert fused.config is config and config.backbone is None
    norm, size = fused.encoder.fusion.norm.weight[0], fused.shared.weight.square().mean().sqrt()
    torch.testing.assert_close(norm, size, rtol=5e-3, atol=0)
    ids, labels = torch.tensor([[40, 5, 1]]), torch.tensor([[3]])
    assert torch.isfinite(fused(input_ids=ids, lexical_embeds=torch.ones(1, 5), labels=labels).loss)
    assert type(AutoModelForSeq2SeqLM.from_config(config)) is T5WithFusion


@pytest.mark.parametrize("tied", [True, False])
def test_random_weights_are_drawn_as_t5_draws_them(tied):
    sizes = {"vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    torch.manual_seed(0)  # The smallest matrix has 128 numbers, so its spread depends on the seed.
    plain = T5ForConditionalGeneration(T5Config(**sizes, tie_word_embeddings=tied))
    fused = dict(T5WithFusion(T5FusionConfig(**sizes, tie_word_embeddings=tied)).named_parameters())
    for name, parameter in plain.named_parameters():
        assert fused[name].std().item() == pytest.approx(parameter.std().item(), rel=0.3), name
    assert ("lm_head.weight" in fused) != tied  # The plain T5 has the name in both cases.
    assert tied or fused["lm_head.weight"].std().item() == pytest.approx(1, rel=0.3)


def test_a_given_config(plain_folders):
    config = T5FusionConfig.from_pretrained(plain_folders["flan"], lexical_dim=7, lexical_token_id=140)
    fused = T5WithFusion.from_pretrained(plain_folders["flan"], config=config)
    assert fused.config.lexical_dim == 7 and fused.config.lexical_token_id == 140
    again = T5WithFusion(plain_folders["flan"], lexical_dim=7).encoder.fusion.state_dict()
    assert all(torch.equal(again[name], value) for name, value in fused.encoder.fusion.state_dict().items())


def test_the_base_model_is_named_in_a_copy_of_a_given_config(plain_folders):
    given = T5FusionConfig(**T5Config.from_pretrained(plain_folders["flan"]).to_dict())
    expected = T5WithFusion(plain_folders["flan"]).state_dict()
    for config in (given, plain_folders["flan"], str(plain_folders["flan"])):
        fused = T5WithFusion.from_pretrained(plain_folders["flan"], config=config)
        assert fused.config.backbone == str(plain_folders["flan"])
        assert all(torch.equal(expected[name], value) for name, value in fused.state_dict().items())
    assert given.backbone is None  # The caller's config is unchanged.


def test_the_config_of_a_fused_model_on_a_plain_one(flan, plain_folders, tmp_path):
    flan.save_pretrained(tmp_path)
    config = T5FusionConfig.from_pretrained(tmp_path)
    fused = T5WithFusion.from_pretrained(plain_folders["flan"], config=config)
    expected = flan.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in fused.state_dict().items())


@pytest.mark.parametrize("revision", ["main", "0123456789" * 4])
def test_a_base_model_on_the_hub_is_named_with_its_commit(plain_folders, tmp_path, revision):
    commit, repository = "0123456789" * 4, tmp_path / "models--me--flan"
    shutil.copytree(plain_folders["flan"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    fused = T5WithFusion("me/flan", cache_dir=tmp_path, local_files_only=True, revision=revision)
    fused.save_pretrained(tmp_path / "saved")
    for config in (fused.config, T5WithFusion(tmp_path / "saved").config):
        assert (config.backbone, config.backbone_revision) == ("me/flan", commit)
        assert config.lexical_token_id == 135


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_device_map_leaves_the_fusion_layer_as_it_is(plain_folders, dtype):
    expected = T5WithFusion(plain_folders["flan"]).encoder.fusion.state_dict()
    mapped = T5WithFusion(plain_folders["flan"], device_map="cpu", dtype=dtype).encoder.fusion.state_dict()
    kept = torch.float32 if dtype == torch.float16 else dtype
    assert all(torch.equal(mapped[name], value.to(kept)) for name, value in expected.items())


def test_layers_offloaded_to_disk(flan, plain_folders, tmp_path, inputs_for):
    parts = ("shared", "lm_head", "decoder", "encoder.embed_tokens", "encoder.final_layer_norm", "encoder.dropout")
    places = dict.fromkeys((*parts, "encoder.fusion"), "cpu") | {"encoder.block": "disk"}
    fused = T5WithFusion(plain_folders["flan"], device_map=places, offload_folder=tmp_path).eval()
    batch = inputs_for(flan)
    with torch.no_grad():
        assert_close(fused(**batch).logits, flan(**batch).logits)


def test_a_new_fusion_layer_cannot_be_offloaded(flan, plain_folders, monkeypatch):
    flan.encoder.fusion.to("meta")  # Offloaded weights are there.
    loaded = lambda *args, **kwargs: (flan, {"missing_keys": set()})  # noqa: E731
    monkeypatch.setattr(T5ForConditionalGeneration, "from_pretrained", loaded)
    with pytest.raises(ValueError, match="`device_map` offloads the fusion layer.*Keep `encoder.fusion` on a device"):
        T5WithFusion(plain_folders["flan"])


def test_keywords_of_from_pretrained(plain_folders, tmp_path):
    shutil.copytree(plain_folders["flan"], tmp_path / "inner")
    expected = T5WithFusion(plain_folders["flan"]).state_dict()
    options = {"dtype": torch.bfloat16, "device_map": "cpu", "subfolder": "inner", "local_files_only": True}
    fused, info = T5WithFusion.from_pretrained(tmp_path, output_loading_info=True, token="none", **options)
    assert fused.dtype == torch.bfloat16 and not info["unexpected_keys"] and not info["mismatched_keys"]
    for name, value in fused.state_dict().items():
        assert value.dtype == torch.bfloat16 or "wo" in name
        assert torch.equal(value, expected[name].to(value.dtype)) or "fusion" in name
    assert fused.config.lexical_token_id == 135
    assert fused.encoder.fusion.projection.weight.float().std() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_base_model_in_any_precision(plain_folders, inputs_for, dtype):
    fused = T5WithFusion(plain_folders["flan"], dtype=dtype).eval()
    assert fused.encoder.fusion.projection.weight.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    logits = fused(**inputs_for(fused)).logits
    assert logits.dtype == dtype and torch.isfinite(logits).all()


def test_copies_compute_the_same(flan, inputs_for):
    batch = inputs_for(flan)
    expected = flan(**batch).logits
    for copied in (copy.deepcopy(flan), pickle.loads(pickle.dumps(flan))):
        assert type(copied) is T5WithFusion and copied is not flan
        assert torch.equal(copied(**batch).logits, expected)
    assert copy.deepcopy(flan.config).to_dict() == flan.config.to_dict()


# --- saving and loading


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_trip(plain_folder, tmp_path, inputs_for, dtype, logged_messages):
    fused = T5WithFusion(plain_folder, dtype=dtype).eval()
    with torch.no_grad():
        fused.encoder.fusion.projection.weight.mul_(2)  # as after training
    fused.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "t5_fusion" and saved["architectures"] == ["T5WithFusion"]
    assert saved["backbone"] == str(plain_folder) and saved["lexical_dim"] == 384 and saved["lexical_token_id"] == 135
    batch = inputs_for(fused)
    expected, weights = fused(**batch).logits, fused.state_dict()
    for load in (
        T5WithFusion,
        T5WithFusion.from_pretrained,
        AutoModel.from_pretrained,
        AutoModelForSeq2SeqLM.from_pretrained,
    ):
        reloaded = load(tmp_path, dtype="auto").eval()
        assert type(reloaded) is T5WithFusion
        reloaded_weights = reloaded.state_dict()
        assert reloaded_weights.keys() == weights.keys()
        assert all(
            reloaded_weights[name].dtype == weights[name].dtype and torch.equal(reloaded_weights[name], weights[name])
            for name in weights
        )
        assert torch.equal(reloaded(**batch).logits, expected)
        assert reloaded.config.scale_decoder_outputs == fused.config.scale_decoder_outputs
    assert type(AutoConfig.from_pretrained(tmp_path)) is T5FusionConfig
    assert not [message for message in logged_messages() if "fusion" in message or "instantiate" in message]


@pytest.mark.parametrize("adapter", [None, LoraConfig(target_modules=["q"])], ids=["whole", "adapter"])
def test_others_can_read_what_was_saved(flan, tmp_path, adapter):
    """safetensors writes files that only their owner can read."""
    if adapter is not None:
        flan.add_adapter(adapter)
    mask = os.umask(0o027)
    try:
        flan.save_pretrained(tmp_path)
    finally:
        os.umask(mask)
    assert {oct(file.stat().st_mode & 0o777) for file in tmp_path.glob("*.safetensors")} == {"0o640"}


def test_saving_a_reloaded_model_writes_the_same_files(flan, tmp_path):
    flan.save_pretrained(tmp_path / "one")
    T5WithFusion(tmp_path / "one").save_pretrained(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two")]
    assert configs[0] == configs[1]


def test_the_generation_config_is_kept(flan, tmp_path):
    flan.generation_config.num_beams, flan.generation_config.max_new_tokens = 3, 9
    flan.save_pretrained(tmp_path)
    kept = T5WithFusion(tmp_path).generation_config
    assert (kept.num_beams, kept.max_new_tokens) == (3, 9)


def test_a_placeholder_past_the_table_is_saved_without_a_warning(save_plain_t5, tmp_path, logged_messages):
    fused = T5WithFusion(save_plain_t5(tmp_path / "full", vocab_size=135))
    fused.save_pretrained(tmp_path / "saved")
    assert T5WithFusion(tmp_path / "saved").config.lexical_token_id == fused.config.lexical_token_id == 135
    assert not [message for message in logged_messages() if "lexical_token_id" in message]


def test_sharded(flan, tmp_path):
    flan.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    reloaded = T5WithFusion(tmp_path).state_dict()
    assert all(torch.equal(reloaded[name], value) for name, value in flan.state_dict().items())


def test_the_weights_keep_the_names_of_t5(flan, tmp_path, plain_folders, inputs_for):
    """A plain T5 can load the weights."""
    flan.save_pretrained(tmp_path)
    plain = T5ForConditionalGeneration.from_pretrained(plain_folders["flan"]).eval()
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".fusion." not in name}
    missing, unexpected = plain.load_state_dict(kept, strict=False)
    assert not unexpected and {name.rpartition(".")[0] for name in missing} <= {
        "encoder.embed_tokens",
        "decoder.embed_tokens",
    }


# --- errors


def test_a_fused_checkpoint_without_its_fusion_layer(flan, tmp_path):
    flan.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if ".fusion." not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    for load in (T5WithFusion, AutoModelForSeq2SeqLM.from_pretrained):
        with pytest.raises(
            ValueError, match=r"is that of a fused model, but the weights lack encoder\.fusion\."
        ) as caught:
            load(tmp_path)
        assert "norm.weight" in str(caught.value) and "pass a base model to start from" in str(caught.value)


def test_a_fused_checkpoint_without_its_fusion_layer_and_with_any_config(flan, tmp_path):
    """Without the architecture's name in the config, there must be an error too, and no random weights."""
    flan.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".fusion." not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    for options in ({}, {"config": T5FusionConfig(**saved)}):
        with pytest.raises(ValueError, match=r"is that of a fused model, but the weights lack encoder\.fusion\."):
            T5WithFusion.from_pretrained(tmp_path, **options)


def test_a_config_without_the_width(plain_folders):
    config = T5Config.from_pretrained(plain_folders["flan"])
    sentence = r"a T5Config has no `lexical_dim`; expected a T5FusionConfig\. Convert it: `T5FusionConfig\("
    for make in (T5WithFusion, lambda config: T5WithFusion.from_pretrained(plain_folders["flan"], config=config)):
        with pytest.raises(ValueError, match=sentence):
            make(config)
    advised = T5FusionConfig(lexical_dim=384, **config.to_dict())
    assert advised.model_type == "t5_fusion" and advised.scale_decoder_outputs is config.scale_decoder_outputs


def test_another_kind_of_model(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a model of type 'bert'; expected 't5' .*, 'mt5' or 't5_fusion'"):
        T5WithFusion(tmp_path)


@pytest.mark.parametrize("value", [0, -1, None, 3.0, "384", True])
def test_bad_width_in_a_config(value):
    with pytest.raises(ValueError, match=f"T5FusionConfig: `lexical_dim` is {value!r}; expected a positive integer"):
        T5FusionConfig(lexical_dim=value)


@pytest.mark.parametrize("value", [0, -1, 3.0, "384", True])
def test_bad_placeholder_in_a_config(value):
    with pytest.raises(ValueError, match=f"`lexical_token_id` is {value!r}; expected a positive integer"):
        T5FusionConfig(lexical_token_id=value)


def refused(model, batch, sentence, **changes):
    with pytest.raises(ValueError, match=sentence):
        model(**batch | changes)
    inputs = {name: (batch | changes)[name] for name in ("input_ids", "attention_mask", "lexical_embeds")}
    with pytest.raises(ValueError, match=sentence):
        model.encoder(**inputs)


def test_fewer_placeholders_than_vectors(flan, inputs_for):
    batch = inputs_for(flan, (2, 1, 2), (3, 3, 3))
    batch["input_ids"][2, 0] = 5
    refused(flan, batch, r"row 2 holds 1 placeholder <lexical> \(id 135\) for 2 vectors; expected 1 .* with zeros")


def test_more_placeholders_than_vectors(flan, inputs_for):
    batch = inputs_for(flan, (1, 1), (3, 3))
    batch["input_ids"][1, 1] = flan.config.lexical_token_id
    refused(
        flan, batch, r"row 1 holds 2 placeholders <lexical> \(id 135\) for 1 vector; .*T5FusionProcessor, which place"
    )


def test_placeholders_and_no_vectors(flan, inputs_for):
    batch = inputs_for(flan, (0, 2), (3, 3))
    sentence = (
        r"row 1 holds 2 placeholders <lexical> \(id 135\), but no vectors were given\. Pass them as `lexical_embeds`"
    )
    refused(flan, batch, sentence, lexical_embeds=None)


def test_vectors_and_no_placeholders(flan, inputs_for):
    batch = inputs_for(flan, (0, 0), (3, 3))
    sentence = (
        r"no row holds a placeholder <lexical> \(id 135\)\. Use DataCollatorWithFusion or T5FusionProcessor, which"
    )
    refused(flan, batch, sentence, lexical_embeds=torch.ones(2, 384))


def test_vectors_of_another_width(flan, inputs_for):
    sentence = r"are 7 numbers wide; expected 384 \(`config.lexical_dim`\)\. .*build the model with `lexical_dim=7`"
    refused(flan, inputs_for(flan), sentence, lexical_embeds=torch.ones(2, 7))


def test_vectors_of_integers(flan, inputs_for):
    sentence = r"are torch.int64; expected floating point numbers\. Use `\.float\(\)`"
    refused(flan, inputs_for(flan), sentence, lexical_embeds=torch.ones(2, 384, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(384,), (3, 384), (1, 1, 384), (2, 1, 1, 384)])
def test_vectors_of_another_shape(flan, inputs_for, shape):
    sentence = r"have the shape \(.*\); expected \(2, 384\) or \(2, vectors, 384\): one entry for each row"
    refused(flan, inputs_for(flan), sentence, lexical_embeds=torch.ones(shape))


def test_vectors_on_another_device(flan, inputs_for):
    sentence = r"are on meta; expected cpu, where the input is\. Use `\.to\('cpu'\)`"
    refused(flan, inputs_for(flan), sentence, lexical_embeds=torch.ones(2, 384, device="meta"))


def test_ids_and_embeddings_at_once(flan, inputs_for):
    batch = inputs_for(flan)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds|cannot specify both"):
        flan(**batch, inputs_embeds=flan.shared(batch["input_ids"]))


def test_initial_weights_of_the_fusion_layer_never_change():
    """Adapters that were saved without a fusion layer are reloaded on these weights."""
    fusion = LexicalFusion(T5FusionConfig(d_model=16))
    fusion.reset_parameters(torch.full((3, 16), 2.0))
    digest = hashlib.sha256(fusion.projection.weight.detach().numpy().tobytes()).hexdigest()
    assert digest == "c91ace095aa5c99f78004a2baea09467459d94b444853cddf632de24e52f91d1"
    assert not fusion.projection.bias.any() and torch.equal(fusion.norm.weight, torch.full((16,), 2.0))


def test_a_misspelt_keyword_is_refused(plain_folders):
    for name, nearest in {
        "lexcial_dim": "lexical_dim",
        "vector": "vectors",
        "vector_dropuot": "vector_dropout",
    }.items():
        with pytest.raises(TypeError, match=f"^T5WithFusion has no argument `{name}`; did you mean `{nearest}`"):
            T5WithFusion(plain_folders["flan"], **{name: 16})
    with pytest.raises(TypeError, match="no argument `xyz`; see the fields of T5FusionConfig"):
        T5WithFusion(plain_folders["flan"], xyz=16)


# --- a tokenizer with a different placeholder than the model


@pytest.fixture
def added_first(flan, tokenizer):
    """A model with the placeholder 135, and its tokenizer, in which 135 is a token that the user added."""
    assert tokenizer.add_tokens(["<k0>"]) == 1 and tokenizer.convert_tokens_to_ids("<k0>") == 135
    return flan, tokenizer


MISMATCH = (
    r"row 1 begins with token 136, which is <lexical> in the tokenizer; in the model it is token 135\. Make DataColl"
    r"atorWithFusion or T5FusionProcessor with the tokenizer before .*T5WithFusion\(\.\.\., lexical_token_id=136\)"
)


def rows_of(tokenizer, texts=("app", "<k0> app")):
    vectors = torch.randn(2, 384, generator=torch.Generator().manual_seed(0))
    vectors[0] = 0  # a row without a vector may begin with any token
    rows = [{"input_ids": tokenizer(text)["input_ids"], "labels": [5, 1]} for text in texts]
    return [row | {"lexical_embeds": vector} for row, vector in zip(rows, vectors, strict=True)]


@pytest.mark.parametrize("texts", [("app", "<k0> app"), ("app", "app")], ids=["token in the text", "without"])
def test_a_token_added_before_the_placeholder(added_first, texts):
    model, tokenizer = added_first
    batch = DataCollatorWithFusion(tokenizer)(rows_of(tokenizer, texts))
    refused(model, batch, MISMATCH)
    prompt = {name: value for name, value in batch.items() if name != "labels"}
    with pytest.raises(ValueError, match=MISMATCH):
        model.generate(**prompt, max_new_tokens=2)
    left = {name: torch.nn.functional.pad(batch[name], (2, 0)) for name in ("input_ids", "attention_mask")}
    refused(model, batch | left, MISMATCH)


def test_a_token_added_before_the_processor(added_first):
    model, tokenizer = added_first
    vectors = [None, torch.ones(384)]
    inputs = T5FusionProcessor(tokenizer)(["app", "<k0> app"], lexical_embeds=vectors)
    with pytest.raises(ValueError, match=MISMATCH):
        model.generate(**inputs, max_new_tokens=2)


def test_a_token_added_before_training(added_first, tmp_path):
    model, tokenizer = added_first
    options = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, report_to="none", use_cpu=True, per_device_train_batch_size=2
    )
    collator = DataCollatorWithFusion(tokenizer)
    trainer = Trainer(model=model, args=options, train_dataset=rows_of(tokenizer)[1:] * 2, data_collator=collator)
    with pytest.raises(ValueError, match=MISMATCH.replace("row 1", "row 0")):
        trainer.train()


def test_the_error_about_a_mismatch_names_a_fix(added_first, plain_folders):
    _, tokenizer = added_first
    batch = DataCollatorWithFusion(tokenizer)(rows_of(tokenizer)[1:])
    model = T5WithFusion(plain_folders["flan"], lexical_token_id=136).eval()
    embedded = model.encoder.embed(batch["input_ids"], lexical_embeds=batch["lexical_embeds"])
    assert torch.equal(embedded[0, 1], model.shared.weight[135])  # the user's token


def test_models_of_several_vocabularies_in_one_process(flan, plain_folders, inputs_for, monkeypatch):
    monkeypatch.setattr(checking_t5fusion, "PLACED_TOKEN_IDS", {135, 20})
    batch = inputs_for(flan)  # The placeholders are in front, so other tokenizers do not matter.
    expected = flan(**batch).logits
    other = T5WithFusion(plain_folders["flan"], lexical_token_id=20).eval()
    assert other(**inputs_for(other)).logits.shape == expected.shape
    words = batch["input_ids"].clone()
    words[:, 0], words[:, 1] = 20, 135  # The text begins with a word and contains its placeholder.
    assert flan(**batch | {"input_ids": words}).logits.shape == expected.shape
    for ids in ({135}, set(), {135, 999}):
        monkeypatch.setattr(checking_t5fusion, "PLACED_TOKEN_IDS", ids)
        assert torch.equal(flan(**batch).logits, expected)


def test_ids_are_not_checked_without_need(flan, inputs_for, monkeypatch):
    batch = inputs_for(flan)
    monkeypatch.setattr(checking_t5fusion, "PLACED_TOKEN_IDS", {135})
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: pytest.fail("the numbers were looked at"))
    check_token_id(batch["input_ids"], batch["lexical_embeds"], 135, 0)
    monkeypatch.setattr(checking_t5fusion, "PLACED_TOKEN_IDS", {135, 136})
    check_token_id(batch["input_ids"], None, 135, 0)
    check_token_id(batch["input_ids"].to("meta"), batch["lexical_embeds"], 135, 0)


# --- results that a small error would change


def test_a_vector_that_contains_zeros_is_not_padding(flan, inputs_for):
    batch = inputs_for(flan, (2, 1), (3, 3))
    batch["lexical_embeds"][:, :, 7] = 0
    batch["input_ids"][0, 1] = 5  # one placeholder for two vectors
    refused(flan, batch, r"row 0 holds 1 placeholder <lexical> \(id 135\) for 2 vectors")
    batch = inputs_for(flan, (1, 1), (3, 3))
    only_one_number = torch.zeros(2, 1, 384)
    only_one_number[:, :, 0] = 1
    batch["input_ids"][1, 0] = 5
    refused(
        flan, batch, r"row 1 holds 0 placeholders <lexical> \(id 135\) for 1 vector", lexical_embeds=only_one_number
    )


def test_padded_labels_do_not_count_in_the_loss_of_a_step(flan, inputs_for):
    """`num_items_in_batch` is the number of labels of a step that are not -100, as the Trainer counts them."""
    batch = inputs_for(flan, (1, 1), (6, 3))
    batch["labels"] = torch.tensor([[7, 9, 4, 1], [8, 1, -100, -100]])
    logits = flan(**batch).logits
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="sum")
    assert_close(flan(**batch).loss, each / 6)
    for tokens_of_step in (6, 10, torch.tensor(10)):
        assert_close(flan(**batch, num_items_in_batch=tokens_of_step).loss, each / tokens_of_step)
        assert_close(flan(**batch, num_items_in_batch=tokens_of_step, return_dict=False)[0], each / tokens_of_step)


def test_a_placeholder_brings_no_penalty_on_the_end_token(flan, inputs_for):
    """For penalties on words of the input, a placeholder counts as padding, and not as </s>."""
    batch = inputs_for(flan, (2, 1), (4, 2))
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask", "lexical_embeds")}
    prompt["input_ids"] = prompt["input_ids"].masked_fill(prompt["input_ids"] == 1, 9)  # a text without </s>
    options = {"max_new_tokens": 1, "do_sample": False, "output_scores": True, "output_logits": True}
    output = flan.generate(**prompt, **options, encoder_repetition_penalty=3.0, return_dict_in_generate=True)
    changed = (output.scores[0] != output.logits[0]) | (output.logits[0] == 0)
    for row, ids in enumerate(prompt["input_ids"]):
        words = set(ids.tolist()) - {135}
        assert set(changed[row].nonzero().flatten().tolist()) == words | {0}

"""The scale of a kind of vectors: raw numbers of any size, from the fit to a saved adapter and half precision."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import IterableDataset
from transformers import AutoModelForSeq2SeqLM, Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5FusionConfig, T5FusionProcessor, T5WithFusion, VectorKind
from t5fusion.scaling_t5fusion import LIMIT, VectorScale

WORDS = 4


def fitted(vectors, scale="standard"):
    """Return a scale that was fitted to vectors."""
    module = VectorScale(VectorKind(vectors.shape[1], scale=scale))
    module.fit(vectors)
    return module


def numbers(rows=2000, columns=3, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def price_rows(rows=400, scale_of_numbers=1.0):
    """Return rows whose one number, from 1 to 10,000, says which of four words is the target."""
    exponents = torch.rand(rows, generator=torch.Generator().manual_seed(0)) * WORDS
    prices = 10**exponents * scale_of_numbers
    return [
        {"input_ids": [5, 1], "labels": [10 + int(exponent), 1], "lexical_embeds": price[None]}
        for exponent, price in zip(exponents, prices, strict=True)
    ]


def price_model(plain_folders, scale="log"):
    return T5WithFusion(str(plain_folders["flan"]), vectors={"price": VectorKind(1, scale=scale)}).float().eval()


# --- the numbers of a scale


def test_columns_get_a_mean_of_zero_and_a_deviation_of_one():
    scaled = fitted(numbers() * torch.tensor([1e-9, 1.0, 5e6]) + torch.tensor([0.0, 300.0, 1e6]))(
        numbers(seed=1) * torch.tensor([1e-9, 1.0, 5e6]) + torch.tensor([0.0, 300.0, 1e6])
    )
    assert scaled.mean(0).abs().max() < 0.1
    assert (scaled.std(0) - 1).abs().max() < 0.1


@pytest.mark.parametrize("scale", ["standard", "log"])
def test_the_unit_of_the_numbers_does_not_matter(scale):
    """Metres or millimetres give the same scaled vectors."""
    metres = numbers().abs() + 0.1
    torch.testing.assert_close(fitted(metres, scale)(metres), fitted(metres * 1000, scale)(metres * 1000))


def test_numbers_times_a_power_of_two_give_the_same_bits():
    """So a whole training is the same to the last bit."""
    vectors = numbers() * 40 + 1000
    assert torch.equal(fitted(vectors)(vectors), fitted(vectors / 1024)(vectors / 1024))


def test_numbers_that_were_standardised_by_hand_give_the_same():
    raw = numbers() * 40 + 1000
    by_hand = (raw - raw.mean(0)) / raw.std(0)
    torch.testing.assert_close(fitted(raw)(raw), fitted(by_hand)(by_hand), atol=1e-3, rtol=1e-3)


def test_outliers_do_not_shrink_the_other_numbers():
    clean, spoilt = numbers(), numbers()
    spoilt[:10] = 1e6
    torch.testing.assert_close(fitted(spoilt).rate, fitted(clean).rate, rtol=0.1, atol=0)
    assert fitted(spoilt)(spoilt).max() == LIMIT


def test_a_column_that_never_varies_is_ignored():
    vectors = torch.cat([numbers(columns=1), torch.full((2000, 1), 0.1)], dim=1)
    assert fitted(vectors)(torch.tensor([[0.0, 0.1], [0.0, 7e5]]))[:, 1].tolist() == [0.0, 0.0]


def test_a_column_with_a_few_ones_among_zeros_still_counts():
    sparse = torch.zeros(2000, 1)
    sparse[:5] = 1
    rare, common = fitted(sparse)(torch.tensor([[1.0], [0.0]])).flatten().tolist()
    assert rare > common + 5


def test_a_logarithm_tells_small_numbers_apart_and_keeps_signs():
    prices = torch.logspace(-1, 4, 2000)[:, None]
    scaled = fitted(prices, "log")(torch.tensor([[1.0], [2.0], [1000.0], [2000.0]])).flatten()
    small, large = scaled[1] - scaled[0], scaled[3] - scaled[2]
    assert 0.9 < small / large < 1.1
    signed = fitted(torch.cat([prices, -prices]), "log")
    torch.testing.assert_close(signed(-prices) - signed(0 * prices), signed(0 * prices) - signed(prices))


def test_a_scale_that_was_not_fitted_changes_nothing():
    vectors = numbers() * 1000
    assert torch.equal(VectorScale(VectorKind(3))(vectors), vectors)


def test_large_sets_are_sampled(monkeypatch):
    monkeypatch.setattr("t5fusion.scaling_t5fusion.MOST_VECTORS", 100)
    whole = torch.arange(1000.0)[:, None]
    torch.testing.assert_close(fitted(whole).mean, fitted(whole[::10]).mean)


# --- in the model


def test_the_length_of_a_vector_counts_only_with_a_scale(plain_folders):
    vectors = torch.tensor([[[1.0]], [[2.0]]])
    with_scale, without = price_model(plain_folders, "standard"), price_model(plain_folders, None)
    assert not torch.allclose(*with_scale.encoder.fusion(vectors), atol=0.1)
    torch.testing.assert_close(*without.encoder.fusion(vectors))


@pytest.mark.parametrize("scale", ["standard", "log"])
def test_fit_fusion_reads_the_scale_off_raw_numbers(plain_folders, scale):
    """The same prices in another unit start the layer in the same way."""
    euros, cents = price_model(plain_folders, scale), price_model(plain_folders, scale)
    assert euros.fit_fusion(price_rows()) > 0.1
    cents.fit_fusion(price_rows(scale_of_numbers=100))
    prices = torch.tensor([[[3.0]], [[50.0]], [[4000.0]]])
    torch.testing.assert_close(euros.encoder.fusion(prices), cents.encoder.fusion(prices * 100), rtol=1e-3, atol=1e-3)


def test_a_fitted_start_predicts_words_of_raw_prices(plain_folders):
    model = price_model(plain_folders)
    assert model.fit_fusion(price_rows()) > 0.25
    embeddings = model.encoder.fusion(torch.tensor([[[2.0]], [[5000.0]]])).squeeze(1)
    cheap, dear = (torch.nn.functional.normalize(model.shared.weight[[10, 13]], dim=-1) @ embeddings.T).tolist()
    assert cheap[0] > cheap[1] and dear[1] > dear[0]


def test_each_vector_of_a_row_counts_for_the_scale(plain_folders):
    """Not the row's mean, which varies less."""
    generator = torch.Generator().manual_seed(0)
    rows = [{"labels": [10, 1], "lexical_embeds": torch.randn(9, 1, generator=generator)} for _ in range(300)]
    model = price_model(plain_folders, "standard")
    model.fit_fusion([*rows, {"labels": [11, 1], "lexical_embeds": torch.zeros(1)}])
    assert 0.9 < model.encoder.fusion.scale.rate.item() < 1.15


def test_a_zero_is_a_number(plain_folders):
    """A row with a price of zero has a vector; a row without one has none."""
    processor = T5FusionProcessor(
        str(plain_folders["flan"]), vectors={"price": 1}, lexical_encoder=None, lexical_source="given"
    )
    rows = processor.rows(["app", "app"], ["app", "app"], lexical_embeds=[[0.0], None])
    batch = DataCollatorWithFusion(processor)(rows)
    assert (batch["input_ids"] == processor.lexical_token_id).sum(1).tolist() == [1, 0]
    price_model(plain_folders)(**batch)


def test_numbers_of_any_size_are_read(plain_folders):
    folder = str(plain_folders["flan"])
    recipe = {"lexical_encoder": None, "lexical_source": "given"}
    scaled, unscaled = (
        T5FusionProcessor(folder, vectors={"current": VectorKind(1, scale=scale)}, **recipe)
        for scale in ("standard", None)
    )
    assert scaled(["app"], lexical_embeds=[[1e-9]])["lexical_embeds"].tolist() == [[pytest.approx(1e-9)]]
    scaled(["app"], lexical_embeds=[[3e20]])
    with pytest.raises(ValueError, match="Euclidean norm 1e-09; expected 1e-06"):
        unscaled(["app"], lexical_embeds=[[1e-9]])
    with pytest.raises(ValueError, match="NaN or infinite"):
        scaled(["app"], lexical_embeds=[[float("nan")]])


# --- what fit_fusion says


def test_fit_fusion_says_if_a_logarithm_may_serve_better(plain_folders, capsys):
    price_model(plain_folders, "standard").fit_fusion(price_rows())
    advice = "1 of 1 dimensions of the price vectors span orders of magnitude, such as dimension 0, counted from 0 ("
    assert advice in capsys.readouterr().err
    price_model(plain_folders, "log").fit_fusion(price_rows())
    assert "magnitude" not in capsys.readouterr().err


def test_fit_fusion_says_if_a_kind_without_a_scale_has_lengths(plain_folders, capsys):
    model = T5WithFusion(str(plain_folders["flan"]), lexical_dim=2)
    rows = [
        {"labels": [10 + row % 4, 1], "lexical_embeds": numbers(400, 2)[row] * 10 ** (row % 4)} for row in range(400)
    ]
    model.fit_fusion(rows)
    assert "with `scale='standard'` in the `VectorKind` of 'lexical'" in capsys.readouterr().err
    unit = [row | {"lexical_embeds": torch.nn.functional.normalize(row["lexical_embeds"], dim=0)} for row in rows]
    model.fit_fusion(unit)
    assert "length" not in capsys.readouterr().err


class Stream(IterableDataset):
    """Rows of prices that come one by one."""

    def __iter__(self):
        return iter(price_rows(8))


def test_a_trainer_says_that_a_stream_cannot_be_scaled(plain_folders, tmp_path, capsys):
    model = price_model(plain_folders)
    processor = T5FusionProcessor(
        str(plain_folders["flan"]), vectors=model.config.kinds, lexical_encoder=None, lexical_source="given"
    )
    arguments = {"max_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True}
    for fitted_before in (False, True):
        if fitted_before:
            model.fit_fusion(price_rows())
        Trainer(
            model, TrainingArguments(str(tmp_path), **arguments), DataCollatorWithFusion(processor), Stream()
        ).train()
        said = "The price vectors are not scaled, because no rows with vectors" in capsys.readouterr().err
        assert said != fitted_before


def test_a_trainer_says_that_a_frozen_layer_has_no_scale(plain_folders, tmp_path, capsys):
    model = price_model(plain_folders)
    processor = T5FusionProcessor(
        str(plain_folders["flan"]), vectors=model.config.kinds, lexical_encoder=None, lexical_source="given"
    )
    rows = price_rows(8)
    peft_model = get_peft_model(model, model.lora_config(target_modules=["q"], modules_to_save=[]))
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    Trainer(peft_model, arguments, DataCollatorWithFusion(processor), rows).train()
    assert "The price vectors are not scaled, because the fusion layer is frozen" in capsys.readouterr().err
    model = price_model(plain_folders)
    peft_model = get_peft_model(model, model.lora_config(target_modules=["q"]))
    model.fit_scales(rows)
    model.fusion_to_fit().requires_grad_(False)
    Trainer(peft_model, arguments, DataCollatorWithFusion(processor), rows).train()
    assert "not scaled" not in capsys.readouterr().err


# --- saved and loaded


def test_a_saved_kind_without_a_scale_has_none():
    """As kinds were saved before there were scales. A kind that a user gives has one."""
    assert T5FusionConfig(vectors=[{"name": "item", "dim": 4}]).kinds["item"].scale is None
    assert T5FusionConfig(vectors={"item": {"dim": 4}}).kinds["item"].scale == "standard"
    assert T5FusionConfig(lexical_dim=4).kinds["lexical"].scale is None


def test_unknown_scales_are_refused():
    with pytest.raises(
        ValueError, match="kind 'item' in `vectors`: `scale` is 'minmax'; expected 'standard', 'log' or"
    ):
        T5FusionConfig(vectors={"item": {"dim": 4, "scale": "minmax"}})


@pytest.fixture
def adapted(plain_folders):
    """An adapter on a model of two kinds, fitted to raw numbers, in evaluation mode."""
    kinds = {"price": VectorKind(1, scale="log"), "size": 2}
    model = T5WithFusion(str(plain_folders["flan"]), vectors=kinds, dtype=torch.float32)
    peft_model = get_peft_model(model, LoraConfig(target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"))
    sizes = numbers(400, 2) * 300 + 1e4
    rows = price_rows()
    for row, size in zip(rows, sizes, strict=True):
        row["lexical_embeds"] = {"price": row["lexical_embeds"], "size": size}
    model.fit_fusion(rows)
    return peft_model.eval()


def batch_of(model):
    first = model.config.lexical_token_id
    vectors = {"price": torch.tensor([[250.0]]), "size": torch.tensor([[9_500.0, 10_100.0]])}
    return {
        "input_ids": torch.tensor([[first, first + 1, 5, 1]]),
        "labels": torch.tensor([[10, 1]]),
        "lexical_embeds": vectors,
    }


def test_an_adapter_brings_the_scale_along(adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    expected = adapted(**batch_of(adapted)).logits
    kinds = adapted.config.kinds
    folder = adapted.get_base_model().config.backbone
    for loaded in (
        T5WithFusion.from_pretrained(tmp_path, dtype=torch.float32),
        PeftModel.from_pretrained(T5WithFusion(folder, vectors=kinds, dtype=torch.float32), tmp_path),
    ):
        assert torch.equal(loaded.eval()(**batch_of(adapted)).logits, expected)


def test_a_whole_model_brings_the_scale_along(adapted, tmp_path):
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    torch.testing.assert_close(loaded(**batch_of(merged)).logits, merged(**batch_of(merged)).logits)
    for name, number in merged.encoder.fusion.state_dict().items():
        assert torch.equal(loaded.encoder.fusion.state_dict()[name], number)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_scale_stays_exact_in_half_precision(adapted, dtype, tmp_path):
    """Sizes of about 10,000 that differ by 300 would fall together in bfloat16."""
    adapted.save_pretrained(tmp_path)
    scale = adapted.get_base_model().fusion_to_fit().projector("size").scale
    for model in (T5WithFusion.from_pretrained(tmp_path, dtype=dtype), copy.deepcopy(adapted).to(dtype)):
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        half = base.fusion_to_fit().projector("size").scale
        assert half.mean.dtype == half.rate.dtype == torch.float32
        assert torch.equal(half.mean, scale.mean) and torch.equal(half.rate, scale.rate)
        assert model.eval()(**batch_of(model)).logits.isfinite().all()


def test_the_scale_survives_the_meta_device(adapted):
    scale = copy.deepcopy(adapted.get_base_model().fusion_to_fit().scale).to("meta")
    assert scale.to_empty(device="cpu").mean.dtype == torch.float32


def test_an_adapter_without_the_layer_cannot_lose_a_changed_scale(plain_folders, tmp_path):
    model = price_model(plain_folders)
    noise = [{"labels": [10 + row % 2, 1], "lexical_embeds": numbers(40, 1)[row]} for row in range(40)]
    assert model.fit_fusion(noise) <= 0  # The weights stay as they were, and the scale does not.
    frozen = LoraConfig(target_modules=["q"], modules_to_save=[], task_type="SEQ_2_SEQ_LM")
    with pytest.raises(ValueError, match="a reload would give a different model"):
        get_peft_model(model, frozen).save_pretrained(tmp_path)


def test_adapters_of_one_scale_are_combined_and_others_refused(adapted):
    base = adapted.get_base_model()
    for name in ("same", "other"):
        adapted.add_adapter(name, adapted.peft_config["default"])
    copies = base.encoder.fusion.modules_to_save
    copies["same"].load_state_dict(copies["default"].state_dict())
    adapted.add_weighted_adapter(["default", "same"], [0.5, 0.5], "both", combination_type="cat")
    assert torch.equal(copies["both"].scale.mean, copies["default"].scale.mean)
    torch.testing.assert_close(copies["both"].projection.weight, copies["default"].projection.weight)
    with pytest.raises(ValueError, match="scale their vectors differently"):
        adapted.add_weighted_adapter(["default", "other"], [0.5, 0.5], "mixed", combination_type="cat")


def test_scales_can_be_fitted_without_the_weights(plain_folders):
    model = price_model(plain_folders)
    before = model.encoder.fusion.projection.weight.clone()
    with pytest.raises(ValueError, match="no row has both `lexical_embeds` and `labels`"):
        model.fit_scales([{"lexical_embeds": [2.0]}])
    model.fit_scales(price_rows())
    assert model.encoder.fusion.scale.rate != 1
    assert torch.equal(model.encoder.fusion.projection.weight, before)

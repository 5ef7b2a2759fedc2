"""Kinds that are one number wide: a plain number is one vector, wherever vectors are given row by row."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from shared_fixtures import make_tokenizer

from t5fusion import DataCollatorWithFusion, T5FusionPipeline, T5FusionProcessor, T5WithFusion

TEXTS, TARGETS = ["app", "settings", "a_b"], ["a", "b", "c"]
PRICES = [3.5, 40.0, 7.0]
COLUMNS = {
    "list": list,
    "integers": lambda prices: [3, 40, 7],
    "array": np.array,
    "half": lambda prices: np.array(prices, dtype=np.float16),
    "tensor": torch.tensor,
    "bfloat16": lambda prices: torch.tensor(prices, dtype=torch.bfloat16),
    "column of a data set": lambda prices: Dataset.from_dict({"price": prices})["price"],
}


def processor_for(vectors=None, template="{text}"):
    given = {"lexical_encoder": None, "lexical_source": "given"}
    return T5FusionProcessor(make_tokenizer(), vectors=vectors or {"price": 1}, template=template, **given)


def assert_same(batch, expected):
    """Check that two batches are equal, and hold vectors."""
    assert batch.keys() == expected.keys() and "lexical_embeds" in batch
    for name, value in expected.items():
        for part, wanted in zip(*map(tensors_of, (batch[name], value)), strict=True):
            assert torch.equal(part, wanted)


def tensors_of(value):
    return list(value.values()) if isinstance(value, dict) else [value]


@pytest.mark.parametrize("form", COLUMNS)
def test_a_call_takes_a_number_per_text(form):
    processor, numbers = processor_for(), COLUMNS[form](PRICES)
    prices = torch.tensor([[3.0 if form == "integers" else 3.5], [40.0], [7.0]])
    expected = processor(TEXTS, lexical_embeds=prices, text_target=TARGETS)
    assert_same(processor(TEXTS, lexical_embeds=numbers, text_target=TARGETS), expected)
    assert_same(processor(TEXTS, lexical_embeds={"price": numbers}, text_target=TARGETS), expected)
    rows = processor.rows(TEXTS, TARGETS, lexical_embeds=numbers)
    assert [row["lexical_embeds"].shape for row in rows] == [(1,)] * 3
    assert_same(DataCollatorWithFusion(processor)(rows), expected)


def test_several_kinds_and_rows_without_a_number():
    processor = processor_for({"price": 1, "image": 3, "weight": {"dim": 1, "tokens": 2}})
    image = np.ones(3)
    rows = [{"price": 3.5, "weight": 2}, {"image": image}, {"price": None, "weight": np.float32(4)}]
    columns = {"price": [[3.5], None, None], "image": [None, image, None], "weight": [[2.0], None, [4.0]]}
    expected = processor(TEXTS, lexical_embeds=columns)
    assert_same(processor(TEXTS, lexical_embeds=rows), expected)
    columns = {"price": [3.5, None, None], "image": [None, image, None], "weight": [2, None, 4]}
    assert_same(processor(TEXTS, lexical_embeds=columns), expected)


def test_a_single_text_takes_a_number():
    processor = processor_for()
    expected = processor("app", lexical_embeds=[3.5])
    assert_same(processor("app", lexical_embeds=3.5), expected)
    assert_same(processor("app", lexical_embeds={"price": 3.5}), expected)


@pytest.mark.parametrize("knows", ["kinds", "nothing"])
def test_a_column_of_numbers_trains(plain_folders, knows):
    """The rows of a data set hold plain numbers, and `fit_fusion` and the collator read them as they are."""
    processor, (model, other) = processor_for(), (
        T5WithFusion(plain_folders["flan"], vectors={"price": 1}) for _ in range(2)
    )  # fmt: skip
    prices = [1.0, 20.0, 3.0] * 20
    expected = processor.rows(TEXTS * 20, TARGETS * 20, lexical_embeds=np.array(prices)[:, None])
    plain = processor.rows(TEXTS * 20, TARGETS * 20, lexical_embeds=False)
    rows = Dataset.from_list(plain).add_column("lexical_embeds", prices)
    assert other.fit_fusion(expected) == model.fit_fusion(rows) > 0
    assert torch.equal(other.encoder.fusion.projection.weight, model.encoder.fusion.projection.weight)
    collator = DataCollatorWithFusion(processor if knows == "kinds" else processor.tokenizer)
    batch = collator([rows[index] for index in range(3)])
    assert_same(batch, collator(expected[:3]))
    assert model(**batch).loss.isfinite()


def test_rows_without_text(plain_folders):
    processor, model = processor_for(template=""), T5WithFusion(plain_folders["flan"], vectors={"price": 1})
    assert_same(processor(lexical_embeds=PRICES), processor(lexical_embeds=np.array(PRICES)[:, None]))
    describe = T5FusionPipeline(model, processor=processor, max_new_tokens=4)
    expected = describe(lexical_embeds=np.array(PRICES)[:, None])
    assert len(expected) == 3
    for given in (PRICES, np.array(PRICES), {"price": PRICES}):
        assert describe(lexical_embeds=given) == describe({"lexical_embeds": given}) == expected
    for given in (PRICES[0], PRICES[:1], torch.tensor(PRICES[0]), {"price": PRICES[0]}):
        assert describe(lexical_embeds=given) == describe({"lexical_embeds": given}) == expected[:1]


@pytest.mark.parametrize("value", [True, np.bool_(False), "3.5", np.array("3.5")])
def test_what_is_not_a_number_is_refused(value):
    row = {"input_ids": [5, 1], "lexical_embeds": value}
    with pytest.raises(ValueError, match=r"row 0 .*`lexical_embeds\['price'\]`: .* of shape \(\); expected numbers"):
        DataCollatorWithFusion(processor_for())([row])


def test_a_number_is_no_vector_of_a_wider_kind(plain_folders):
    processor = processor_for({"image": 3})
    row = {"input_ids": [5, 1], "labels": [5, 1], "lexical_embeds": 3.5}
    message = r"`lexical_embeds\['image'\]`: float64 of shape \(\); expected numbers of shape \(dim,\) or \(vectors,"
    with pytest.raises(ValueError, match=message):
        DataCollatorWithFusion(processor)([row])
    with pytest.raises(ValueError, match=message):
        processor(TEXTS, lexical_embeds=PRICES)
    model = T5WithFusion(plain_folders["flan"], vectors={"image": 3})
    with pytest.raises(ValueError, match=f"^row 0, {message}"):
        model.fit_fusion([row])


def test_several_numbers_of_one_text_need_two_dimensions(plain_folders, monkeypatch):
    """They might be one vector of a wrong width."""
    processor = processor_for()
    with pytest.raises(ValueError, match=r"vectors of 3 numbers; expected 1, .* the shape \(vectors, 1\): `array\[:,"):
        processor("app", lexical_embeds=PRICES)
    batch = processor("app", lexical_embeds=np.array(PRICES)[:, None])
    assert batch["lexical_embeds"].shape == (1, 3, 1)
    model, flat = T5WithFusion(plain_folders["flan"], vectors={"price": 1}), torch.tensor(PRICES)
    monkeypatch.setattr("t5fusion.checking_t5fusion.PLACED_TOKEN_IDS", {0})  # as if there were a different tokenizer
    with pytest.raises(ValueError, match=r"have the shape \(3,\); expected \(3, 1\) .* Use `.unsqueeze\(1\)`\."):
        model.encoder.embed(torch.ones(3, 2, dtype=torch.int64), lexical_embeds=flat)

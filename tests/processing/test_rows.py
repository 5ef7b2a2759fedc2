"""Rows to train on: `processor.rows`, data sets with vectors in half precision, and processors by a name."""

import json
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from shared_fixtures import make_tokenizer

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion, tiny_t5
from t5fusion.finetune import prepare

TEXTS, TARGETS = ["app_config", "a", "settings:b"], ["b", "cd", "a"]
SEQ_2_SEQ = {"task_type": "SEQ_2_SEQ_LM"}
HALF = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float16)
VECTORS = {
    "one each": list(HALF),
    "some": [HALF[0], None, HALF[2]],
    "several": [HALF[:2], HALF[1:], HALF[:2]],
    "any number": [None, HALF, HALF[:1]],
}


@pytest.fixture
def processor():
    return T5FusionProcessor(make_tokenizer(), lexical_dim=3, template="Filename: {text}")


def as_lists(batch):
    return {name: value.tolist() for name, value in batch.items()}


def float_columns(features):
    """Return the type of the numbers in the column of vectors."""
    feature = features["lexical_embeds"]
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature.dtype


# --- rows


@pytest.mark.parametrize("kind", VECTORS)
def test_rows_make_the_batch_that_a_call_makes(processor, kind):
    rows = processor.rows(TEXTS, TARGETS, lexical_embeds=VECTORS[kind])
    called = processor(TEXTS, text_target=TARGETS, lexical_embeds=VECTORS[kind])
    assert as_lists(DataCollatorWithFusion(processor)(rows)) == as_lists(called)
    assert all(processor.lexical_token_id not in row["input_ids"] for row in rows)


def test_rows_are_those_that_the_command_line_trains_on(processor):
    limits = {"max_length": 5, "max_target_length": 2}
    rows = processor.rows(TEXTS, TARGETS, lexical_embeds=HALF, **limits)
    prepared = prepare(TEXTS, TARGETS, torch.from_numpy(HALF).float(), processor, *limits.values())
    for row, other in zip(rows, prepared, strict=True):
        assert row.pop("lexical_embeds").tolist() == other.pop("lexical_embeds").tolist()
        assert row == other


def test_rows_keep_the_placeholders_of_a_text(processor):
    (row,) = processor.rows(["a <lexical>"], lexical_embeds=HALF[:1])
    assert row["input_ids"][-2:] == [processor.lexical_token_id, 1] and row["input_ids"][0] != row["input_ids"][-2]
    with pytest.raises(ValueError, match="1 placeholder <lexical> .*; expected 2, one per vector"):
        processor.rows(["a <lexical>"], lexical_embeds=[HALF[:2]])


def test_rows_train_without_another_step(processor, plain_folders):
    model = T5WithFusion(plain_folders["flan"], lexical_dim=3)
    rows = processor.rows(TEXTS, TARGETS, lexical_embeds=HALF)
    assert isinstance(model.fit_fusion(rows), float)
    assert torch.isfinite(model(**DataCollatorWithFusion(processor)(rows)).loss)


# --- half precision


@pytest.mark.parametrize("format", [None, "numpy", "torch"])
@pytest.mark.parametrize("kind", VECTORS)
def test_a_data_set_keeps_half_precision(processor, plain_folders, kind, format):
    """By `map`, by `map` of single rows and by `from_list`: float16 in Arrow, and exact in the batch."""
    texts = Dataset.from_dict({"text": TEXTS, "row": [0, 1, 2]})
    call = {"text_target": TARGETS, "return_tensors": None}
    batched = texts.map(
        lambda rows: processor(rows["text"], lexical_embeds=VECTORS[kind], **call), batched=True,
        remove_columns=texts.column_names,
    )  # fmt: skip
    listed = Dataset.from_list(processor.rows(TEXTS, TARGETS, lexical_embeds=VECTORS[kind]))
    expected = processor(TEXTS, text_target=TARGETS, lexical_embeds=VECTORS[kind])
    assert expected["lexical_embeds"].dtype == torch.float32
    for rows in (batched, listed):
        assert float_columns(rows.features) == "float16"
        rows = rows.with_format(format)
        for chosen in ([rows[i] for i in range(3)], rows.__getitems__([0, 1, 2])):  # as loaders fetch them
            assert as_lists(DataCollatorWithFusion(processor)(chosen)) == as_lists(expected)
        model = T5WithFusion(plain_folders["flan"], lexical_dim=3)
        assert isinstance(model.fit_fusion(rows), float)


def test_single_rows_of_map_keep_half_precision(processor):
    texts = Dataset.from_dict({"text": TEXTS, "row": [0, 1, 2]})
    mapped = texts.map(lambda row: processor(row["text"], lexical_embeds=HALF[row["row"]], return_tensors=None))
    assert float_columns(mapped.features) == "float16" and mapped[1]["lexical_embeds"] == HALF[1].tolist()


def test_what_the_vectors_are_stored_in(processor):
    """float16 stays float16; everything else is float32, which holds lists of half-precision numbers exactly."""
    single = HALF.astype(np.float32)
    given = {"float16": HALF, "float32": single, "float64": HALF.astype(float), "list": HALF.tolist()}
    given |= {"torch half": torch.from_numpy(HALF), "torch bfloat16": torch.ones(3, 3, dtype=torch.bfloat16)}
    given |= {"mixed": [HALF[0], single[1], HALF[2]]}
    stored = {name: processor.rows(TEXTS, lexical_embeds=value)[0]["lexical_embeds"] for name, value in given.items()}
    halves = {"float16", "torch half"}
    assert {name: array.dtype for name, array in stored.items()} == {
        name: np.float16 if name in halves else np.float32 for name in given
    }
    assert all(array.tolist() == HALF[0].tolist() for name, array in stored.items() if name != "torch bfloat16")


def test_the_encoders_vectors_are_stored_as_the_recipe_says():
    for dtype, stored in (("float16", np.float16), ("float32", np.float32), ("bfloat16", np.float32)):
        processor = T5FusionProcessor(make_tokenizer(), lexical_dtype=dtype)
        (row,) = processor.rows(["app_config"])
        assert row["lexical_embeds"].dtype == stored
        assert row["lexical_embeds"].tolist() == processor.encode("app_config")[0].tolist()
        assert processor("app_config")["lexical_embeds"].dtype == torch.float32


# --- by name


def test_a_tokenizer_by_its_name(plain_folders, processor):
    named = T5FusionProcessor(str(plain_folders["flan"]), lexical_dim=3, template="Filename: {text}")
    assert as_lists(named(TEXTS, lexical_embeds=HALF)) == as_lists(processor(TEXTS, lexical_embeds=HALF))
    embedded, by_path = T5FusionProcessor("tiny_t5"), T5FusionProcessor(tiny_t5.PATH)
    assert embedded(["a"], lexical_embeds=False)["input_ids"].equal(by_path(["a"], lexical_embeds=False)["input_ids"])


def test_own_vectors_need_no_encoder(plain_folders, monkeypatch):
    """Neither the package nor the files of the encoder, although the recipe names one."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    processor = T5FusionProcessor(str(plain_folders["flan"]), lexical_encoder="nobody/none", lexical_dim=3)
    assert torch.equal(processor(TEXTS, lexical_embeds=HALF)["lexical_embeds"], torch.from_numpy(HALF).float())
    with pytest.raises(
        ValueError,
        match=r"row 0 .*vectors of 4 numbers; expected 3, .*`T5WithFusion\(..., lexical_dim=4\)` and "
        r"`T5FusionProcessor\(..., lexical_dim=4, lexical_encoder=None, lexical_source='given'\)`",
    ):
        processor(TEXTS, lexical_embeds=np.ones((3, 4)))


# --- folders without a recipe


@pytest.mark.parametrize("width", [384, 8])
def test_the_processor_of_an_adapter_that_has_none(plain_folders, tmp_path, width):
    """What `peft_model.save_pretrained` and `tokenizer.save_pretrained` write is enough for own vectors."""
    model = T5WithFusion(plain_folders["flan"], lexical_dim=width)
    peft_model = get_peft_model(model, LoraConfig(**SEQ_2_SEQ))
    tokenizer = make_tokenizer()
    DataCollatorWithFusion(tokenizer)
    peft_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    check_bare(tmp_path, T5WithFusion.from_pretrained(tmp_path), width)


def test_the_processor_of_an_adapter_of_0_1(plain_folders, tmp_path):
    """Such an adapter does not record the width of its vectors, but its weights show it."""
    peft_model = get_peft_model(T5WithFusion(plain_folders["flan"], lexical_dim=8), LoraConfig(**SEQ_2_SEQ))
    peft_model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "T5WithFusion(plain)"}))
    assert T5FusionProcessor.from_pretrained(tmp_path).lexical_dim == 8
    (tmp_path / "adapter_model.safetensors").unlink()
    assert T5FusionProcessor.from_pretrained(tmp_path).lexical_dim == 384
    assert T5FusionProcessor.from_pretrained(tmp_path, lexical_dim=8).lexical_dim == 8


def test_the_processor_of_a_fused_model_that_has_none(plain_folders, tmp_path):
    T5WithFusion(plain_folders["flan"], lexical_dim=8).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    check_bare(tmp_path, T5WithFusion(tmp_path), 8)


def check_bare(folder, model, width):
    processor = T5FusionProcessor.from_pretrained(folder)
    assert processor.lexical_encoder is None and processor.lexical_dim == width
    model(**processor(["a"], lexical_embeds=np.ones((1, width)), text_target=["b"]))
    with pytest.raises(ValueError, match=rf"`lexical_embeds=`, {width} numbers .*`T5FusionProcessor.from_pretrained\("):
        processor(["a"])
    known = T5FusionProcessor.from_pretrained(folder, lexical_encoder="you/encoder", lexical_source="text")
    assert known.lexical_encoder == "you/encoder" and known.lexical_dim == width


def test_a_saved_recipe_is_the_one_of_the_training(plain_folders, tmp_path):
    recipe = {"lexical_encoder": "you/encoder", "lexical_dim": 8, "template": "Say: {text}", "lexical_source": "given"}
    peft_model = get_peft_model(T5WithFusion(plain_folders["flan"], lexical_dim=8), LoraConfig(**SEQ_2_SEQ))
    peft_model.save_pretrained(tmp_path)
    T5FusionProcessor(str(plain_folders["flan"]), **recipe).save_pretrained(tmp_path)
    loaded = T5FusionProcessor.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in recipe} == recipe


def test_a_base_model_has_the_default_recipe(plain_folders):
    assert T5FusionProcessor.from_pretrained(plain_folders["flan"]).lexical_source == "text"

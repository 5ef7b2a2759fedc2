"""Packed batches: which rows share a sequence, what the batch holds, and that losses and gradients stay the same."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5WithFusion, VectorKind
from t5fusion.packing_t5fusion import ROOM, share_sequences

DIM = 384


def rows(counts=(0, 1, 2, 1, 1, 3, 0, 1, 1), seed=0, longest=14):
    """Return rows of random lengths, with `counts` vectors."""
    numbers = torch.Generator().manual_seed(seed)

    def ids(most):
        length = int(torch.randint(1, most, (), generator=numbers))
        return [*torch.randint(3, 30, (length,), generator=numbers).tolist(), 1]

    made = []
    for count in counts:
        row = {"input_ids": ids(longest), "labels": ids(9)}
        if count:
            row["lexical_embeds"] = torch.randn(count, DIM, generator=numbers).tolist()
        made.append(row)
    return made


def unpacked_rows(batch):
    """Return the rows of a batch as (ids, labels, vectors), counted."""
    found = Counter()
    for sequence, (numbers, target_numbers) in enumerate(zip(batch["row_ids"], batch["target_row_ids"], strict=True)):
        first = 0
        for number in range(1, int(numbers.max()) + 1):
            ids = batch["input_ids"][sequence][numbers == number].tolist()
            labels = batch["labels"][sequence][target_numbers == number].tolist()
            count = ids.count(LEXICAL)
            vectors = batch["lexical_embeds"][sequence][first : first + count] if count else torch.zeros(0)
            first += count
            found[tuple(ids), tuple(labels), tuple(vectors.flatten().tolist())] += 1
    return found


@pytest.fixture
def collators(tokenizer):
    global LEXICAL
    packing = DataCollatorWithFusion(tokenizer, packing=True)
    LEXICAL = packing.lexical_token_id
    return DataCollatorWithFusion(tokenizer), packing


@pytest.fixture
def model(plain_folder):
    """A fused model without dropout, in training."""
    return without_dropout(T5WithFusion(str(plain_folder)))


def without_dropout(model):
    """Return the model in training, without its dropout."""
    model.train().config.dropout_rate = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "relative_attention_num_buckets"):
            module.dropout = 0.0
    return model


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_each_row_is_in_one_sequence_that_has_room_for_it(sizes):
    shared = share_sequences(sizes)
    assert sorted(row for rows_ in shared for row in rows_) == list(range(len(sizes)))
    for kind in (0, 1):
        most = max(ROOM, *(size[kind] for size in sizes))
        assert all(sum(sizes[row][kind] for row in rows_) <= most for rows_ in shared)


def test_a_packed_batch_holds_the_rows(collators):
    given_rows = rows()
    batch = collators[1](given_rows)
    assert len(batch["input_ids"]) < len(given_rows) / 2
    expected = Counter()
    for row in given_rows:
        vectors = torch.tensor(row.get("lexical_embeds", []), dtype=torch.float32)
        ids = [LEXICAL] * len(vectors) + row["input_ids"]
        expected[tuple(ids), tuple(row["labels"]), tuple(vectors.flatten().tolist())] += 1
    assert unpacked_rows(batch) == expected
    assert torch.equal(batch["attention_mask"], (batch["row_ids"] != 0).long())
    assert torch.equal(batch["labels"] == -100, batch["target_row_ids"] == 0)


def test_rows_that_do_not_fit_together_make_the_plain_batch(collators):
    long = [{"input_ids": [5] * 40, "labels": [6] * 10, "lexical_embeds": [0.5] * DIM} for _ in range(3)]
    without_labels = [{name: row[name] for name in row if name != "labels"} for row in rows()]
    for given_rows in (long, without_labels):
        plain, packed = (collator(given_rows) for collator in collators)
        assert plain.keys() == packed.keys() and all(torch.equal(plain[name], packed[name]) for name in plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("counts", [(0, 1, 2, 1, 1, 3, 0, 1, 1), (1,) * 8, (0,) * 8])
def test_loss_and_gradients_are_those_of_unpacked_rows(model, collators, dtype, attention, counts):
    model = model.to(dtype)
    model.set_attn_implementation(attention)
    plain, packed = (dict(collator(rows(counts))) for collator in collators)
    for batch in (plain, packed):
        if "lexical_embeds" in batch:
            batch["lexical_embeds"] = batch["lexical_embeds"].to(dtype)
    close = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    assert_same_loss_and_gradients(model, plain, packed, **close)


def assert_same_loss_and_gradients(model, plain, packed, **close):
    assert "row_ids" in packed and "row_ids" not in plain
    losses, gradients = [], []
    for batch in (plain, packed):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert len(gradients[0]) > 30
    torch.testing.assert_close(losses[1], losses[0], **close)
    torch.testing.assert_close(gradients[1], gradients[0], **close)


def test_vectors_of_several_kinds_are_packed_too(plain_folder, tokenizer):
    kinds = {"user": 5, "image": VectorKind(7, tokens=4, projector="mlp"), "price": VectorKind(1, scale="log")}
    model = without_dropout(T5WithFusion(str(plain_folder), vectors=kinds)).double()
    numbers = torch.Generator().manual_seed(1)
    given_rows = rows(counts=(0,) * 9)
    for number, row in enumerate(given_rows):
        counts = {"user": number % 2, "image": number % 3, "price": number % 4 // 2}
        row["lexical_embeds"] = {
            name: torch.randn(count, kind.dim, generator=numbers).tolist()
            for (name, count), kind in zip(counts.items(), model.config.kinds.values(), strict=True)
            if count
        }
    plain, packed = (
        dict(DataCollatorWithFusion(tokenizer, model=model, packing=packing)(given_rows)) for packing in (False, True)
    )
    for batch in (plain, packed):
        batch["lexical_embeds"] = {name: vectors.double() for name, vectors in batch["lexical_embeds"].items()}
    assert len(packed["row_ids"]) < len(given_rows) / 2 and packed["lexical_embeds"].keys() == kinds.keys()
    assert_same_loss_and_gradients(model, plain, packed, rtol=1e-10, atol=1e-12)


def test_a_packed_step_in_bf16_is_close_to_the_unpacked_one(model, collators):
    losses, gradients = [], []
    for collator in collators:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**collator(rows())).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0)
    assert (gradients[1] - gradients[0]).norm() < 0.1 * gradients[0].norm()


def test_a_row_reads_no_other_row_of_its_sequence(model, collators):
    given_rows = rows((1, 1, 1))
    batch = collators[1](given_rows)
    logits = model(**batch).logits.detach()
    changed = [given_rows[0] | {"input_ids": [7] * len(given_rows[0]["input_ids"])}, *given_rows[1:]]
    other = model(**collators[1](changed)).logits.detach()
    assert len(logits) == 1
    is_first = batch["target_row_ids"] == 1
    assert torch.equal(logits[~is_first], other[~is_first]) and not torch.equal(logits[is_first], other[is_first])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_trainer_learns_the_same_from_packed_rows(model, collators, tmp_path, smoothing):
    """Also with gradient accumulation, with a last batch that is smaller, and with label smoothing."""
    start, weights = {name: value.clone() for name, value in model.state_dict().items()}, []
    for collator in collators:
        model.load_state_dict(start)
        arguments = TrainingArguments(
            str(tmp_path), num_train_epochs=2, per_device_train_batch_size=5, gradient_accumulation_steps=2,
            learning_rate=1e-2, optim="sgd", label_smoothing_factor=smoothing, report_to="none", save_strategy="no",
            use_cpu=True, disable_tqdm=True, max_grad_norm=1e9,
        )  # fmt: skip
        collator.model = model if smoothing else None
        Trainer(model=model, args=arguments, train_dataset=rows((1,) * 14), data_collator=collator).train()
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
    moved = max(float((weights[0][name] - start[name]).abs().max()) for name in start)
    for name in start:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-3, atol=1e-3 * moved)


def test_the_report_on_the_vectors_reads_rows_one_by_one(collators):
    from torch.utils.data import DataLoader

    from t5fusion.hooks.trainer_hook import unpacked

    loader = DataLoader(rows(), batch_size=9, collate_fn=collators[1])
    with unpacked(loader):
        assert len(next(iter(loader))["input_ids"]) == 9
    assert len(next(iter(loader))["input_ids"]) < 9


def test_what_packing_cannot_do_is_said(flan, collators, tokenizer):
    with pytest.raises(ValueError, match="`packing` needs `padding='longest'`"):
        DataCollatorWithFusion(tokenizer, packing=True, padding="max_length", max_length=20)
    with pytest.raises(ValueError, match=r"column `weight` of the batch.*`packing`"):
        collators[1]([row | {"weight": 1.0} for row in rows()])
    batch = collators[1](rows())
    with pytest.raises(ValueError, match="packed rows, from which nothing can be generated"):
        flan.generate(**{name: batch[name] for name in batch if name != "labels"})
    flan.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(ValueError, match="'flex_attention', which cannot keep packed rows apart"):
        flan(**batch)

"""Losses, scores and intervals, compared with slow references."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from sacrebleu import corpus_chrf, sentence_bleu

from t5fusion import T5FusionProcessor, T5WithFusion
from t5fusion.common.losses import Losses, paired_bootstrap
from t5fusion.finetune.evaluation import change_vectors, evaluation_record, losses, save_evaluation
from t5fusion.finetune.generation import generate_texts
from t5fusion.finetune.inputs import prepare
from t5fusion.finetune.metrics import text_scores

DIM = 8
TEXTS = ["app_settings_of_abcdef", "a", "settings", "bc_de", "x", "app", "long_long_long_long_name"]
TARGETS = ["the settings", "a", "some of the longest of all targets here", "b c", "de", "f g h", "it"]


@pytest.fixture
def model(base):
    return T5WithFusion(str(base), lexical_dim=DIM)


@pytest.fixture
def processor(tokenizer):
    return T5FusionProcessor(tokenizer, lexical_encoder=None, lexical_dim=DIM, lexical_source="given")


@pytest.fixture
def rows(processor):
    vectors = torch.randn(len(TEXTS), DIM, generator=torch.Generator().manual_seed(0))
    return prepare(TEXTS, TARGETS, vectors, processor)


@torch.no_grad()
def loss_of_one(model, row, lexical_id):
    """Return minus the sum of a row's log probabilities, without collator, padding and Trainer."""
    model.eval()
    vector = row.get("lexical_embeds")
    ids = row["input_ids"] if vector is None else [lexical_id, *row["input_ids"]]
    given = {} if vector is None else {"lexical_embeds": vector[None]}
    decoder = torch.tensor([[0, *row["labels"][:-1]]])
    logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=decoder, **given).logits[0]
    return -sum(logits[i].double().log_softmax(-1)[token].item() for i, token in enumerate(row["labels"]))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("vectors", ["true", "none"])
def test_losses_equal_those_of_single_rows(model, processor, rows, batch_size, vectors):
    rows = change_vectors(rows, vectors)
    model.train()  # dropout must be off all the same
    batched = losses(model, rows, processor, batch_size)
    expected = [loss_of_one(model, row, processor.lexical_token_id) for row in rows]
    np.testing.assert_allclose(batched.sums, expected, rtol=1e-5)
    assert batched.tokens.tolist() == [len(row["labels"]) for row in rows]
    assert batched.mean == pytest.approx(sum(expected) / sum(len(row["labels"]) for row in rows), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [2, 3, 7])
def test_shuffling_gives_each_row_the_vector_of_another(rows, number, seed):
    rows = rows[:number]
    own = [row["lexical_embeds"].tolist() for row in rows]
    changed = change_vectors(rows, "shuffled", seed)
    theirs = [row["lexical_embeds"].tolist() for row in changed]
    assert all(a != b for a, b in zip(own, theirs, strict=True)) and sorted(own) == sorted(theirs)
    assert own == [row["lexical_embeds"].tolist() for row in rows]  # the rows given are as they were
    assert all(
        a["input_ids"] == b["input_ids"] and a["labels"] == b["labels"] for a, b in zip(rows, changed, strict=True)
    )


def test_no_vectors(rows):
    assert [set(row) for row in change_vectors(rows, "none")] == [{"input_ids", "attention_mask", "labels"}] * len(rows)
    assert all("lexical_embeds" in row for row in rows)
    assert change_vectors(rows, "true") == rows


class Echo:
    """Stands for a model. It writes its input, and keeps the arguments of its calls."""

    device = torch.device("cpu")

    def __init__(self):
        self.asked = []

    def eval(self):
        return self

    def generate(self, input_ids, attention_mask, **options):
        self.asked.append((len(input_ids), options))
        return input_ids


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_texts_come_in_the_order_of_the_rows(processor, rows, batch_size):
    model = Echo()
    texts = generate_texts(model, rows, processor, batch_size, num_beams=3, max_new_tokens=9)
    assert texts == [processor.tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in rows]
    assert sum(number for number, _ in model.asked) == len(rows)
    for _, options in model.asked:
        assert options.pop("lexical_embeds").shape[1:] == (DIM,)
        assert options == {"num_beams": 3, "max_new_tokens": 9, "do_sample": False}


def test_texts_equal_those_of_single_rows(model, processor, rows):
    together = generate_texts(model, rows, processor, max_new_tokens=8)
    assert together == [generate_texts(model, [row], processor, max_new_tokens=8)[0] for row in rows]


def test_scores():
    references = ["reads the settings", "writes a file"]
    names = {"rouge1", "rouge2", "rougeL", "chrf", "token_f1", "exact_match"}
    alike, unlike = text_scores(references, references), text_scores(["xyz", "qqq"], references)
    assert alike == dict.fromkeys(names, 1) | {"bleu": 0}  # No text has four words.
    assert unlike == dict.fromkeys(names | {"bleu"}, 0)
    long = "writes the settings to a file"
    assert text_scores([long], [long])["bleu"] == pytest.approx(1)
    longer = long + " now"
    changed = text_scores([longer], [long])
    assert changed["bleu"] == pytest.approx(sentence_bleu(longer, [long]).score / 100) and 0 < changed["bleu"] < 1
    assert changed["exact_match"] == 0 and text_scores([f" {long} "], [long])["exact_match"] == 1
    # one of two: "read" is "reads" by its stem; 3 of 3 words, 2 of 3 in order
    half = text_scores(["settings the read", ""], references)
    assert half["rouge1"] == pytest.approx(0.5) and half["rouge2"] == 0
    assert half["token_f1"] == pytest.approx(1 / 3)  # Without stems, two of three words.
    assert half["rougeL"] == pytest.approx(1 / 6) and 0 < half["chrf"] < 1
    with pytest.raises(ValueError, match="shorter"):
        text_scores(["a"], references)


def test_the_scores_of_many_rows_take_little_memory():
    numbers = np.random.default_rng(0)
    texts, references = (["".join(row) for row in numbers.choice(list("abcd "), (1000, 60))] for _ in range(2))
    text_scores(texts[:1], references[:1])  # Memory of imports does not count.
    tracemalloc.start()
    chrf = text_scores(texts, references)["chrf"]
    ours = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    assert corpus_chrf(texts, [references]).score / 100 == chrf
    theirs = tracemalloc.get_traced_memory()[1]  # n-grams of all rows at once
    tracemalloc.stop()
    # Ours holds the tokens of the texts, because sacrebleu caches those of up to 65,536.
    assert ours < 1_500_000 and theirs > 5 * ours


def some_losses(rows=200, seed=0):
    numbers = np.random.default_rng(seed)
    tokens = numbers.integers(3, 30, rows).astype(float)
    return numbers.gamma(4, 1, rows) * tokens, tokens


def test_identical_losses_differ_by_nothing():
    losses = Losses(*some_losses())
    assert paired_bootstrap(losses, losses) == (0, 0, 0)


def test_a_difference_that_every_row_shares_is_certain():
    sums, tokens = some_losses()
    interval = paired_bootstrap(Losses(sums + 0.25 * tokens, tokens), Losses(sums, tokens))
    assert interval == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_and_the_width_of_the_interval(sign):
    sums, tokens = some_losses()
    each = np.random.default_rng(1).normal(0.3, 1, len(sums))
    a, b = Losses(sums + each * tokens, tokens), Losses(sums, tokens)
    interval = paired_bootstrap(a, b) if sign == 1 else paired_bootstrap(b, a)
    mean = (each * tokens).sum() / tokens.sum()
    # the error of a ratio estimate, by the delta method
    error = np.sqrt(((each - mean) ** 2 * tokens**2).sum()) / tokens.sum()
    assert interval.difference == pytest.approx(sign * mean)
    assert (
        interval.low < interval.difference < interval.high and np.sign(interval.low) == np.sign(interval.high) == sign
    )
    assert interval.low == pytest.approx(sign * mean - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(sign * mean + 1.96 * error, abs=0.15 * error)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    held = 0
    for seed in range(100):
        sums, tokens = some_losses(rows=60, seed=seed)
        each = np.random.default_rng(1000 + seed).normal(0.1, 1, 60)
        interval = paired_bootstrap(Losses(sums + each * tokens, tokens), Losses(sums, tokens), samples=1000)
        held += interval.low <= 0.1 <= interval.high
    assert 86 <= held <= 100


def a_record(rows, *kinds):
    return evaluation_record(rows, rows, {kind: {"loss": 1.0} for kind in kinds}, {}, [{"text": "ü"}], data="me/names")


def test_the_record_of_an_evaluation(tmp_path):
    record = a_record(5, "true", "none")
    assert save_evaluation(tmp_path, record)
    kept = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert kept == record and (kept["rows"], kept["data"], kept["measures"]["none"]) == (5, "me/names", {"loss": 1.0})
    assert set(kept["versions"]) == {"torch", "transformers", "peft"}


@pytest.mark.parametrize(
    ("rows", "kinds", "written"),
    [
        (4, ("true", "none"), False),
        (9, ("true",), False),
        (5, ("true", "none"), True),
        (6, ("true", "none", "x"), True),
    ],
    ids=["fewer rows", "fewer kinds", "as many", "more"],
)
def test_an_evaluation_does_not_replace_a_better_one(tmp_path, rows, kinds, written):
    save_evaluation(tmp_path, a_record(5, "true", "none") | {"split": "first"})
    assert save_evaluation(tmp_path, a_record(rows, *kinds)) == written
    assert ("split" in json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))) != written


def test_an_evaluation_replaces_that_of_the_demonstration(tmp_path):
    """The demonstration also measures the untuned model, which `evaluate` does not."""
    save_evaluation(tmp_path, a_record(5, "untuned", "true", "shuffled", "none"))
    assert not save_evaluation(tmp_path, a_record(5, "true"))
    assert save_evaluation(tmp_path, a_record(5, "true", "shuffled", "none"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": 2}', '{"rows": null, "measures": {}}'])
def test_a_damaged_evaluation_is_replaced(tmp_path, content):
    (tmp_path / "evaluation.json").write_text(content)
    assert save_evaluation(tmp_path, a_record(5, "true"))
    assert json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["rows"] == 5

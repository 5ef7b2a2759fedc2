"""The closed-form start of the fusion layer, against explicit linear algebra."""

import math
import weakref

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5WithFusion, VectorKind, fitting_t5fusion
from t5fusion.blocks_t5fusion import DistinctTokens, RowBlock
from t5fusion.fitting_t5fusion import (
    STRENGTHS,
    Moments,
    mean_embeddings,
    penalty_unit,
    read_moments,
    ridge,
    token_weights,
)
from t5fusion.kinds_t5fusion import DEFAULT_KIND

DIM = 8


@pytest.fixture
def model(base):
    return T5WithFusion(str(base), lexical_dim=DIM)


def noisy_line(rows=60, a=5, b=3, noise=0.5, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, a, generator=numbers, dtype=torch.float64) + 2
    true = torch.randn(b, a, generator=numbers, dtype=torch.float64)
    return x, x @ true.T - 7 + noise * torch.randn(rows, b, generator=numbers, dtype=torch.float64), true


def moments_of(x, y):
    moments = Moments(x.shape[1], y.shape[1])
    moments.add(x, y)
    return moments


def explicit_ridge(x, y, strength):
    """Return the weight by the normal equations, and the generalised cross-validation error by the hat matrix."""
    x, y = x - x.mean(0), y - y.mean(0)
    inverse = torch.linalg.inv(x.T @ x + strength * len(x) * torch.eye(x.shape[1], dtype=x.dtype))
    hat = x @ inverse @ x.T + 1 / len(x)  # the mean takes one degree of freedom
    error = (y - hat @ y).square().sum() / (1 - hat.trace() / len(x)) ** 2
    return (inverse @ x.T @ y).T, error.item()


@pytest.mark.parametrize("noise", [0.05, 1.0, 5.0])
def test_ridge_is_the_explicit_solution_of_the_best_strength(noise):
    x, y, _ = noisy_line(noise=noise)
    weight, explained = ridge(moments_of(x, y))
    solutions = [explicit_ridge(x, y, strength) for strength in STRENGTHS]
    best, error = min(solutions, key=lambda solution: solution[1])
    assert weight.shape == (3, 5) and weight.dtype == torch.float64
    torch.testing.assert_close(weight, best, rtol=1e-9, atol=1e-12)
    assert explained == pytest.approx(1 - error / (y - y.mean(0)).square().sum().item(), abs=1e-9)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_explained_share_equals_that_of_rows_left_out_one_by_one(noise):
    x, y, _ = noisy_line(rows=150, noise=noise)
    wrong = total = 0.0
    for index in range(len(x)):
        others = torch.arange(len(x)) != index
        weight, _ = ridge(moments_of(x[others], y[others]))
        predicted = y[others].mean(0) + weight @ (x[index] - x[others].mean(0))
        wrong += (y[index] - predicted).square().sum().item()
        total += (y[index] - y.mean(0)).square().sum().item()
    assert ridge(moments_of(x, y))[1] == pytest.approx(1 - wrong / total, abs=0.02)


def test_a_linear_map_is_recovered_and_noise_is_not_explained():
    x, y, true = noisy_line(rows=200, noise=1e-6)
    weight, explained = ridge(moments_of(x.float(), y.float()))
    torch.testing.assert_close(weight, true, rtol=1e-3, atol=1e-3)
    assert explained > 0.999
    numbers = torch.Generator().manual_seed(1)
    x, y = torch.randn(300, 20, generator=numbers), torch.randn(300, 30, generator=numbers)
    _, explained = ridge(moments_of(x, y))
    assert abs(explained) < 0.02


def test_more_columns_than_rows():
    numbers = torch.Generator().manual_seed(2)
    x, y = torch.randn(10, 30, generator=numbers), torch.randn(10, 4, generator=numbers)
    weight, explained = ridge(moments_of(x, y))
    assert weight.shape == (4, 30) and torch.isfinite(weight).all() and explained < 0.5


@pytest.mark.parametrize("sizes", [[60], [1, 59], [20, 20, 20], [1] * 60])
def test_moments_of_blocks_are_those_of_all_rows(sizes):
    x, y, _ = noisy_line()
    x, y = x + 1e6, y - 1e6  # far from zero, where sums of squares would lose eight digits
    moments = Moments(5, 3)
    for part, outputs in zip(x.split(sizes), y.split(sizes), strict=True):
        moments.add(part, outputs)
    centred, outputs = x - x.mean(0), y - y.mean(0)
    assert moments.rows == 60
    torch.testing.assert_close(moments.input_mean, x.mean(0))
    torch.testing.assert_close(moments.input_products, centred.T @ centred, rtol=1e-7, atol=1e-6)
    torch.testing.assert_close(moments.input_output_products, centred.T @ outputs, rtol=1e-7, atol=1e-6)
    assert moments.output_squares.sum().item() == pytest.approx(outputs.square().sum().item(), rel=1e-7)


def test_rare_words_weigh_more_in_the_mean():
    embeddings = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    labels = [[5, 6, 6, 1], [5, 7, 1], [5, 6, 8, 1, 0, 0], [5, 9, 1]]
    holds = {5: 4, 6: 2, 7: 1, 8: 1, 9: 1}
    means = target_means(labels, embeddings)
    for row, mean in zip(labels, means, strict=True):
        words = {token for token in row if token > 1}
        weight = {token: math.log(4 / holds[token]) for token in words}
        expected = sum(weight[token] * embeddings[token] for token in words) / sum(weight.values())
        torch.testing.assert_close(mean, expected)


def test_a_target_without_tokens_has_the_mean_zero():
    means = target_means([[5, 6, 1], [1, 0, -100], [5, 7, 1]], torch.ones(8, 2))
    assert torch.equal(means[1], torch.zeros(2)) and (means[[0, 2]] > 0.99).all()


def tokens_of(labels):
    words = [sorted({token for token in row if token > 1}) for row in labels]
    ids = np.array([token for row in words for token in row], dtype=np.int64)
    return DistinctTokens(ids, np.cumsum([0, *map(len, words[:-1])]))


def target_means(labels, embeddings):
    words = tokens_of(labels)
    return mean_embeddings(words, embeddings.detach(), token_weights([words], len(embeddings)))


def as_rows(vectors, labels):
    return [{"lexical_embeds": vector, "labels": ids} for vector, ids in zip(vectors, labels, strict=True)]


def rows_of(model, rows=200, linear=True):
    """Return rows with three labels each. If `linear`, a vector is a linear map of the mean embedding of its labels."""
    numbers = torch.Generator().manual_seed(3)
    labels = [[*torch.randint(3, 35, (3,), generator=numbers).tolist(), 1] for _ in range(rows)]
    means = target_means(labels, model.shared.weight)
    if linear:  # the first DIM principal directions of the targets carry most of them
        *_, right = torch.linalg.svd(means - means.mean(0), full_matrices=False)
        return means @ right[:DIM].T + 3, labels, means
    return torch.randn(rows, DIM, generator=numbers), labels, means


@torch.no_grad()
def test_the_projection_predicts_the_targets(model):
    vectors, labels, means = rows_of(model)
    before = model.encoder.fusion.norm.weight.clone()
    explained = model.fit_fusion(as_rows(vectors, labels))
    centred = means - means.mean(0)
    projected = model.encoder.fusion.projection(vectors)
    residual = (centred - projected).square().sum() / centred.square().sum()
    assert projected.mean(0).abs().max() < 1e-4  # the mean vector goes to zero
    assert explained > 0.4 and 1 - residual == pytest.approx(explained, abs=0.1)
    assert torch.equal(model.encoder.fusion.norm.weight, before)
    weight, _ = ridge(moments_of(vectors, means))
    torch.testing.assert_close(model.encoder.fusion.projection.weight, weight.float())


def moments_from(rows, model):
    """The moments of rows with one kind of vectors."""
    projectors = {DEFAULT_KIND: model.encoder.fusion}
    return read_moments(rows, model.config.kinds, projectors, model.shared.weight.detach())[DEFAULT_KIND]


def test_padding_is_not_a_token_of_the_target(model):
    """Some rows are padded with <pad>, some with the id that the loss ignores, as collators do."""
    vectors, labels, _ = rows_of(model, rows=30)
    padded = [[*ids, *[0] * (row % 3), *[-100] * (row % 2)] for row, ids in enumerate(labels)]
    expected, moments = (moments_from(as_rows(vectors, each), model) for each in (labels, padded))
    assert torch.equal(moments.input_output_products, expected.input_output_products)
    assert torch.equal(moments.output_mean, expected.output_mean)


def test_rows_are_read_once_and_only_a_block_is_held(model, monkeypatch):
    vectors, labels, _ = rows_of(model, rows=100)
    embeddings = model.shared.weight.detach()
    whole = moments_from(as_rows(vectors, labels), model)
    monkeypatch.setattr(fitting_t5fusion, "CHUNK_ROWS", 7)
    in_chunks = moments_from(iter(as_rows(vectors, labels)), model)
    torch.testing.assert_close(in_chunks.input_output_products, whole.input_output_products)
    monkeypatch.setattr(fitting_t5fusion, "FIRST_ROWS", 10)
    alive = []

    def rows_that_count():
        for vector, ids in zip(vectors, labels, strict=True):
            row = {"lexical_embeds": vector.clone(), "labels": ids}
            alive.append(weakref.ref(row["lexical_embeds"]))
            yield row
            del row
            assert sum(each() is not None for each in alive) < 15

    in_blocks = moments_from(rows_that_count(), model)
    assert in_blocks.rows == 100 and len(alive) == 100
    # The tokens' frequencies are those of the first block.
    means = mean_embeddings(tokens_of(labels), embeddings, token_weights([tokens_of(labels[:10])], len(embeddings)))
    torch.testing.assert_close(in_blocks.input_output_products, moments_of(vectors, means).input_output_products)


def test_useless_vectors_leave_the_initial_weights(model, capsys):
    vectors, labels, _ = rows_of(model, rows=20, linear=False)
    before = model.encoder.fusion.projection.weight.detach().clone()
    assert model.fit_fusion(as_rows(vectors, labels)) <= 0
    assert torch.equal(model.encoder.fusion.projection.weight, before)
    assert "explain nothing of their targets' words. Their projection stays as it was." in capsys.readouterr().err


def test_the_trainer_does_not_fit_again_what_explained_nothing(model, tokenizer, tmp_path, capsys):
    vectors, labels, _ = rows_of(model, rows=20, linear=False)
    rows = [row | {"input_ids": [5, 1]} for row in as_rows(vectors, labels)]
    model.fit_fusion(rows)
    arguments = TrainingArguments(tmp_path, max_steps=1, report_to="none", use_cpu=True)
    Trainer(model, arguments, DataCollatorWithFusion(tokenizer), rows).train()
    assert capsys.readouterr().err.count("explain nothing of their targets' words") == 1


def test_useless_vectors_explain_nothing(model):
    vectors, labels, _ = rows_of(model, linear=False)
    assert abs(model.fit_fusion(as_rows(vectors, labels))) < 0.05


def test_equal_targets_leave_the_initial_weights(model):
    before = model.encoder.fusion.projection.weight.detach().clone()
    assert model.fit_fusion(as_rows(torch.randn(6, DIM), [[5, 6, 1]] * 6)) == 0
    assert torch.equal(model.encoder.fusion.projection.weight, before)


@torch.no_grad()
@pytest.mark.parametrize("factor", [1e-5, 1e-3, 1e6, 1e15])
def test_the_length_of_all_vectors_does_not_matter(model, factor):
    vectors, labels, _ = rows_of(model, rows=60)
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(4))
    vectors = torch.nn.functional.normalize(vectors + noise)
    explained = model.fit_fusion(as_rows(vectors, labels))
    projected = model.encoder.fusion.projection(vectors)
    assert 0.05 < explained
    assert model.fit_fusion(as_rows(vectors * factor, labels)) == pytest.approx(explained, abs=1e-6)
    torch.testing.assert_close(model.encoder.fusion.projection(vectors * factor), projected, rtol=1e-3, atol=1e-4)


def test_the_unit_of_penalties_is_one_for_vectors_about_as_long_as_one():
    """So embeddings of unit length start with the same bits as in 0.1.0, whatever their mean is."""
    numbers = torch.Generator().manual_seed(0)
    for mean, width, noise in ((0, 8, 1), (0, 768, 1), (1, 384, 1), (1, 384, 0.3), (0, 384, 1.7)):
        x = noise * torch.nn.functional.normalize(torch.randn(100, width, generator=numbers)) + mean / width**0.5
        assert penalty_unit(moments_of(x, x)) == 1
    assert penalty_unit(moments_of(1e-3 * x, x)) == 1e-6 and penalty_unit(moments_of(1e6 * x, x)) == 1e12
    assert penalty_unit(moments_of(torch.ones(9, 3) / 3, torch.ones(9, 1))) == 1


def test_huge_vectors_with_as_many_columns_as_rows_divide_by_nothing(model):
    """Beside their squares, the smallest penalty is lost in rounding."""
    numbers = torch.Generator().manual_seed(0)
    x, y = 1e17 * torch.randn(6, 30, generator=numbers), torch.randn(6, 4, generator=numbers)
    for unit in (1.0, penalty_unit(moments_of(x, y))):
        weight, explained = ridge(moments_of(x, y), unit)
        assert torch.isfinite(weight).all() and explained < 1
    vectors = list(1e17 * torch.randn(6, DIM, generator=numbers))
    model.fit_fusion(as_rows(vectors, [[5 + row, 6, 1] for row in range(6)]))
    assert torch.isfinite(model.encoder.fusion.projection.weight).all()


def test_another_default_dtype_changes_nothing(model):
    vectors, labels, _ = rows_of(model)
    expected = model.fit_fusion(as_rows(vectors, labels))
    weight = model.encoder.fusion.projection.weight.detach().clone()
    torch.set_default_dtype(torch.float64)
    try:
        assert model.fit_fusion(as_rows(vectors, labels)) == expected
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(model.encoder.fusion.projection.weight, weight)


@torch.no_grad()
@pytest.mark.parametrize("ordered", [True, False])
def test_each_token_starts_from_the_whole_target_and_how_its_part_differs(base, ordered):
    """If the vectors do not tell the parts apart, all tokens of a vector start alike."""
    model = T5WithFusion(str(base), vectors={"pair": VectorKind(12, tokens=2, scale=None)})
    numbers = torch.Generator().manual_seed(0)
    words = torch.randint(0, 6, (400, 2), generator=numbers)
    one_hot = torch.nn.functional.one_hot(words, 6).float()
    vectors = one_hot.flatten(1) if ordered else one_hot.sum(1).repeat(1, 2)
    rows = as_rows(vectors, [[*(10 + pair).tolist(), 1] for pair in words])
    explained = model.fit_fusion(rows)
    one_token = T5WithFusion(str(base), vectors={"pair": VectorKind(12, scale=None)})
    assert explained == one_token.fit_fusion(rows) > 0.8
    first, second = model.encoder.fusion.projector("pair").last_layer.weight.chunk(2)
    whole = one_token.encoder.fusion.projector("pair").last_layer.weight
    torch.testing.assert_close((first + second) / 2, whole, rtol=0.02, atol=0.05 * whole.abs().max().item())
    assert torch.equal(first, second) != ordered


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_the_tokens_of_a_part(parts):
    """Each target is split as `np.array_split` does; an empty part has the tokens of the whole target."""
    targets = [[7, 5, 5, 9, 3, 8, 7], [4], [], [6, 6], [2, 3, 4, 5, 6]]
    tokens, lengths = np.array([token for target in targets for token in target]), np.array([*map(len, targets)])
    block = RowBlock({}, {}, tokens, lengths)
    for part in range(parts):
        found = block.distinct_tokens(part, parts)
        for target, own in zip(targets, np.split(found.ids, found.starts[1:]), strict=True):
            split = np.array_split(target, parts)[part]
            assert own.tolist() == sorted({*(split if len(split) else target)})

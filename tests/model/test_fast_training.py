"""The faster functions of training on a CPU: each against torch's own, and where they must not act."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, TaskType, get_peft_model

from t5fusion import T5WithFusion, fast_t5fusion
from t5fusion.fast_t5fusion import FastStep, attention, cross_entropy, dropout, fast_step, linear

CPU = torch.device("cpu")


def lora_on(model, lora_dropout=0.0):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q", "v"], lora_dropout=lora_dropout, task_type=TaskType.SEQ_2_SEQ_LM)
    peft_model = get_peft_model(model, config).train()
    for name, weight in peft_model.named_parameters():
        if "lora_B" in name:  # They begin at zero, so lora_A would get no gradients.
            torch.nn.init.normal_(weight, std=0.1)
    return peft_model


def set_dropout(model, rate):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        elif hasattr(module, "relative_attention_num_buckets"):
            module.dropout = rate


def step(model, batch, bf16=True, seed=0):
    """Return loss and gradients of one step."""
    model.zero_grad()
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def distance(gradients, expected):
    """Return how far gradients are from the expected ones, relative to these."""
    squares = [((gradients[name] - grad).square().sum(), grad.square().sum()) for name, grad in expected.items()]
    difference, size = (sum(column) for column in zip(*squares, strict=True))
    return (difference / size).sqrt()


@pytest.fixture
def fused(plain_folder):
    return T5WithFusion(str(plain_folder))


@pytest.fixture(autouse=True)
def without_copies():
    yield
    fast_t5fusion.forget_copies()


# --- whole steps


@pytest.mark.parametrize("with_lora", [True, False])
def test_a_step_in_bf16_is_as_exact_as_the_plain_one(fused, inputs_for, monkeypatch, with_lora):
    batch = inputs_for(fused, (2, 1, 0, 1), (4, 7, 5, 2))
    model = lora_on(fused) if with_lora else fused.train()
    set_dropout(model, 0.0)
    exact_loss, exact = step(model, batch, bf16=False)
    loss, gradients = step(model, batch)
    monkeypatch.setattr(T5WithFusion, "fast_training", False)
    plain_loss, plain = step(model, batch)
    assert gradients.keys() == plain.keys() == exact.keys()
    assert not torch.equal(loss, plain_loss)  # Otherwise this test would compare nothing.
    assert distance(gradients, exact) < 1.5 * distance(plain, exact) < 0.2
    torch.testing.assert_close(loss, exact_loss, rtol=0.01, atol=0)


def test_a_step_in_fp32_without_dropout_is_the_plain_one_to_the_bit(fused, inputs_for, monkeypatch):
    batch = inputs_for(fused)
    model = lora_on(fused)
    set_dropout(model, 0.0)
    loss, gradients = step(model, batch, bf16=False)
    monkeypatch.setattr(T5WithFusion, "fast_training", False)
    plain_loss, plain = step(model, batch, bf16=False)
    assert torch.equal(loss, plain_loss) and all(torch.equal(gradients[name], plain[name]) for name in plain)


@pytest.mark.parametrize("bf16", [True, False])
def test_a_seed_repeats_a_step_with_dropout(flan, inputs_for, bf16):
    model, batch = lora_on(flan, lora_dropout=0.2), inputs_for(flan)
    (loss, gradients), (again, same) = (step(model, batch, bf16, seed=1) for _ in range(2))
    assert torch.equal(loss, again) and all(torch.equal(gradients[name], same[name]) for name in same)
    assert not torch.equal(loss, step(model, batch, bf16, seed=2)[0])


def test_it_replaces_the_dropout_of_lora_too(flan, inputs_for, monkeypatch):
    model, batch = lora_on(flan, lora_dropout=0.5), inputs_for(flan)
    set_dropout(flan.encoder, 0.0)
    set_dropout(flan.decoder, 0.0)
    model.base_model.model.decoder.block[-1].layer[0].SelfAttention.q.lora_dropout["default"].p = 0.5
    loss = step(model, batch, bf16=False)[0]
    monkeypatch.setattr(T5WithFusion, "fast_training", False)
    assert not torch.equal(loss, step(model, batch, bf16=False)[0])


def test_the_dropout_of_the_whole_model_drops_what_it_should(flan, inputs_for, monkeypatch):
    """The mean loss over many seeds is that of torch's dropout."""
    model, batch = flan.train(), inputs_for(flan)
    losses = {}
    for fast in (True, False):
        monkeypatch.setattr(T5WithFusion, "fast_training", fast)
        with torch.no_grad():
            exact = model(**batch).loss
        losses[fast] = torch.stack([step(model, batch, False, seed)[0] for seed in range(60)])
    error = (losses[True].var() / 60 + losses[False].var() / 60).sqrt()
    assert exact not in losses[True]
    assert (losses[True].mean() - losses[False].mean()).abs() < 4 * error


def test_outside_of_training_nothing_is_replaced(flan, inputs_for):
    assert type(fast_step(flan.train(), CPU)) is FastStep
    with torch.no_grad():
        assert type(fast_step(flan, CPU)) is not FastStep
    assert type(fast_step(flan, torch.device("meta"))) is not FastStep
    flan.gradient_checkpointing_enable()
    assert type(fast_step(flan, CPU)) is not FastStep
    flan.gradient_checkpointing_disable()
    assert type(fast_step(flan, CPU)) is FastStep
    assert type(fast_step(flan.eval(), CPU)) is not FastStep


def test_evaluation_in_bf16_is_the_plain_one_to_the_bit(flan, inputs_for, monkeypatch):
    batch = inputs_for(flan)
    with torch.autocast("cpu", torch.bfloat16):
        flan.train()(**batch)
        logits = flan.eval()(**batch).logits
        monkeypatch.setattr(T5WithFusion, "fast_training", False)
        assert torch.equal(logits, flan(**batch).logits)


def test_checkpointing_repeats_its_dropout(flan, inputs_for):
    """The repeated part of the forward pass must draw what the first one drew."""
    batch, gradients = inputs_for(flan), []
    flan.train()
    T5WithFusion.fast_training = False
    try:
        gradients.append(step(flan, batch, bf16=False)[1])
    finally:
        T5WithFusion.fast_training = True
    flan.gradient_checkpointing_enable()
    gradients.append(step(flan, batch, bf16=False)[1])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_an_error_in_a_step_leaves_nothing_behind(flan, inputs_for, monkeypatch):
    batch = inputs_for(flan)
    monkeypatch.setattr(flan.lm_head, "forward", lambda states: 1 / 0)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ZeroDivisionError):
        flan.train()(**batch)
    numbers = torch.randn(1000)
    flan.eval()
    torch.manual_seed(0)
    expected = F.dropout(numbers, 0.5)
    torch.manual_seed(0)
    assert torch.equal(F.dropout(numbers, 0.5), expected)
    act = flan.encoder.block[0].layer[-1].DenseReluDense.act
    assert torch.equal(act(numbers), type(act).__mro__[1]()(numbers))


# --- dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_dropout_keeps_the_expected_value(dtype, p):
    torch.manual_seed(0)
    numbers = torch.ones(1000, 1001, dtype=dtype, requires_grad=True)  # not a multiple of four numbers
    output = dropout(numbers, p)
    kept = (output != 0).float()
    assert output.dtype == dtype
    assert abs(1 - kept.mean() - p) < 5 * (p * (1 - p) / numbers.numel()) ** 0.5
    torch.testing.assert_close(output[kept.bool()].float().unique(), torch.tensor([1 / (1 - p)]), rtol=0.01, atol=0)
    output.sum().backward()
    assert torch.equal(numbers.grad, output.detach())
    flat = kept.view(-1) - kept.mean()
    for lag in (1, 2, 3, 4, 1001):  # Neighbours, some of whose bits come from one draw, are independent.
        assert abs((flat[lag:] * flat[:-lag]).mean()) < 5 * p * (1 - p) / 1000


@pytest.mark.parametrize("p", [0.0, 1.0, 1e-7])
def test_dropout_at_the_ends_is_that_of_torch(p):
    numbers = torch.randn(50)
    torch.manual_seed(0)
    output = dropout(numbers, p)
    torch.manual_seed(0)
    assert torch.equal(output, F.dropout(numbers, p)) and torch.equal(dropout(numbers, 0.5, False), numbers)


# --- copies of frozen weights


def through_data(weight):
    weight.data += 0.5  # as PEFT merges an adapter; torch's version of the weight stays


def in_place(weight):
    with torch.no_grad():
        weight[0, 0] = 100.0


def new_storage(weight):
    weight.data = weight.data * 2


@pytest.mark.parametrize("change", [through_data, in_place, new_storage])
def test_a_changed_weight_gets_a_new_copy(change):
    weight, numbers = torch.nn.Parameter(torch.randn(30, 20), requires_grad=False), torch.randn(4, 20)
    with torch.autocast("cpu", torch.bfloat16):
        before = linear(numbers, weight)
        assert torch.equal(before, F.linear(numbers, weight))
        change(weight)
        after = linear(numbers, weight)
        assert torch.equal(after, F.linear(numbers, weight)) and not torch.equal(after, before)


def test_only_frozen_weights_are_copied_and_evaluation_frees_them(flan, inputs_for):
    model, batch = lora_on(flan), inputs_for(flan)
    step(model, batch)
    copied = {id(weight) for weight in fast_t5fusion._copies}
    frozen = {id(each) for name, each in model.named_parameters() if not each.requires_grad}
    assert copied and copied <= frozen
    twin = copy.deepcopy(model)
    assert model.state_dict().keys() == twin.state_dict().keys()
    model.eval()
    assert not len(fast_t5fusion._copies)


def test_training_after_a_merge_sees_the_merged_weights(flan, inputs_for, monkeypatch):
    model, batch = lora_on(flan), inputs_for(flan)
    set_dropout(model, 0.0)
    step(model, batch)
    model = lora_on(model.merge_and_unload())
    set_dropout(model, 0.0)
    loss, _ = step(model, batch)
    fast_t5fusion.forget_copies()
    assert torch.equal(loss, step(model, batch)[0])


# --- attention, loss and activation


@pytest.mark.parametrize("length", [5, 300])
def test_attention_is_that_of_torch(length):
    torch.manual_seed(0)
    states = [torch.randn(2, 3, length, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    bias = torch.randn(2, 3, length, length).masked_fill_(torch.rand(2, 1, length, length) < 0.3, -3e38)
    bias.requires_grad_()
    outputs = []
    for function in (attention, F.scaled_dot_product_attention):
        # Autocast turns the bias into bf16, which torch's function alone refuses.
        with torch.autocast("cpu", torch.bfloat16):
            output = function(*states, attn_mask=bias, scale=1.0)
        gradients = torch.autograd.grad(output.float().square().sum(), [*states, bias])
        outputs.append([output.float(), *(gradient.float() for gradient in gradients)])
    for own, expected in zip(*outputs, strict=True):
        assert own.shape == expected.shape and (own - expected).norm() < 0.03 * expected.norm()


def test_attention_of_another_kind_is_left_to_torch():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 4) for _ in range(3))
    bias = torch.randn(1, 1, 5, 5)
    for options in ({"attn_mask": bias, "scale": 1.0}, {"is_causal": True}, {"attn_mask": bias > 0}):
        assert torch.equal(
            attention(query, key, value, **options), F.scaled_dot_product_attention(query, key, value, **options)
        )


@pytest.mark.parametrize("rows", [3, 64, 200])
def test_the_loss_in_parts_is_that_of_torch(rows):
    torch.manual_seed(0)
    logits = (torch.randn(rows, 50) * 5).bfloat16().requires_grad_()
    labels = torch.randint(0, 50, (rows,))
    labels[::3] = -100
    loss = cross_entropy(logits, labels)
    expected = F.cross_entropy(logits.float(), labels)
    torch.testing.assert_close(loss, expected)
    (own,) = torch.autograd.grad(2 * loss, logits)
    (gradient,) = torch.autograd.grad(2 * expected, logits)
    torch.testing.assert_close(own, gradient, rtol=0.01, atol=1e-6)
    assert not own[::3].any() and own.dtype == torch.bfloat16


def test_other_losses_are_left_to_torch():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, -100])
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "sum"}, {"weight": torch.rand(5)}):
        assert torch.equal(cross_entropy(logits, labels, **options), F.cross_entropy(logits, labels, **options))


def test_labels_that_are_all_ignored_give_nan_as_in_torch():
    assert cross_entropy(torch.randn(3, 5).bfloat16(), torch.full((3,), -100)).isnan()

"""Packed rows and bf16 in `train`: the same results, and a fall-back where the processor lacks bf16."""

from functools import wraps

import pytest
import torch

from t5fusion import T5WithFusion
from t5fusion.common.base_models import make_processor
from t5fusion.finetune.evaluation import losses
from t5fusion.finetune.inputs import prepare
from t5fusion.finetune.options import TrainingOptions
from t5fusion.finetune.trainer import computes_in_bf16
from t5fusion.finetune.training import train

DIM = 8


@pytest.fixture(scope="module")
def base_without_dropout(tmp_path_factory, save_plain_t5):
    return str(save_plain_t5(tmp_path_factory.mktemp("base") / "base", d_model=32, num_layers=1, dropout_rate=0.0))


@pytest.fixture(scope="module")
def processor(base_without_dropout):
    return make_processor(base_without_dropout, lexical_dim=DIM, lexical_encoder=None, lexical_source="given")


@pytest.fixture(scope="module")
def rows(processor):
    vectors = torch.randn(24, DIM, generator=torch.Generator().manual_seed(0))
    texts = ["app_" + "settings" * (number % 4) + "abcdefghijklmnopqrstuvwx"[number] for number in range(24)]
    return prepare(texts, [text[::-1][: 3 + len(text) // 3] for text in texts], vectors, processor)


@pytest.fixture
def shapes(monkeypatch):
    """The number of sequences in each batch that the model gets: in training, and in evaluation."""
    seen = {"train": [], "evaluate": []}
    forward = T5WithFusion.forward

    @wraps(forward)  # The Trainer reads its signature.
    def record(self, *args, **kwargs):
        seen["train" if self.training else "evaluate"].append(len(kwargs["input_ids"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(T5WithFusion, "forward", record)
    return seen


def test_packed_rows_train_the_same_model(rows, processor, base_without_dropout, shapes, tmp_path):
    measured, sequences = [], []
    for packing in (False, True):
        options = TrainingOptions(
            base_model=base_without_dropout, epochs=2, batch_size=8, precision="fp32", dropout=0.0, packing=packing
        )
        model = train(rows[:16], rows[16:], processor, options, tmp_path / str(packing))
        measured.append(torch.as_tensor(losses(model, rows, processor).sums))
        sequences.append(shapes["train"][:])
        shapes["train"].clear()
    assert sequences[0] == [8] * 4 and max(sequences[1]) < 8
    assert set(shapes["evaluate"]) <= {8, 24}  # the held-out rows, and all of them: never packed
    torch.testing.assert_close(measured[1], measured[0], rtol=1e-4, atol=1e-4)


def test_without_bf16_in_the_processor_auto_computes_in_fp32(
    rows, processor, base_without_dropout, monkeypatch, tmp_path
):
    options = {
        precision: TrainingOptions(base_model=base_without_dropout, epochs=1, batch_size=8, precision=precision)
        for precision in ("auto", "fp32")
    }
    for feature in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, feature, lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not computes_in_bf16(options["auto"])
    models = [train(rows[:16], rows[16:], processor, each, tmp_path / name) for name, each in options.items()]
    weights = [dict(model.named_parameters()) for model in models]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_bf16_learns_as_fp32_does(rows, processor, base_without_dropout, tmp_path):
    measured = {}
    for precision in ("fp32", "bf16"):
        options = TrainingOptions(
            base_model=base_without_dropout, epochs=6, batch_size=8, precision=precision, dropout=0.0
        )
        model = train(rows[:16], rows[16:], processor, options, tmp_path / precision)
        measured[precision] = losses(model, rows, processor).mean
    assert measured["bf16"] == pytest.approx(measured["fp32"], rel=0.02)

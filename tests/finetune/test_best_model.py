"""Early stopping, the best model, intervals and settings: with real trainings of a random T5 of one layer."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from t5fusion.common.base_models import make_processor
from t5fusion.finetune import training
from t5fusion.finetune.inputs import prepare
from t5fusion.finetune.options import TrainingOptions
from t5fusion.finetune.output_folder import CHECKPOINTS, RESUME_CONDITIONS
from t5fusion.finetune.trainer import FusionTrainer
from t5fusion.finetune.training import train

DIM = 8
PATIENT = {"epochs": 9, "lr": 3e-2, "patience": 2}  # the held-out loss falls at first, and then rises


@pytest.fixture(scope="module")
def base(save_plain_t5, tmp_path_factory):
    return save_plain_t5(tmp_path_factory.mktemp("best") / "base", d_model=32, num_layers=1)


@pytest.fixture(scope="module")
def material(base):
    """Rows to train on, rows held out, and the processor. What the first teach is wrong for the others."""
    processor = make_processor(str(base), lexical_encoder=None, lexical_dim=DIM, lexical_source="given")
    vectors = torch.randn(20, DIM, generator=torch.Generator().manual_seed(0))
    letters = "abcdefghijklmnopqrst"
    targets = [f"settings of {letter}" if letter < "q" else "_gnp" for letter in letters]
    rows = prepare([f"app_{letter}" for letter in letters], targets, vectors, processor)
    return rows[:16], rows[16:], processor


@pytest.fixture(scope="module")
def options(base):
    def make(**changes):
        return TrainingOptions(**{"base_model": str(base), "precision": "fp32"} | changes)

    return make


def weights_of(folder):
    names = [name for name in ("adapter_model.safetensors", "model.safetensors") if (folder / name).exists()]
    return load_file(folder / names[0])


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in weights.items())


@pytest.fixture(scope="module", params=["lora", "full"])
def stopped(request, tmp_path_factory, material, options):
    """A training that stopped early: its options, its folder and the model in memory."""
    training_options = options(**PATIENT, full=request.param == "full")
    folder = tmp_path_factory.mktemp("stopped") / "run"
    return training_options, folder, train(*material, training_options, folder)


def test_it_stops_early_and_saves_the_best_model(stopped):
    training_options, folder, model = stopped
    record = json.loads((folder / "training.json").read_text())
    evaluations = [entry for entry in record["history"] if "eval_loss" in entry]
    losses = [entry["eval_loss"] for entry in evaluations]
    best = losses.index(min(losses))
    assert len(losses) - 1 - best == training_options.patience and len(losses) < training_options.epochs
    assert record["best"] == {name: evaluations[best][name] for name in ("step", "epoch", "eval_loss")}
    kept = {folder.name for folder in (folder / CHECKPOINTS).iterdir()}
    assert kept == {f"checkpoint-{evaluations[place]['step']}" for place in (best, -1)}
    saved, last = weights_of(folder), weights_of(folder / CHECKPOINTS / f"checkpoint-{evaluations[-1]['step']}")
    assert same(saved, weights_of(folder / CHECKPOINTS / f"checkpoint-{evaluations[best]['step']}"))
    assert not same(saved, last)
    in_memory = model.state_dict()
    names = {name.replace(".default", "").replace("modules_to_save.", ""): name for name in in_memory}
    assert all(torch.equal(value, in_memory[names[name]]) for name, value in saved.items())


def record_of(folder):
    return json.loads((folder / "training.json").read_text())


def evaluations_of(folder):
    return [(entry["step"], entry["eval_loss"]) for entry in record_of(folder)["history"] if "eval_loss" in entry]


def test_killed_and_moved_after_the_best_evaluation_it_ends_as_never_killed(
    stopped, material, options, tmp_path, monkeypatch
):
    training_options, folder, _ = stopped
    best = record_of(folder)["best"]

    class Killed(FusionTrainer):
        def _save_checkpoint(self, *args, **kwargs):
            super()._save_checkpoint(*args, **kwargs)
            if self.state.epoch > best["epoch"]:
                raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(training, "FusionTrainer", Killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(*material, training_options, tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    train(*material, training_options, tmp_path / "moved", resume=True)
    assert record_of(tmp_path / "moved")["best"] == best
    assert evaluations_of(tmp_path / "moved") == evaluations_of(folder)
    assert same(weights_of(tmp_path / "moved"), weights_of(folder))


def test_resumed_elsewhere_after_it_has_stopped_early_it_stays_as_it_is(stopped, material, tmp_path, capsys):
    training_options, folder, _ = stopped
    shutil.copytree(folder, tmp_path / "again")
    for state in (tmp_path / "again" / CHECKPOINTS).glob("*/trainer_state.json"):  # as if the first folder were gone
        state.write_text(state.read_text().replace(str(folder), "/gone"))
    train(*material, training_options, tmp_path / "again", resume=True)
    assert capsys.readouterr().err.count("This training had finished, so there is nothing to resume;") == 1
    assert evaluations_of(tmp_path / "again") == evaluations_of(folder)
    assert same(weights_of(tmp_path / "again"), weights_of(folder))


def test_a_best_checkpoint_that_is_gone_is_said(stopped, material, tmp_path, capsys):
    training_options, folder, _ = stopped
    shutil.copytree(folder, tmp_path / "again")
    best = record_of(folder)["best"]["step"]
    shutil.rmtree(tmp_path / "again" / CHECKPOINTS / f"checkpoint-{best}")
    train(*material, training_options, tmp_path / "again", resume=True)
    assert f"checkpoint-{best}, the best checkpoint so far, is missing or damaged." in capsys.readouterr().err
    assert record_of(tmp_path / "again")["best"] is None


def test_by_default_the_last_model_is_saved(material, options, tmp_path):
    train(*material, options(epochs=1), tmp_path / "run")
    assert record_of(tmp_path / "run")["best"] is None
    (checkpoint,) = (tmp_path / "run" / CHECKPOINTS).iterdir()
    assert same(weights_of(tmp_path / "run"), weights_of(checkpoint))


def test_a_checkpoint_of_a_release_without_an_option_is_resumed_with_its_default(material, options, tmp_path):
    train(*material, options(epochs=1), tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / CHECKPOINTS).iterdir()
    conditions = json.loads((checkpoint / RESUME_CONDITIONS).read_text())
    added = ("gradient_accumulation", "warmup_steps", "lr_scheduler_type", "eval_steps", "save_steps", "logging_steps")
    for name in (*added, "keep_best", "patience", "settings"):
        del conditions[name]
    assert "report_to" not in conditions
    (checkpoint / RESUME_CONDITIONS).write_text(json.dumps(conditions))
    with pytest.raises(ValueError, match="gradient_accumulation was 1, now 2"):
        train(*material, options(epochs=1, gradient_accumulation=2), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="settings was None, now {'weight_decay': 0.5}"):
        train(*material, options(epochs=1, settings={"weight_decay": 0.5}), tmp_path / "run", resume=True)
    before = weights_of(tmp_path / "run")
    train(*material, options(epochs=1), tmp_path / "run", resume=True)
    assert same(weights_of(tmp_path / "run"), before)


def test_intervals_in_steps_and_the_schedule(material, options, tmp_path):
    training_options = options(
        epochs=4, batch_size=4, gradient_accumulation=2, eval_steps=3, save_steps=3, logging_steps=1,
        warmup_steps=0.5, lr_scheduler_type="constant_with_warmup", lr=1e-2,
    )  # fmt: skip
    train(*material, training_options, tmp_path / "run")
    assert [step for step, _ in evaluations_of(tmp_path / "run")] == [3, 6, 8]
    rates = [entry["learning_rate"] for entry in record_of(tmp_path / "run")["history"] if "loss" in entry]
    assert rates == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01, 0.01])  # the rate of each of 8 steps
    assert [file.name for file in (tmp_path / "run" / CHECKPOINTS).iterdir()] == ["checkpoint-8"]


def test_settings_reach_the_trainer_and_lora(material, options, tmp_path):
    settings = {"max_steps": 3, "use_rslora": True, "optim": "adafactor", "exclude_modules": ["wo"]}
    train(*material, options(settings=settings), tmp_path / "run")
    assert record_of(tmp_path / "run")["history"][-1]["step"] == 3
    assert record_of(tmp_path / "run")["options"]["settings"] == settings
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["use_rslora"] and config["exclude_modules"] == ["wo"] and config["r"] == 32
    assert not [name for name in weights_of(tmp_path / "run") if ".wo." in name]
    (checkpoint,) = (tmp_path / "run" / CHECKPOINTS).iterdir()
    used = torch.load(checkpoint / "training_args.bin", weights_only=False)
    assert used.optim == "adafactor"

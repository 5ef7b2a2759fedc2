"""Training, saving and reloading, on a random T5 of one layer."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import t5fusion
from t5fusion import T5FusionProcessor, T5WithFusion
from t5fusion.common.base_models import make_processor
from t5fusion.common.run_folder import load_trained
from t5fusion.finetune import training as training
from t5fusion.finetune.evaluation import losses
from t5fusion.finetune.inputs import prepare
from t5fusion.finetune.model import build_model, count_weights
from t5fusion.finetune.options import TrainingOptions
from t5fusion.finetune.trainer import FusionTrainer, Interrupted
from t5fusion.finetune.training import train
from t5fusion.kinds_t5fusion import VectorKind

DIM = 8
LETTERS = "abcdefghijklmnopqrst"
KINDS = {
    "lora": {},
    "full": {"full": True},
    "frozen fusion": {"train_fusion": False, "target_modules": ("q", "v")},
    "random start": {"fusion_start": "random"},
}


@pytest.fixture(scope="module")
def rows(processor):
    vectors = torch.randn(len(LETTERS), DIM, generator=torch.Generator().manual_seed(0))
    targets = [f"settings of {letter}" for letter in LETTERS]
    return prepare([f"app_{letter}" for letter in LETTERS], targets, vectors, processor)


@pytest.fixture(scope="module")
def options(base):
    def make(**changes):
        return TrainingOptions(**{"base_model": str(base), "epochs": 2, "batch_size": 8, "precision": "fp32"} | changes)

    return make


@pytest.fixture(scope="module", params=list(KINDS))
def trained(request, tmp_path_factory, rows, processor, options):
    """A training of each kind: its name, its options, its run folder and the model in memory."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    training_options = options(**KINDS[request.param])
    return request.param, training_options, folder, train(rows[:16], rows[16:], processor, training_options, folder)


def weights_of(folder):
    names = [name for name in ("adapter_model.safetensors", "model.safetensors") if (folder / name).exists()]
    assert len(names) == 1
    return load_file(folder / names[0])


def test_the_saved_files(trained, base):
    kind, training_options, folder, model = trained
    saved = {file.name for file in folder.iterdir()}
    assert {"training.json", "loss.svg", "processor_config.json", "tokenizer_config.json", "tokenizer.json"} <= saved
    assert "checkpoints" in saved
    assert ("model.safetensors" in saved and "config.json" in saved) == training_options.full
    assert ("adapter_model.safetensors" in saved and "adapter_config.json" in saved) != training_options.full
    assert isinstance(model, T5WithFusion) == training_options.full
    fusion = [name for name in weights_of(folder) if ".fusion." in name]
    assert len(fusion) == (0 if kind == "frozen fusion" else 3)
    if not training_options.full:
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == f'T5WithFusion({base}, {{"lexical_dim": 8}})'
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (32, 32, 0.05)
        expected = ["q", "v"] if kind == "frozen fusion" else ["k", "o", "q", "v", "wi", "wo"]
        assert sorted(config["target_modules"]) == expected
        assert config["modules_to_save"] == ([] if kind == "frozen fusion" else ["fusion"])


def test_others_can_read_what_is_saved(trained, tmp_path):
    """The weights, which safetensors writes for their owner alone, and the checkpoints."""
    (tmp_path / "of the umask").touch()
    expected = (tmp_path / "of the umask").stat().st_mode
    files = [file for file in trained[2].rglob("*") if file.is_file()]
    assert any(file.parent.name.startswith("checkpoint-") for file in files)
    assert [file.name for file in files if file.stat().st_mode != expected] == []


def test_the_record_of_a_training(trained, base):
    _, training_options, folder, model = trained
    record = json.loads((folder / "training.json").read_text())
    assert record["options"]["base"] == str(base) and record["options"]["seed"] == 42
    assert record["options"]["lr"] == (5e-4 if training_options.full else 1e-3)
    assert (record["rows"], record["held_out_rows"]) == (16, 4)
    assert (record["trainable_weights"], record["weights"]) == count_weights(model)
    assert [entry["epoch"] for entry in record["history"] if "eval_loss" in entry] == [1, 2]
    assert [entry["epoch"] for entry in record["history"] if "loss" in entry] == [1, 2]
    assert set(record["versions"]) == {"t5fusion", "torch", "transformers", "peft", "datasets"}
    assert record["versions"]["t5fusion"] == t5fusion.__version__ and record["seconds"] > 0


def test_the_share_of_trainable_weights(trained):
    kind, training_options, _, model = trained
    trains, total = count_weights(model)
    if training_options.full:
        assert trains == total == sum(p.numel() for p in model.parameters())
        return
    # four (or q and v) of three attentions, between 32 and 16 (four heads of four), r (32 + 16) each; two of two
    # feed-forward layers, between 32 and 32; and the fusion layer
    attention, feed_forward, fusion = 3 * 32 * (32 + 16), 2 * 2 * 32 * (32 + 32), 32 * DIM + 32 + 32
    lora = 2 * attention if kind == "frozen fusion" else 4 * attention + feed_forward
    assert trains == lora + (0 if kind == "frozen fusion" else fusion)
    assert total > trains


def test_training_changes_only_trainable_weights(trained, base, rows, processor):
    kind, training_options, _, model = trained
    start = dict(build_model(training_options, processor, rows[:16]).named_parameters())
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, start[name])}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert moved and not moved & frozen
    assert any("fusion" in name for name in moved) == (kind != "frozen fusion")
    assert training_options.full or any("lora_B" in name for name in moved)


def test_another_process_reloads_the_same_logits_to_the_bit(trained, rows, processor, run_python, tmp_path):
    _, _, folder, model = trained
    ids = torch.tensor([[processor.lexical_token_id, *rows[0]["input_ids"]]])
    batch = {"input_ids": ids, "lexical_embeds": rows[0]["lexical_embeds"][None], "labels": ids[:, 1:]}
    torch.save(batch, tmp_path / "batch.pt")
    code = """
        import sys
        from pathlib import Path
        import torch
        from t5fusion.common.run_folder import load_trained
        folder, here = map(Path, sys.argv[1:])
        model, processor = load_trained(folder)
        assert not model.training and processor.lexical_dim == 8 and processor.lexical_source == "given"
        with torch.no_grad():
            torch.save(model(**torch.load(here / "batch.pt")).logits, here / "logits.pt")
    """
    run_python(code, folder, tmp_path)
    with torch.no_grad():
        here = model.eval()(**batch).logits
    there = torch.load(tmp_path / "logits.pt")
    assert torch.equal(there, here)
    without = model(input_ids=ids[:, 1:], labels=ids[:, 1:]).logits
    assert not torch.equal(without, here)


def test_the_loss_falls_and_the_vectors_are_read(rows, processor, options, tmp_path):
    before = losses(build_model(options(), processor, rows), rows, processor).mean
    model = train(rows, rows[:4], processor, options(epochs=15, lr=1e-2), tmp_path / "run")
    assert losses(model, rows, processor).mean < before - 0.5


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_same_seed_gives_the_same_weights_to_the_bit(rows, processor, options, tmp_path, kind):
    weights = []
    for run, seed in enumerate((7, 7, 8)):
        torch.manual_seed(run)  # The state before the training must not matter.
        torch.rand(run)
        training_options = options(epochs=1, seed=seed, **KINDS[kind])
        train(rows[:16], rows[16:], processor, training_options, tmp_path / str(run))
        weights.append(weights_of(tmp_path / str(run)))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not all(torch.equal(value, weights[2][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_fusion_layer_has_its_own_learning_rate(rows, processor, options, tmp_path, monkeypatch, kind):
    rates = {}

    def keep(self, model=None):
        optimizer = create(self, model)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert id(parameter) not in rates
                rates[id(parameter)] = (names[id(parameter)], group["lr"])
        return optimizer

    create = FusionTrainer.create_optimizer
    monkeypatch.setattr(FusionTrainer, "create_optimizer", keep)
    training_options = options(epochs=1, lr=1e-3, fusion_lr=0.0, **KINDS[kind])
    model = train(rows[:16], rows[16:], processor, training_options, tmp_path / "run")
    assert len(rates) == sum(parameter.requires_grad for parameter in model.parameters())
    for name, rate in rates.values():
        assert rate == (0.0 if ".fusion." in name else 1e-3), name
    start = dict(build_model(training_options, processor, rows[:16]).named_parameters())
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, start[name])}
    assert moved and not any("fusion" in name for name in moved)


class PressCtrlC(TrainerCallback):
    """Send SIGINT at the given step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        import os
        import signal

        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_resumed_training_equals_an_uninterrupted_one(rows, processor, options, tmp_path, monkeypatch, step):
    training_options = options(epochs=3, batch_size=4, fusion_lr=3e-3, target_modules=("q", "v"))
    train(rows[:16], rows[16:], processor, training_options, tmp_path / "whole")

    evaluations = []

    class Stopped(FusionTrainer):
        def __init__(self, *args, callbacks, **kwargs):
            super().__init__(*args, callbacks=[*callbacks, PressCtrlC(step)], **kwargs)

        def evaluate(self, *args, **kwargs):
            evaluations.append(self.state.global_step)
            return super().evaluate(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(training, "FusionTrainer", Stopped)
        with pytest.raises(Interrupted):
            train(rows[:16], rows[16:], processor, training_options, tmp_path / "stopped")
    assert evaluations == [4][: (step + 1) // 4]  # Ctrl-C within an epoch does not wait for its evaluation.
    assert [file.name for file in (tmp_path / "stopped").iterdir()] == ["checkpoints"]
    assert [file.name for file in (tmp_path / "stopped" / "checkpoints").iterdir()] == [f"checkpoint-{step + 1}"]
    others = [row | {"labels": [5, 1]} for row in rows[:16]]
    with pytest.raises(ValueError, match=r"with other settings: digest of the rows was \w+, now \w+\. Resume with"):
        train(others, rows[16:], processor, training_options, tmp_path / "stopped", resume=True)
    prompted = make_processor(
        training_options.base_model,
        lexical_encoder=None,
        lexical_dim=DIM,
        lexical_source="given",
        template="Other: {text}",
    )
    with pytest.raises(ValueError, match=r"template was \{text\}, now Other: \{text\}"):
        train(rows[:16], rows[16:], prompted, training_options, tmp_path / "stopped", resume=True)
    train(rows[:16], rows[16:], processor, training_options, tmp_path / "stopped", resume=True)
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    steps = [
        json.loads((tmp_path / run / "training.json").read_text())["history"][-1]["step"]
        for run in ("whole", "stopped")
    ]
    assert steps == [12, 12]
    if step == 3:  # stopped at the end of an epoch; within one, dropout draws other numbers after the resumption
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_the_handler_of_ctrl_c_is_restored_after_an_error(rows, processor, options, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="no token of text"):
        train([*rows[:16], {"input_ids": [1], "labels": [5, 1]}], rows[16:], processor, options(), tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before


def test_resuming_without_a_checkpoint_is_refused(rows, processor, options, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in .* to resume from. Leave --resume out"):
        train(rows[:16], rows[16:], processor, options(), tmp_path / "run", resume=True)


def test_the_start_from_the_targets_is_used_and_reported(rows, processor, options, capsys):
    rows = [
        row | {"labels": [5 + 3 * (index % 4), 1], "lexical_embeds": torch.eye(8)[index % 4]}
        for index, row in enumerate(rows)
    ]
    started = build_model(options(), processor, rows).base_model.model.encoder.fusion
    assert re.search("fit_fusion: the vectors of 20 rows explain .*% of their targets' words", capsys.readouterr().err)
    plain = build_model(options(fusion_start="random"), processor, rows).base_model.model.encoder.fusion
    frozen = build_model(options(train_fusion=False), processor, rows).base_model.model.encoder.fusion
    assert capsys.readouterr().out == ""
    weight = plain.modules_to_save["default"].projection.weight
    assert torch.equal(weight, frozen.projection.weight)  # It is not saved, so it must be the same on every machine.
    assert not torch.equal(weight, started.modules_to_save["default"].projection.weight)


def test_useless_vectors_are_reported(rows, processor, options, tmp_path, capsys):
    rows = [row | {"lexical_embeds": torch.ones(DIM)} for row in rows]
    train(rows[:16], rows[16:], processor, options(epochs=1), tmp_path / "run")
    assert capsys.readouterr().err.count("The vectors do not help: on 4 held-out rows the loss is") == 1


def test_rows_without_vectors_train_no_fusion_layer(rows, processor, options):
    model = build_model(options(), processor, [{"input_ids": [5, 1], "labels": [6, 1]}] * 4)
    assert not [name for name, p in model.named_parameters() if p.requires_grad and "fusion" in name]


def test_a_base_model_with_an_adapter_is_refused(trained, rows, processor, options):
    kind, _, folder, _ = trained
    if kind == "lora":
        with pytest.raises(ValueError, match=r"holds an adapter, and `train` does not add a second one"):
            build_model(options(base_model=str(folder)), processor, rows)


def test_a_tokenizer_of_another_model_is_refused(rows, tokenizer, options):
    tokenizer.add_tokens(["<another>"])
    other = T5FusionProcessor(tokenizer, lexical_dim=DIM)
    with pytest.raises(ValueError, match="<lexical> is token 136 of the tokenizer and 135 of the model"):
        build_model(options(), other, rows)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("fusion_start", "zero", "`fusion_start` is 'zero'; expected one of targets, random"),
        ("precision", "int8", "`precision` is 'int8'; expected one of auto, fp32, bf16"),
        ("lr", -1.0, "`lr` is -1.0; expected a number above 0"),
        ("lr", float("nan"), "`lr` is nan; expected a number above 0"),
        ("lr", float("inf"), "`lr` is inf; expected a number above 0"),
        ("lr", "1e-3", "`lr` is '1e-3'; expected a number above 0"),
        ("fusion_lr", float("nan"), "`fusion_lr` is nan; expected a number from 0"),
        ("fusion_lr", -1e-3, "`fusion_lr` is -0.001; expected a number from 0"),
        ("epochs", float("nan"), "`epochs` is nan; expected a number above 0"),
        ("epochs", 0, "`epochs` is 0; expected a number above 0"),
        ("dropout", 1.0, "`dropout` is 1.0; expected a number from 0 to less than 1"),
        ("dropout", -0.1, "`dropout` is -0.1; expected a number from 0 to less than 1"),
        ("dropout", float("nan"), "`dropout` is nan; expected a number from 0 to less than 1"),
        ("rank", 0, "`rank` is 0; expected a whole number from 1"),
        ("rank", 8.5, "`rank` is 8.5; expected a whole number from 1"),
        ("rank", True, "`rank` is True; expected a whole number from 1"),
        ("alpha", 0, "`alpha` is 0; expected a number above 0"),
        ("alpha", float("inf"), "`alpha` is inf; expected a number above 0"),
        ("batch_size", 0, "`batch_size` is 0; expected a whole number from 1"),
        ("max_source", 1, "`max_source` is 1; expected a whole number from 2"),
        ("max_target", 0, "`max_target` is 0; expected a whole number from 2"),
        ("seed", -1, "`seed` is -1; expected a whole number from 0 to 4294967295"),
        ("seed", 2**32, "`seed` is 4294967296; expected a whole number from 0 to 4294967295"),
        ("target_modules", "qv", r"`target_modules` is 'qv'; expected names such as \('q', 'v'\), or None"),
        ("target_modules", (), r"`target_modules` is \(\); expected names such as \('q', 'v'\), or None"),
        ("target_modules", ("q", ""), r"`target_modules` is \('q', ''\); expected names such as \('q', 'v'\), or None"),
    ],
)
def test_options_are_checked(field, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainingOptions(**{field: value})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"full": True, "rank": 8}, "`rank` has no effect with `full`: it is LoRA's"),
        ({"full": True, "target_modules": ("q",)}, "`target_modules` has no effect with `full`: it is LoRA's"),
        (
            {"full": True, "alpha": 8, "dropout": 0.1},
            "`alpha` and `dropout` have no effect with `full`: they are LoRA's",
        ),
        ({"train_fusion": False, "fusion_lr": 1e-3}, "`fusion_lr` has no effect with `train_fusion=False`"),
    ],
)
def test_options_without_effect_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainingOptions(**fields)


def test_extreme_values_of_options_are_accepted():
    TrainingOptions(epochs=1, lr=1e-9, fusion_lr=0, rank=1, alpha=0.5, dropout=0, seed=0, max_source=2, max_target=2)
    TrainingOptions(seed=2**32 - 1, target_modules=["q"], dropout=0.99)


@pytest.mark.parametrize(
    ("names", "unknown"),
    [
        (("q", "vv"), "'vv'"),
        (("q", "v "), "'v '"),
        (("x", "y"), "'x', 'y'"),
        (("q", "SelfAttention"), "'SelfAttention'"),  # It contains modules for LoRA, but is none itself.
        (("q", "shared"), "'shared'"),  # Encoder and decoder would use the table without LoRA.
        (("q", "projection"), "'projection'"),  # It is trained in full already.
        (("q", "DenseReluDense.wi_9"), "'DenseReluDense.wi_9'"),
    ],
)
def test_each_target_module_must_be_in_the_model(rows, processor, options, tmp_path, names, unknown):
    with pytest.raises(ValueError, match=f"has no module {unknown} that LoRA can adapt; expected any of ") as refused:
        train(rows[:16], rows[16:], processor, options(target_modules=names), tmp_path / "run")
    listed = re.search(r"any of (.+?)\.", str(refused.value))[1].split(", ")
    assert listed == ["embed_tokens", "k", "lm_head", "o", "q", "relative_attention_bias", "v", "wi", "wo"]
    assert not (tmp_path / "run").exists()


def test_target_modules_may_be_named_by_a_part_of_their_path(rows, processor, options):
    names = ("EncDecAttention.q", "decoder.block.0.layer.0.SelfAttention.v", "relative_attention_bias")
    model = build_model(options(target_modules=names), processor, rows)
    assert {
        name.partition(".lora_A")[0].partition(".model.")[2] for name, _ in model.named_parameters() if "lora_A" in name
    } == {
        "decoder.block.0.layer.1.EncDecAttention.q",
        "decoder.block.0.layer.0.SelfAttention.v",
    }


def test_full_training_with_a_frozen_fusion_layer(rows, processor, options):
    model = build_model(options(full=True, train_fusion=False), processor, rows)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".fusion." in name} and frozen


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "holds neither an adapter nor a model. Name a folder that `t5fusion train` wrote"),
        (["adapter_config.json"], "holds no processor_config.json. Save one there: T5FusionProcessor"),
    ],
)
def test_a_folder_that_train_did_not_write(tmp_path, files, sentence):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(OSError, match=sentence):
        load_trained(Path(tmp_path))


def test_an_adapter_of_another_program_is_loaded(trained, rows, processor):
    kind, _, folder, model = trained
    (folder / "training.json").rename(folder / "kept.json")
    try:
        loaded, _ = load_trained(folder)
    finally:
        (folder / "kept.json").rename(folder / "training.json")
    assert losses(loaded, rows, processor).sums.tolist() == losses(model, rows, processor).sums.tolist(), kind


@pytest.fixture(scope="module")
def raw_rows(base):
    """Rows of a price each, and their processor."""
    given = {"lexical_encoder": None, "lexical_source": "given"}
    processor = make_processor(str(base), vectors={"price": VectorKind(1, scale="log")}, **given)
    prices = [{"price": torch.tensor([10.0 ** (index / 4)])} for index in range(len(LETTERS))]
    targets = [f"settings of {letter}" for letter in LETTERS]
    return prepare([f"app_{letter}" for letter in LETTERS], targets, prices, processor), processor


@pytest.mark.parametrize("full", [False, True])
def test_a_frozen_fusion_layer_keeps_its_scales(raw_rows, options, tmp_path, full):
    rows, processor = raw_rows
    frozen = options(train_fusion=False, full=full)
    model = train(rows[:16], rows[16:], processor, frozen, tmp_path / "run")
    loaded, _ = load_trained(tmp_path / "run")
    assert losses(loaded, rows, processor).sums.tolist() == losses(model, rows, processor).sums.tolist()
    saved = {name.rpartition(".fusion.")[2]: value for name, value in weights_of(tmp_path / "run").items()}
    untuned = T5WithFusion(frozen.base_model, vectors=processor.vectors)
    untuned.fit_scales(rows[:16])
    assert untuned.encoder.fusion.scale.is_fitted
    for name, value in untuned.encoder.fusion.state_dict().items():  # the weights are the initial ones
        assert torch.equal(saved[name], value), name
    others = [name for name, weight in model.named_parameters() if ".fusion." in name and weight.requires_grad]
    assert not others and any(weight.requires_grad for weight in model.parameters())


def test_a_frozen_fusion_layer_stays_frozen_in_a_resumed_training(raw_rows, options, tmp_path, monkeypatch):
    rows, processor = raw_rows
    frozen = options(train_fusion=False)

    class Stopped(FusionTrainer):
        def __init__(self, *args, callbacks, **kwargs):
            super().__init__(*args, callbacks=[*callbacks, PressCtrlC(1)], **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(training, "FusionTrainer", Stopped)
        with pytest.raises(Interrupted):
            train(rows[:16], rows[16:], processor, frozen, tmp_path / "stopped")
    train(rows[:16], rows[16:], processor, frozen, tmp_path / "whole")
    train(rows[:16], rows[16:], processor, frozen, tmp_path / "stopped", resume=True)
    whole, resumed = (weights_of(tmp_path / name) for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)  # It was stopped at the end of an epoch.

"""`shrink_adapter` and `t5fusion shrink`: a trained adapter becomes smaller, and every way to load it agrees."""

import json
import re
import shutil
from functools import partial

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from training_folder import fill_training_folder
from transformers import AutoModelForSeq2SeqLM

from t5fusion import T5WithFusion
from t5fusion.common.run_files import weights_digest
from t5fusion.finetune import load_trained, shrink_adapter

RANK, ALPHA = 8, 16
ADAPTER, CONFIG, RECORD = "adapter_model.safetensors", "adapter_config.json", "training.json"


def on_its_base(folder, dtype, **options):
    name = json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]
    return PeftModel.from_pretrained(T5WithFusion.from_pretrained(name, dtype=dtype), folder, **options)


LOADERS = {
    "T5WithFusion": T5WithFusion.from_pretrained,
    "PeftModel": on_its_base,
    "PeftModel, low_cpu_mem_usage": partial(on_its_base, low_cpu_mem_usage=True),
    "a bundle": lambda folder, **options: AutoModelForSeq2SeqLM.from_pretrained(
        folder.with_name("bundle"), trust_remote_code=True, **options
    ),
}


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    return fill_training_folder(tmp_path_factory.mktemp("shrink"), save_plain_t5, lambda row, a: f"settings of {a}")


@pytest.fixture(scope="module")
def trained(room, run):
    """A run folder. One epoch has hardly moved B from zero, so it gets larger numbers."""
    run(
        "train", "rows.jsonl", "--validation", "held_out.jsonl", "--base-model", room / "base",
        "--text-column", "name", "--target-column", "text", "--vector-column", "vector:standard", "--precision", "fp32",
        "--epochs", "1", "--rank", RANK, "--alpha", ALPHA, "--output", "run",
    )  # fmt: skip
    numbers = torch.Generator().manual_seed(0)
    write(room / "run", lambda name, old: torch.randn(old.shape, generator=numbers) / 8 if "lora_B" in name else old)
    return room / "run"


def weights(folder):
    return load_file(folder / ADAPTER)


def write(folder, change):
    """Replace each weight of an adapter by `change(name, weight)`."""
    changed = {name: change(name, value) for name, value in weights(folder).items()}
    save_file(changed, folder / ADAPTER, metadata={"format": "pt"})
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | {"weights_digest": weights_digest(folder)}))


def copy(trained, folder, change=None, **config):
    """Copy a run folder, change its weights, and set fields of its adapter's config."""
    shutil.copytree(trained, folder)
    if change:
        write(folder, change)
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | config))
    return folder


def updates(folder):
    """What the adapter adds to the matrix of each layer, float64 (outputs, inputs), by the layer's name."""
    config, tensors = json.loads((folder / CONFIG).read_text()), weights(folder)
    return {
        name.removesuffix(".lora_A.weight"): config["lora_alpha"] / config["r"]
        * tensors[name.replace("lora_A", "lora_B")].double() @ tensors[name].double()
        for name in tensors if name.endswith("lora_A.weight")
    }  # fmt: skip


def logits(model, inputs_for):
    with torch.no_grad():
        return model.eval()(**inputs_for(model)).logits


def test_a_lower_rank_is_the_best_approximation(trained, tmp_path):
    shrunk = shrink_adapter(trained, tmp_path / "small", rank=3)
    assert (shrunk.rank_before, shrunk.rank, shrunk.dtype) == (RANK, 3, None)
    before, after = updates(trained), updates(tmp_path / "small")
    assert before.keys() == after.keys() and len(before) > 10
    for name, update in before.items():
        outer, sizes, inner = torch.linalg.svd(update)
        torch.testing.assert_close(after[name], outer[:, :3] * sizes[:3] @ inner[:3], rtol=0, atol=1e-5)
    old, new = weights(trained), weights(tmp_path / "small")
    others = [name for name in old if "lora_" not in name]
    assert others and all(torch.equal(old[name], new[name]) for name in others)
    assert {value.dtype for value in new.values()} == {torch.float32}


def test_a_rank_that_loses_nothing_gives_the_same_logits(trained, tmp_path, inputs_for):
    mask = torch.tensor([1.0] * 4 + [0.0] * 4)
    folder = copy(trained, tmp_path / "rank 4", lambda name, old: old * mask if "lora_B" in name else old)
    shrink_adapter(folder, tmp_path / "small", rank=4)
    expected, given = (logits(load_trained(each)[0], inputs_for) for each in (folder, tmp_path / "small"))
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    assert (logits(load_trained(trained)[0], inputs_for) - expected).abs().max() > 0.01  # The adapter has an effect.


def test_all_other_fields_of_the_config_stay(trained, tmp_path):
    folder = copy(trained, tmp_path / "run", use_rslora=True, lora_dropout=0.25, revision="main")
    shrink_adapter(folder, tmp_path / "small", rank=2)
    old, new = (json.loads((each / CONFIG).read_text()) for each in (folder, tmp_path / "small"))
    changed = {"r": 2, "lora_alpha": 2, "use_rslora": False}
    assert new == old | changed and new["modules_to_save"] == ["fusion"]
    factor = (ALPHA / RANK**0.5) / (ALPHA / RANK)  # that of `use_rslora`, which the new weights hold
    for name, update in updates(folder).items():
        norm = torch.linalg.matrix_norm(factor * update, 2)
        torch.testing.assert_close(
            torch.linalg.matrix_norm(updates(tmp_path / "small")[name], 2), norm, rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rounds_the_weights_and_no_scale(trained, tmp_path, dtype, inputs_for):
    shrunk = shrink_adapter(trained, tmp_path / "small", dtype=dtype)
    old, new = weights(trained), weights(tmp_path / "small")
    scales = [name for name in old if ".scale." in name]
    assert len(scales) == 3 and old.keys() == new.keys()
    for name, value in old.items():
        assert torch.equal(new[name], value if name in scales else value.to(getattr(torch, dtype)))
        assert (new[name].dtype == torch.float32) == (name in scales)
    assert shrunk.rank == RANK and shrunk.bytes < 0.6 * shrunk.bytes_before
    expected, given = (logits(load_trained(each)[0], inputs_for) for each in (trained, tmp_path / "small"))
    bound = {"float16": 0.002, "bfloat16": 0.02}[dtype]
    assert 0 < (given - expected).abs().max() < bound * expected.abs().max()


@pytest.fixture(scope="module")
def small(room, trained, run):
    """A run folder that the command wrote, with a bundle beside it, and what the command printed."""
    out, err = run("shrink", "run", "small", "--rank", "3", "--dtype", "float16")
    run("export", "small", "bundle", "--kind", "standalone")
    return room / "small", out, err


def test_every_way_to_load_gives_the_same_model(small, inputs_for):
    outputs = {"load_trained": logits(load_trained(small[0])[0], inputs_for)}
    for name, load in LOADERS.items():
        model = load(small[0], dtype=torch.float32)
        assert {value.dtype for value in model.state_dict().values()} == {torch.float32}, name
        outputs[name] = logits(model, inputs_for)
    assert all(torch.equal(output, outputs["load_trained"]) for output in outputs.values())


@pytest.mark.parametrize("loader", LOADERS)
def test_the_fusion_layer_computes_in_the_dtype_of_the_base_model(small, loader, inputs_for):
    model = LOADERS[loader](small[0], dtype=torch.bfloat16)
    dtypes = {name: value.dtype for name, value in model.state_dict().items() if "fusion" in name}
    assert all(dtype == (torch.float32 if ".scale." in name else torch.bfloat16) for name, dtype in dtypes.items())
    assert torch.float16 not in {value.dtype for value in model.state_dict().values()}
    assert logits(model, inputs_for).dtype == torch.bfloat16


def test_the_command_says_what_it_did_and_what_to_type_next(small, trained):
    folder, out, err = small
    sizes = [(each / ADAPTER).stat().st_size for each in (trained, folder)]
    assert out == f"{sizes[0] / 1e6:.1f} MB -> {sizes[1] / 1e6:.1f} MB: rank 8 -> 3, float16\n"
    assert err.endswith("Next: t5fusion evaluate small\n")
    old, new = (json.loads((each / RECORD).read_text()) for each in (trained, folder))
    did = {"rank_before": RANK, "rank": 3, "dtype": "float16", "bytes_before": sizes[0], "bytes": sizes[1]}
    assert new == old | {"shrunk": did, "weights_digest": weights_digest(folder)}
    left = {file.name for file in trained.iterdir()} - {file.name for file in folder.iterdir()}
    assert left == {"checkpoints"}  # and evaluation.json, see below
    assert {file.stat().st_mode for file in folder.iterdir()} == {(trained / RECORD).stat().st_mode}


def test_the_other_commands_read_the_result(run, room, small, trained):
    facts = json.loads(run("info", "small", "--json")[0])
    assert facts["measures"] == {} and facts["adapter"]["rank"] == 3
    assert facts["trained_weights"] == sum(value.numel() for value in weights(room / "small").values())
    out, err = run("evaluate", "small", "--json", "--limit", "2")
    loss = json.loads(out)["eval_loss"]
    assert f"eval_loss is {loss:.6f}, and was" in err and "in training, with the larger adapter." in err
    assert run("generate", "small", "--file", "held_out.jsonl", "--limit", "1")[0]
    run("shrink", "small", "smaller", "--rank", "2")  # in the dtypes that it has
    kept = [{name: value.dtype for name, value in weights(room / each).items()} for each in ("small", "smaller")]
    assert kept[0] == kept[1] and not (room / "smaller" / "evaluation.json").exists()
    card = (room / "bundle" / "README.md").read_text()
    assert "| made smaller after training | from rank 8, saved in float16 |" in card
    assert "| final loss on the validation rows, with the larger adapter |" in card
    printed, _ = run("verify", "bundle")
    assert "ok AutoModelForSeq2SeqLM: bit for bit" in printed and "NO " not in printed


REFUSED = {
    "nothing": (
        {},
        {},
        "nothing to do: neither a rank nor a dtype was given. Pass --rank 8, --dtype float16, or both.",
    ),
    "the same rank": (
        {"rank": 8},
        {},
        "the rank is 8, and the adapter in {run} has rank 8; expected a lower one, from",
    ),
    "rank 0": ({"rank": 0}, {}, "the rank is 0, and the adapter in"),
    "an unknown dtype": ({"dtype": "int8"}, {}, "the dtype is 'int8'; expected one of float16, bfloat16."),
    "another type": ({"rank": 2}, {"peft_type": "LOHA"}, "{run} holds an adapter of type LOHA; only LoRA can be"),
    "DoRA": ({"dtype": "float16"}, {"use_dora": True}, "the adapter in {run} is not a plain LoRA (use_dora); only"),
    "PiSSA": ({"rank": 2}, {"init_lora_weights": "pissa"}, "{run} is not a plain LoRA (init_lora_weights); only plain"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shrunk_is_refused(trained, tmp_path, case):
    options, config, sentence = REFUSED[case]
    folder = copy(trained, tmp_path / "run", **config)
    refuse(folder, tmp_path / "new", sentence, **options)


def refuse(folder, output, sentence, **options):
    """Check that `shrink_adapter` refuses in this sentence, and leaves nothing beside or in the place of the output."""
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(ValueError, match=re.escape(sentence.format(run=folder))):
        shrink_adapter(folder, output, **options)
    assert sorted(output.parent.rglob("*")) == before


def test_a_folder_that_is_no_run_folder_with_an_adapter_is_refused(trained, tmp_path):
    whole, bundle, unknown = (copy(trained, tmp_path / name) for name in ("whole", "bundle", "unknown"))
    expected = "; expected a run folder that `t5fusion train` wrote, with a LoRA adapter."
    for folder in (whole, bundle):
        (folder / "config.json").write_text("{}")
    (whole / CONFIG).unlink()
    refuse(whole, tmp_path / "new", "{run} holds all weights" + expected, rank=2)
    refuse(bundle, tmp_path / "new", "{run} holds a bundle" + expected, rank=2)
    (unknown / RECORD).unlink()
    refuse(unknown, tmp_path / "new", "{run} holds no training.json" + expected, rank=2)


def test_weights_of_an_extension_of_lora_are_refused(trained, tmp_path):
    folder = copy(trained, tmp_path / "run")
    name = next(name for name in weights(folder) if "lora_B" in name).replace("lora_B.weight", "lora_B.bias")
    save_file(weights(folder) | {name: torch.zeros(16)}, folder / ADAPTER)
    refuse(folder, tmp_path / "new", f"is not a plain LoRA ({name}); only plain ones", dtype="float16")
    save_file({"other": torch.ones(1)}, folder / ADAPTER)
    refuse(folder, tmp_path / "new", f"{{run}} holds no weights of LoRA in {ADAPTER}.", rank=2)


@pytest.mark.parametrize("factor", [1e6, 1e-9])
def test_weights_that_float16_cannot_hold_are_refused(trained, tmp_path, factor):
    folder = copy(
        trained, tmp_path / "run", lambda name, old: old * factor if "fusion.projection.weight" in name else old
    )
    refuse(
        folder,
        tmp_path / "new",
        "float16 cannot hold base_model.model.encoder.fusion.projection.weight, whose",
        dtype="float16",
    )
    shrink_adapter(folder, tmp_path / "new", dtype="bfloat16")


def test_only_a_smaller_adapter_is_overwritten(trained, tmp_path):
    (tmp_path / "mine").mkdir()
    shrink_adapter(trained, tmp_path / "mine", rank=4)  # into an empty folder
    refuse(trained, tmp_path / "mine", "mine holds a smaller adapter already. Choose a different folder,", rank=2)
    (tmp_path / "mine" / "diary.txt").write_text("mine")
    shrink_adapter(trained, tmp_path / "mine", rank=2, overwrite=True)
    assert (tmp_path / "mine" / "diary.txt").read_text() == "mine"
    assert json.loads((tmp_path / "mine" / CONFIG).read_text())["r"] == 2
    shrink_adapter(tmp_path / "mine", tmp_path / "mine", rank=1, overwrite=True)  # in its own place
    assert json.loads((tmp_path / "mine" / RECORD).read_text())["shrunk"]["rank_before"] == 2
    folder = copy(trained, tmp_path / "run")
    refuse(trained, folder, "run holds files that t5fusion shrink did not write, and is left", rank=2, overwrite=True)

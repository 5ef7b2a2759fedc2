"""What `import t5fusion` changes in peft and transformers: all of it is listed here, can be switched off, and leaves
other models alone.
"""

import copy
import json
import os
import pickle
import subprocess
import sys

import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, T5ForConditionalGeneration, Trainer, TrainingArguments
from warm import warm_python

from t5fusion import T5WithFusion
from t5fusion.hooks import trainer_hook
from t5fusion.hooks.adapter_class import FusedAdapter
from t5fusion.hooks.switches import PEFT, PUSH, TRAINER

COMPARE = """
import json, sys, types
import peft, transformers
# all that t5fusion imports of the two, so that importing it changes only what it changes on purpose
from peft.auto import _BaseAutoPeftModel
from transformers import (
    AddedToken, AutoModel, AutoModelForSeq2SeqLM, AutoProcessor, AutoTokenizer, BatchFeature, MT5Config, T5Config,
    T5ForConditionalGeneration, Trainer, TrainerCallback, TrainerState, trainer,
)

LIBRARIES = ("peft", "transformers")


def contents(value):
    # names or members of a container, as text: a container that changed is another text
    return sorted(str(getattr(item, "__name__", item)) for item in value)


def snapshot():
    seen = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] not in LIBRARIES or module is None:
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, types.ModuleType) or name.startswith("__") or name == "_objects":
                continue
            seen[f"{module_name}.{name}"] = value
            if isinstance(value, type) and value.__module__ == module_name:
                seen |= {f"{module_name}.{name}.{key}": member for key, member in vars(value).items()}
            elif type(value).__name__ in ("dict", "OrderedDict", "list", "set"):
                seen[f"{module_name}.{name}[:]"] = contents(value)
            elif type(value).__module__.partition(".")[0] in LIBRARIES:  # a table of the Auto classes
                for key, member in getattr(value, "__dict__", {}).items():
                    if type(member).__name__ in ("dict", "OrderedDict", "list", "set"):
                        member = contents(member)
                    seen[f"{module_name}.{name}.{key}"] = member
    return seen


before = snapshot()
import t5fusion
after = snapshot()
changed = []
for name, value in after.items():
    if name not in before:
        # a module that was imported only now, or a name that a lazy module has looked up
        is_known = name.rpartition(".")[0] in before
        if is_known:
            changed.append(name)
    elif value is not before[name] and not (isinstance(value, list) and value == before[name]):
        changed.append(name)
changed += [name for name in before if name not in after]
print(json.dumps(sorted(changed)))
"""
# By switch: what that hook changes. `T5FUSION_PEFT_HOOK` and `T5FUSION_PUSH_HOOK` share `PeftModel.__init__`.
CHANGED_BY = {
    PEFT: {
        *(
            f"{module}.{verb}_base_model_state_dict"
            for module in ("peft", "peft.utils", "peft.utils.save_and_load")
            for verb in ("get", "set")
        ),
        "peft.config.PeftConfigMixin.from_pretrained",
        "peft.peft_model.PeftModel.__init__",
        "peft.tuners.tuners_utils.BaseTuner.inject_adapter",
    },
    TRAINER: {"transformers.trainer_callback.CallbackHandler.__init__"},
    PUSH: {
        "peft.auto._BaseAutoPeftModel.from_pretrained",
        "peft.peft_model.PeftModel.__init__",
        "transformers.trainer_callback.CallbackHandler.__init__",
    },
}
# The model type "t5_fusion" is registered in any case. PEFT's tables of target modules have many names in common ends.
REGISTERED = {
    "transformers.models.auto.configuration_auto.CONFIG_MAPPING._extra_content",
    "transformers.models.auto.modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING._model_mapping",
    "transformers.models.auto.modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[:]",
    "transformers.models.auto.modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING._extra_content",
    "transformers.models.auto.modeling_auto.MODEL_MAPPING._extra_content",
    "transformers.models.auto.processing_auto.PROCESSOR_MAPPING._extra_content",
}
OFF = [(), (PEFT,), (TRAINER,), (PUSH,), (PEFT, TRAINER, PUSH)]


@pytest.mark.parametrize("off", OFF, ids=lambda off: "+".join(off) or "all on")
def test_the_list_of_what_import_changes(off):
    environment = {name: value for name, value in os.environ.items() if name not in CHANGED_BY}
    environment |= dict.fromkeys(off, "0") | {"HF_HUB_OFFLINE": "1"}
    command = [warm_python(), "-W", "ignore", "-c", COMPARE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    changed = set(json.loads(done.stdout.splitlines()[-1]))
    tables = {name for name in changed if name.startswith("peft.") and name.endswith("_MODULES_MAPPING[:]")}
    expected = set().union(*(names for switch, names in CHANGED_BY.items() if switch not in off))
    assert tables and changed - tables == expected | REGISTERED


# The switches


@pytest.fixture
def base(plain_folders):
    return plain_folders["flan"]


LORA = {"r": 4, "target_modules": ["q", "v"], "init_lora_weights": False, "task_type": "SEQ_2_SEQ_LM"}
KINDS = [LoraConfig(**LORA), PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2)]


@pytest.mark.parametrize("config", KINDS, ids=["LoRA", "prompt tuning"])
def test_without_the_peft_hook_an_adapter_is_left_to_peft(base, tmp_path, monkeypatch, config):
    monkeypatch.setenv(PEFT, "0")
    peft_model = get_peft_model(T5WithFusion(base), copy.deepcopy(config))
    adapter = peft_model.peft_config["default"]
    assert getattr(adapter, "modules_to_save", None) is None and adapter.revision is None
    with torch.no_grad():
        peft_model.get_base_model().encoder.fusion.projection.weight.mul_(2)
    peft_model.save_pretrained(tmp_path)  # There is no error.


def test_without_the_trainer_hook_nothing_is_started_or_reported(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(TRAINER, "0")
    callback, model = trainer_hook.FusionCallback(), T5WithFusion(base)
    monkeypatch.setattr(trainer_hook, "start_rows", None)  # A call would fail.
    monkeypatch.setattr(trainer_hook, "measure_vectors", None)
    capsys.readouterr()  # the bars of loading
    callback.on_train_begin(None, None, None, model=model, train_dataloader=[])
    callback.on_train_end(None, None, None, model=model, eval_dataloader=[])
    assert capsys.readouterr().err == ""


def test_without_the_push_hook_a_card_is_left_to_peft(base, tmp_path, monkeypatch):
    monkeypatch.setenv(PUSH, "0")
    peft_model = get_peft_model(T5WithFusion(base), LoraConfig(**LORA))
    peft_model.save_pretrained(tmp_path / "off")
    assert f"base_model: {base}\n" in (tmp_path / "off" / "README.md").read_text()
    monkeypatch.delenv(PUSH)
    peft_model.save_pretrained(tmp_path / "on")
    assert str(base) not in (tmp_path / "on" / "README.md").read_text()


# Models of others, and copies of ours


def causal_lm():
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2))


def plain_t5(base):
    return T5ForConditionalGeneration.from_pretrained(base)


OTHERS = {
    "causal LM": (lambda base: causal_lm(), LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"])),
    "plain T5": (plain_t5, KINDS[0]),
    "plain T5, prompt tuning": (plain_t5, KINDS[1]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_adapter_of_another_model_has_the_class_of_peft(base, tmp_path, kind):
    make, config = OTHERS[kind]
    peft_model = get_peft_model(make(base), copy.deepcopy(config))
    assert type(peft_model) in (peft.PeftModelForCausalLM, peft.PeftModelForSeq2SeqLM)
    for name in ("save_pretrained", "push_to_hub", "create_or_update_model_card", "add_adapter"):
        assert "t5fusion" not in getattr(type(peft_model), name).__module__
    adapter = peft_model.peft_config["default"]
    assert getattr(adapter, "modules_to_save", None) is None and adapter.revision is None
    peft_model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    again = PeftModel.from_pretrained(make(base), tmp_path)
    assert type(again) is type(peft_model)


@pytest.mark.parametrize("kind", ["a causal LM", "a plain T5"])
def test_the_trainer_of_another_model_is_unchanged(base, tmp_path, monkeypatch, capsys, kind):
    model = causal_lm() if kind == "a causal LM" else plain_t5(base)
    monkeypatch.setattr(trainer_hook, "start_rows", None)  # A call would fail.
    monkeypatch.setattr(trainer_hook, "measure_vectors", None)
    rows = [{"input_ids": [5, 6, 1], "labels": [5, 6, 1]}] * 4
    options = {"max_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    trainer = Trainer(model, TrainingArguments(str(tmp_path), **options), train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert "vectors" not in capsys.readouterr().err and not list(tmp_path.rglob("*.py"))


@pytest.mark.parametrize("config", KINDS, ids=["LoRA", "prompt tuning"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_an_adapter_is_of_the_same_class(base, inputs_for, config, duplicate):
    peft_model = get_peft_model(T5WithFusion(base), copy.deepcopy(config)).eval()
    other, batch = duplicate(peft_model), inputs_for(peft_model)
    assert type(other) is type(peft_model) and isinstance(other, FusedAdapter)
    assert type(other).__name__ == "PeftModelForSeq2SeqLM" and isinstance(other, peft.PeftModelForSeq2SeqLM)
    assert torch.equal(other(**batch).logits, peft_model(**batch).logits)


def test_the_mark_of_a_read_config_is_not_saved(base, tmp_path):
    get_peft_model(T5WithFusion(base), LoraConfig(**LORA)).save_pretrained(tmp_path / "one")
    PeftConfig.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    assert "t5fusion" not in (tmp_path / "two" / "adapter_config.json").read_text()


def test_import_leaves_out_what_only_training_needs():
    script = (
        "import sys, torch, transformers, peft, t5fusion\n"
        "slow = {'datasets', 'pandas', 'sentence_transformers', 'transformers.trainer', 't5fusion.finetune'}\n"
        "print(sorted(slow & set(sys.modules)), sorted({*t5fusion.__all__} - {*dir(t5fusion)}), t5fusion.T5WithFusion)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout == "[] [] <class 't5fusion.modeling_t5fusion.T5WithFusion'>\n", done.stderr


@pytest.mark.parametrize("name", ["other", "t5fusion"])
def test_import_registers_in_every_program_but_our_own(tmp_path, name):
    """Also in one that is called like ours, or started by `python -m`, where Python hides the program's name."""
    package = tmp_path / "other"
    package.mkdir()
    (package / "__init__.py").write_text("import t5fusion\n")
    (package / "__main__.py").write_text(
        "from transformers import AutoConfig\nprint(AutoConfig.for_model('t5_fusion').model_type)\n"
    )
    command = [sys.executable, "-m", "other", "t5fusion"]
    if name == "t5fusion":
        program = tmp_path / "bin" / "t5fusion"
        program.parent.mkdir()
        program.write_text("import t5fusion\nt5fusion.T5WithFusion\n" + (package / "__main__.py").read_text())
        command = [sys.executable, str(program)]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "t5_fusion\n", done.stderr

"""Settings: fields of other libraries' classes, checked by name and type before anything is trained."""

import pytest

from t5fusion.finetune.options import TrainingOptions
from t5fusion.finetune.settings import NO_SETTING, OPTION_FOR, read_settings


def test_each_setting_goes_to_the_class_that_has_it():
    read = read_settings({"weight_decay": 0.01, "use_rslora": True, "optim": "adafactor"})
    assert read.trainer == {"weight_decay": 0.01, "optim": "adafactor"} and read.lora == {"use_rslora": True}


FITTING = {
    "a whole number for a number": ("weight_decay", 1, 1),
    "null": ("torch_compile_mode", None, None),
    "a number for a text": ("run_name", 12, "12"),
    "one of several names": ("bias", "lora_only", "lora_only"),
    "one of a family of names": ("init_lora_weights", "pissa_niter_16", "pissa_niter_16"),
    "true or a name": ("init_lora_weights", False, False),
    "a list": ("exclude_modules", ["q", "v"], ["q", "v"]),
    "lists in a list": ("layer_replication", [[0, 2], [1, 2]], [(0, 2), (1, 2)]),
    "a mapping": ("lr_scheduler_kwargs", {"num_cycles": 2}, {"num_cycles": 2}),
    "names to numbers": ("rank_pattern", {"q": 8}, {"q": 8}),
}


@pytest.mark.parametrize("case", FITTING)
def test_a_value_fits(case):
    name, value, read = FITTING[case]
    assert {**read_settings({name: value}).trainer, **read_settings({name: value}).lora} == {name: read}


REFUSED = {
    "a text for a number": ({"weight_decay": "much"}, "`weight_decay` is 'much'; expected a number."),
    "true for a number": ({"weight_decay": True}, "`weight_decay` is True; expected a number."),
    "a fraction for a whole number": ({"max_steps": 2.5}, "`max_steps` is 2.5; expected a whole number."),
    "a number for true": ({"use_dora": 1}, "`use_dora` is 1; expected true or false."),
    "no name of these": ({"eval_strategy": "epochs"}, "'epochs'; expected one of no, steps, epoch."),
    "a list of the wrong things": (
        {"layers_to_transform": ["a"]},
        r"is \['a'\]; expected a .* or null.",
    ),
    "an object": ({"run_name": object()}, "`run_name` is of type object; expected a number, a text"),
    "a misspelt name": ({"weight_decy": 1}, "there is no setting `weight_decy` .* did you mean `weight_decay`?"),
    "a misspelt option": ({"warmup_step": 1}, "there is no setting `warmup_step` .* did you mean `warmup_steps`?"),
    "a strange name": ({"zzz": 1}, "there is no setting `zzz` .* see the pages of transformers and PEFT"),
    "an option of ours": ({"learning_rate": 1}, r"the option `lr` sets it. Pass that option \(--lr on the command"),
    "our own name": ({"lr": 1}, "`lr` is not a setting: the option `lr` sets it."),
    "an option that is on": ({"packing": False}, r"Pass that option \(--no-packing on the command line"),
    "a part of LoRA": ({"train_fusion": False}, r"\(--freeze-fusion on the command line"),
    "all of them": ({"settings": {}}, r"\(--set on the command line"),
    "a token": ({"hub_token": "hf_x"}, "`hub_token` is not a setting: `t5fusion export` and `t5fusion push`"),
    "two that do not go together": ({"layers_pattern": "block"}, "PEFT refuses the settings of LoRA: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_setting_is_refused(case):
    settings, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
        TrainingOptions(settings=settings)


def test_a_setting_beside_an_option_that_leaves_it_without_effect():
    with pytest.raises(ValueError, match="the setting `use_dora` has no effect with `full`"):
        TrainingOptions(full=True, settings={"use_dora": True, "weight_decay": 0.1})
    with pytest.raises(ValueError, match="`modules_to_save` has no effect with `train_fusion=False`"):
        TrainingOptions(train_fusion=False, settings={"modules_to_save": ["lm_head"]})


def test_every_name_that_is_no_setting_is_a_field_of_the_libraries_or_a_callback():
    from dataclasses import fields

    from peft import LoraConfig
    from transformers import Seq2SeqTrainingArguments

    known = {each.name for options in (LoraConfig, Seq2SeqTrainingArguments) for each in fields(options)}
    assert {*OPTION_FOR, *NO_SETTING} - known == {"early_stopping_patience"}
    assert {*OPTION_FOR.values()} - {each.name for each in fields(TrainingOptions)} == {"output", "resume"}


def test_reports():
    from importlib.util import find_spec

    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from t5fusion.finetune.reporting import REPORTERS

    assert set(INTEGRATION_TO_CALLBACK) >= set(REPORTERS)
    with pytest.raises(ValueError, match="`report_to` names 'wadb', .* did you mean `wandb`"):
        TrainingOptions(report_to=("wadb",))
    with pytest.raises(ValueError, match="`report_to` is 'wandb'; expected names"):
        TrainingOptions(report_to="wandb")
    absent = next(name for name, (modules, _) in REPORTERS.items() if not any(map(find_spec, modules)))
    with pytest.raises(ImportError, match=f"reports to {absent} need its package: pip install "):
        TrainingOptions(report_to=(absent,))


def test_a_tracker_that_fails_is_named():
    from t5fusion.finetune.reporting import reporting

    class UsageError(Exception):
        __module__ = "wandb.errors.errors"

    with pytest.raises(RuntimeError, match="logging to wandb failed: No API key configured"), reporting(["wandb"]):
        raise UsageError("No API key configured.")
    for names in ((), ("tensorboard",)):
        with pytest.raises(UsageError), reporting(names):
            raise UsageError("No API key configured.")
    with pytest.raises(ZeroDivisionError), reporting(["wandb"]):
        raise ZeroDivisionError


def test_the_best_model_needs_a_checkpoint_after_each_evaluation():
    assert TrainingOptions(patience=2, eval_steps=10).keeps_best
    assert TrainingOptions(keep_best=True, eval_steps=10, save_steps=10).keeps_best
    for steps in ({"save_steps": 10}, {"eval_steps": 10, "save_steps": 20}):
        with pytest.raises(ValueError, match="a checkpoint is needed after each evaluation"):
            TrainingOptions(patience=2, **steps)

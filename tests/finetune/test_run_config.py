"""run.yaml: read with --config, written by each run, and the same weights from both."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from forks import Forks
from training_folder import fill_training_folder

from t5fusion.cli.settings import parse_settings
from t5fusion.finetune import read_run
from t5fusion.finetune.data import Columns
from t5fusion.finetune.options import Recipe, TrainingOptions
from t5fusion.finetune.plain_yaml import read_yaml, write_yaml
from t5fusion.finetune.run_config import read_config, run_yaml
from t5fusion.hub_export import export

CONFIG = """
data: rows.jsonl
text_column: name
target-column: text
vector_column: vector
validation: held_out.jsonl
base_model: base
precision: fp32
epochs: 2
limit: 16
target_modules: [q, v]
set: {weight_decay: 1e-2, eval_strategy: no}
"""


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    folder = fill_training_folder(tmp_path_factory.mktemp("config"), save_plain_t5, lambda row, a: f"settings of {a}")
    (folder / "my.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def forks(room):
    forks = Forks(room)
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def trained(room, forks):
    """The folder of a run by --config, in which the command line changes two options."""
    words = ["--epochs", "1", "--set", "eval_strategy=epoch", "--set", "use_rslora=true"]
    code, _, err = forks.run("train", "--config", "my.yaml", *words, "--output", "runs/first")
    assert code == 0, err
    return room / "runs" / "first"


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_the_command_line_goes_before_the_file(trained):
    options = json.loads((trained / "training.json").read_text())["options"]
    assert (options["epochs"], options["target_modules"], options["rank"]) == (1.0, ["q", "v"], 32)
    assert options["settings"] == {"weight_decay": 0.01, "eval_strategy": "epoch", "use_rslora": True}
    assert json.loads((trained / "training.json").read_text())["rows"] == 16


def test_a_run_writes_all_its_arguments(room, trained):
    run = yaml.safe_load((trained / "run.yaml").read_text())  # as any other program reads it
    assert run["data"] == str(room / "rows.jsonl") and run["base_model"] == str(room / "base")
    assert run["output"] == str(trained) and run["set"]["use_rslora"] is True
    assert (run["epochs"], run["rank"], run["seed"], run["vector_column"]) == (1.0, 32, 42, "vector")
    assert "lexical_dim" not in run and "encoder" not in run  # without effect


def test_the_run_file_trains_the_same_weights_from_another_folder(room, forks, trained):
    (room / "elsewhere").mkdir(exist_ok=True)
    config = shutil.copy(trained / "run.yaml", room / "elsewhere" / "copy.yaml")
    code, _, err = forks.run("train", "--config", config, "--output", "runs/again")
    assert code == 0, err
    assert weights(room / "runs" / "again") == weights(trained)
    code, _, err = forks.run("train", "--config", config, "--output", "runs/other", "--seed", "7")
    assert code == 0, err
    assert weights(room / "runs" / "other") != weights(trained)


def test_the_run_file_resumes_its_run(room, forks, trained):
    before = weights(trained)
    code, _, err = forks.run("train", "--config", "runs/first/run.yaml", "--resume")
    assert code == 0, err
    assert weights(trained) == before
    code, _, err = forks.run("train", "--config", "runs/first/run.yaml")
    assert code == 1 and "runs/first is not empty" in err


def test_a_bundle_holds_no_run_file(trained, tmp_path):
    export(trained, tmp_path / "bundle", kind="standalone")
    names = {file.name for file in (tmp_path / "bundle").iterdir()}
    assert "adapter_model.safetensors" in names and "run.yaml" not in names


def test_python_reads_the_run_file_for_train_file(trained):
    run = read_run(trained / "run.yaml")
    assert run["columns"] == Columns("name", "text", vector="vector") and run["limit"] == 16
    options = json.loads((trained / "training.json").read_text())["options"]
    chosen = run["options"]
    assert (chosen.epochs, chosen.target_modules, dict(chosen.settings)) == (1.0, ("q", "v"), options["settings"])
    assert set(run) == {"data", "columns", "output", "options", "recipe", "validation", "limit"}


@pytest.mark.parametrize("case", ["defaults", "everything changed"])
def test_what_is_written_is_read_as_it_was(tmp_path, case):
    options, recipe, columns = TrainingOptions(), Recipe(), Columns("name", "text")
    if case != "defaults":
        options = TrainingOptions(
            train_fusion=False, target_modules=("q",), lr=1e-5, keep_best=True, settings={"run_name": "no"}, seed=3
        )
        recipe, columns = Recipe(encoder="mine", template="null"), Columns("a: b", "1e-4", "- c")
    arguments = {"data": "rows: no.jsonl", "validation": None, "limit": 3, "encoding": "latin-1", "output": "out"}
    (tmp_path / "run.yaml").write_text(run_yaml(columns, options, recipe, **arguments))
    read = read_run(tmp_path / "run.yaml")
    assert (read["options"], read["recipe"], read["columns"]) == (options, recipe, columns)
    assert (read["data"], read["limit"], read["encoding"]) == ("rows: no.jsonl", 3, "latin-1")
    assert read["output"] == str(Path("out").absolute())


def test_a_run_file_names_no_option_without_effect():
    arguments = {"data": "d", "validation": None, "limit": None, "encoding": None, "output": "out"}
    full = run_yaml(Columns("a", "b"), TrainingOptions(full=True), Recipe(), **arguments)
    assert "full: true" in full and "rank" not in full and "\ndropout" not in full
    frozen = run_yaml(Columns("a", "b"), TrainingOptions(train_fusion=False), Recipe(), **arguments)
    assert "freeze_fusion: true" in frozen and "fusion_start" not in frozen


def test_every_option_of_train_can_stand_in_the_file(tmp_path):
    from typer.main import get_command

    from t5fusion.cli.app import app

    names = {each.name for each in get_command(app).commands["train"].params} - {"config", "setting", "help"}
    (tmp_path / "run.yaml").write_text("".join(f"{name}: 1\n" for name in sorted(names)))
    assert set(read_config(tmp_path / "run.yaml")) == names
    assert {each.name for each in fields(TrainingOptions)} - names == {"train_fusion", "packing", "settings"}


REFUSED = {
    "a misspelt name": ("epoch: 1", "names epoch, which is not an option of `t5fusion train`; did you mean `epochs`?"),
    "a strange name": ("zzz: 1", "names zzz, which is not an option of `t5fusion train`; see `t5fusion train"),
    "a name given twice": ("epochs: 1\nepochs: 2", "is not YAML: epochs is given twice"),
    "a name spelt in two ways": ("base-model: a\nbase_model: b", "gives base_model twice"),
    "no mapping": ("- epochs", "holds no options; expected lines such as `epochs: 2`"),
    "nothing": ("", "holds no options"),
    "no YAML": ("epochs: [1", "is not YAML: "),
    "settings that are no mapping": ("set: [1]", "set is [1]; expected names and values, such as a: 1."),
    "a misspelt setting": ("set: {weight_decy: 1}", "did you mean `weight_decay`?"),
    "a value that is not allowed": ("rank: 0", "rank"),
    "a missing file": (None, "there is no file "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_is_refused(room, forks, case):
    content, sentence = REFUSED[case]
    (room / "bad.yaml").unlink(missing_ok=True)
    if content is not None:
        (room / "bad.yaml").write_text(content)
    words = ["rows.jsonl", "--text-column", "name", "--target-column", "text", "--output", "runs/bad"]
    code, _, err = forks.run("train", *words, "--config", "bad.yaml")
    assert code != 0 and sentence in err, err
    assert not (room / "runs" / "bad").exists()


def test_a_file_without_columns_is_refused_in_python(tmp_path):
    (tmp_path / "run.yaml").write_text("data: rows.jsonl\n")
    with pytest.raises(ValueError, match=r"run.yaml does not name text_column, target_column\."):
        read_run(tmp_path / "run.yaml")


def test_settings_on_the_command_line():
    read = parse_settings(["a=1e-4", "b=no", "c={x: [1, y]}", "d=", "e=f=g"], "weight_decay=0.01")
    assert read == {"a": 1e-4, "b": "no", "c": {"x": [1, "y"]}, "d": None, "e": "f=g"}
    for words, sentence in {
        ("weight_decay",): "--set weight_decay has no value; expected NAME=VALUE",
        ("=1",): "--set =1 has no name; expected NAME=VALUE, such as --set weight_decay=0.01",
        ("a=1", "a=2"): "--set a was given twice",
        ("a=[1",): r"--set a: '\[1' is not a value in YAML",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            parse_settings(list(words), "weight_decay=0.01")


@pytest.mark.parametrize("value", ["no", "1e-4", "012", "true", "~", "", "2020-01-01", 1e-8, 1e22, 0.1, None, True, 3])
def test_yaml_keeps_a_value(value):
    assert read_yaml(write_yaml({"a": [value]})) == {"a": [value]}
    assert yaml.safe_load(write_yaml({"a": [value]})) == {"a": [value]}

"""`t5fusion train` and its run folder: errors before anything is written, and checkpoints that survive failures."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from forks import Forks
from safetensors.torch import load_file, save_file
from tiny_disk import tiny_disk
from training_folder import fill_training_folder
from warm import warm_python

from t5fusion.finetune.checkpoints import last_checkpoint

COLUMNS = ["--text-column", "name", "--target-column", "text"]
TRAIN = ["train", "rows.jsonl", "--validation", "held_out.jsonl", "--base", "base", *COLUMNS]
EXACT = ["--vector-column", "vector", "--precision", "fp32", "--batch-size", "8"]
SHORT = [*EXACT, "--epochs", "1"]


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    return fill_training_folder(tmp_path_factory.mktemp("runs"), save_plain_t5, lambda row, a: f"settings of {a}")


@pytest.fixture(scope="module")
def forks(room):
    forks = Forks(room)
    yield forks
    forks.close()


def refused(forks, *words):
    """Run a command that must fail. Return its one-sentence error."""
    code, _, err = forks.run(*words)
    assert code == 1 and "Traceback" not in err, err
    line = err.splitlines()[-1]  # below notes and bars
    assert line.startswith("t5fusion: "), err
    return line.removeprefix("t5fusion: ")


IDLE = {
    "rank": (["--full", "--rank", "32"], "--rank has no effect with --full."),
    "alpha": (["--full", "--alpha", "8"], "--alpha has no effect with --full."),
    "dropout": (["--full", "--dropout", "0"], "--dropout has no effect with --full."),
    "modules": (["--full", "--target-modules", "q,v"], "--target-modules has no effect with --full."),
    "rate": (["--freeze-fusion", "--fusion-lr", "1e-3"], "--fusion-lr has no effect with --freeze-fusion."),
    "start": (["--freeze-fusion", "--fusion-start", "targets"], "--fusion-start has no effect with --freeze-fusion."),
    "width": (["--lexical-dim", "16"], "--lexical-dim has no effect with --vector-column."),
    "overwrite": (["--resume", "--overwrite"], "--overwrite has no effect with --resume."),
}


@pytest.mark.parametrize("case", IDLE)
def test_an_option_without_effect_is_refused(room, forks, case):
    words, sentence = IDLE[case]
    assert refused(forks, *TRAIN, *SHORT, *words, "--output", "idle").startswith(sentence)
    assert not (room / "idle").exists()


def test_target_modules_may_be_listed_with_spaces(room, forks):
    code, _, err = forks.run(*TRAIN, *SHORT, "--target-modules", " q, v ", "--output", "spaces")
    assert code == 0, err
    config = json.loads((room / "spaces" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q", "v"]


def content(folder):
    """Return the files of a folder and their bytes, or None if there is no folder."""
    if not folder.exists():
        return None
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def trained(room, forks):
    """A run folder."""
    code, _, err = forks.run(*TRAIN, *SHORT, "--output", "trained")
    assert code == 0, err
    return room / "trained"


# Errors that are found only after the folder was opened, or when the first batch is made.
BAD_STARTS = {
    "a rate that is no number": (["--lr", "nan"], "--lr is nan"),
    "a base that is not there": (["--base", "./nope"], "the base model ./nope cannot be loaded"),
    "a misspelt module": (["--target-modules", "q,vv"], "has no module 'vv'"),
    "a damaged base": (["--base", "damaged"], "damaged cannot be loaded"),
    "vectors of the wrong kind": (["--vector-column", "text"], "column 'text'"),
    "a bad file": (["--validation", "bad.jsonl"], "bad.jsonl is empty"),
}


def with_options(command, words):
    """Return the command with its options replaced by those in `words`, because no option may be given twice."""
    kept = list(command)
    for name in words[::2]:
        if name in kept:
            place = kept.index(name)
            del kept[place : place + 2]
    return [*kept, *words]


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a run"])
@pytest.mark.parametrize("case", BAD_STARTS)
def test_a_failed_start_leaves_the_folder_unchanged(room, forks, trained, tmp_path, case, there):
    (room / "bad.jsonl").write_text("")
    if not (room / "damaged").exists():
        (room / "damaged").mkdir()
        for file in (room / "base").iterdir():
            (room / "damaged" / file.name).write_bytes(file.read_bytes()[: 2000 if "model" in file.name else None])
    folder = trained if there == "a run" else tmp_path / "started" / "here"
    if there == "an empty folder":
        folder.mkdir(parents=True)
    before = content(folder)
    words, sentence = BAD_STARTS[case]
    more = ["--overwrite"] if there == "a run" else []
    assert sentence in refused(forks, *with_options([*TRAIN, *SHORT], words), *more, "--output", folder)
    assert content(folder) == before
    assert folder.parent.exists() == (there != "nothing")


FIRST_BATCH_FAILS = """
import sys
from pathlib import Path
from t5fusion.finetune.inputs import prepare
from t5fusion.common.base_models import make_processor
from t5fusion.finetune.training import TrainingOptions, train
import torch

processor = make_processor("base", lexical_encoder=None, lexical_dim=8, lexical_source="given")
rows = prepare(["app_a"] * 8, ["a b"] * 8, torch.ones(8, 8), processor)
rows[3]["input_ids"] = [1]
try:
    train(rows, rows[:2], processor, TrainingOptions(base_model="base", epochs=1), Path(sys.argv[1]), overwrite=True)
except ValueError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("there", ["nothing", "a run"])
def test_a_failed_first_step_leaves_the_folder_unchanged(room, forks, trained, there):
    folder = trained if there == "a run" else room / "stepped" / "here"
    before = content(folder)
    code, _, _ = forks.run(folder, code=FIRST_BATCH_FAILS)
    assert code != 0 and content(folder) == before
    assert not (room / "stepped").exists()


NO_FILE = """
from pathlib import Path
from t5fusion.finetune.output_folder import OutputFolder
try:
    with OutputFolder(Path("full/here")).held():
        print("held")
except OSError as error:
    print(error)
print([*Path("full").iterdir()])
"""


def test_a_disk_without_room_for_a_file_leaves_no_folder(tmp_path):
    """Its one folder takes the last entry of the disk, so the lock cannot be made."""
    disk = tiny_disk(tmp_path / "full", "nr_inodes=2")
    out = subprocess.run([*disk, warm_python(), "-c", NO_FILE], cwd=tmp_path, stdout=subprocess.PIPE, text=True).stdout
    assert out.startswith("full/here cannot be written (No space left on device). Free some space") and "[]" in out


FILLED_LATER = """
import resource
from pathlib import Path
from t5fusion.finetune.output_folder import OutputFolder
folder = OutputFolder(Path("later"), run="x" * 1000)
with folder.held():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, -1))
    folder.begin()
"""


def test_a_disk_that_is_full_at_the_first_save(tmp_path):
    words = [warm_python(), "-c", FILLED_LATER]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("OSError: later cannot be written (File too large). Free some space")


def test_a_killed_start_leaves_a_folder_that_counts_as_empty(room, forks):
    left = room / "left"
    (left / "checkpoints").mkdir(parents=True)
    (left / ".training.lock").write_text("process 1 on nowhere\n")
    code, _, err = forks.run(*TRAIN, *SHORT, "--output", "left")
    assert code == 0, err
    assert not (left / ".training.lock").exists() and (left / "training.json").exists()


def test_overwrite_replaces_a_run_that_was_killed_while_saving(room, forks):
    code, _, err = forks.run(*TRAIN, *SHORT, "--output", "died")
    assert code == 0, err
    (room / "died" / "training.json").unlink()  # what is written last
    (room / "died" / ".training.lock").write_text("process 1 on nowhere\n")
    assert "died is not empty." in refused(forks, *TRAIN, *SHORT, "--output", "died")
    code, _, err = forks.run(*TRAIN, *SHORT, "--full", "--overwrite", "--output", "died")
    assert code == 0, err
    names = {item.name for item in (room / "died").iterdir()}
    assert "model.safetensors" in names and not names & {"adapter_model.safetensors", ".training.lock"}


def test_an_output_that_is_a_file_is_refused_before_encoding(room, forks):
    assert refused(forks, *TRAIN, *SHORT, "--output", "rows.jsonl").startswith(
        "rows.jsonl is a file; expected a folder"
    )


def test_train_refuses_a_folder_with_another_run(room, forks, trained):
    before = content(trained)
    code, _, _ = forks.run(trained, code=FIRST_BATCH_FAILS.replace(", overwrite=True", ""))
    assert code != 0 and content(trained) == before


@pytest.mark.parametrize("there", ["nothing", "a demo"])
def test_a_failed_demo_leaves_the_folder_unchanged(room, forks, there):
    folder = room / "demo"
    if there == "a demo":
        folder.mkdir()
        (folder / "demo.json").write_text('{"mine": 1}')
    before = content(folder)
    assert "there is no such folder" in refused(forks, "demo", "--base", "./nope", "--output", folder)
    assert content(folder) == before


LONG = [*EXACT, "--epochs", "300"]


def start_long(room, forks, output, *words):
    """Start a training of many epochs, and wait for its first checkpoint. Return the process and the folder."""
    started = forks.start(*TRAIN, *LONG, *words, "--output", output)
    wait_for_checkpoint(room / output, started)
    return started, room / output


def wait_for_checkpoint(folder, started):
    until = time.monotonic() + 60
    while not list(folder.glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert Path(f"/proc/{started[0]}").exists() and time.monotonic() < until
        time.sleep(0.02)


def stop(forks, started, number=signal.SIGINT):
    os.kill(started[0], number)
    return forks.end(started)


def test_a_second_training_into_one_folder_is_refused(room, forks):
    started, folder = start_long(room, forks, "twice")
    try:
        for words in ([], ["--overwrite"], ["--resume"]):
            sentence = refused(forks, *TRAIN, *SHORT, *words, "--output", "twice")
            assert f"another training, process {started[0]} on " in sentence
            assert "is writing into twice. Wait for it, end it, or choose a different --output." in sentence
            assert Path(f"/proc/{started[0]}").exists() and (folder / "checkpoints").is_dir()
    finally:
        code, _, err = stop(forks, started)
    assert code == 130 and "Stopped; a checkpoint is in" in err
    assert {item.name for item in folder.iterdir()} == {"checkpoints", "run.yaml"}


def test_a_second_training_is_refused_before_the_first_has_saved(room, forks):
    started = forks.start(*TRAIN, *LONG, "--output", "early")
    until = time.monotonic() + 60
    while not (room / "early" / ".training.lock").exists():
        assert Path(f"/proc/{started[0]}").exists() and time.monotonic() < until
    try:
        assert "is writing into early" in refused(forks, *TRAIN, *SHORT, "--output", "early")
    finally:
        wait_for_checkpoint(room / "early", started)
        assert stop(forks, started)[0] == 130


def test_a_killed_training_releases_its_folder(room, forks):
    started, folder = start_long(room, forks, "killed")
    assert stop(forks, started, signal.SIGKILL)[0] == -signal.SIGKILL
    assert (folder / ".training.lock").exists()  # The file stays, without a lock on it.
    started = forks.start(*TRAIN, *LONG, "--output", "killed", "--resume")
    until = time.monotonic() + 60
    while f"process {started[0]} on" not in (folder / ".training.lock").read_text():
        assert Path(f"/proc/{started[0]}").exists() and time.monotonic() < until
        time.sleep(0.02)
    assert "is writing into killed" in refused(forks, *TRAIN, *LONG, "--output", "killed", "--resume")
    assert stop(forks, started)[0] in (-signal.SIGINT, 1, 130)
    assert not (folder / ".training.lock").exists()


def test_an_old_lock_is_not_exported(room, forks, trained):
    (trained / ".training.lock").write_text("process 1 on nowhere\n")
    try:
        code, _, err = forks.run("export", "trained", "bundle", "--kind", "standalone")
        assert code == 0, err
        assert ".training.lock" not in {file.name for file in (room / "bundle").iterdir()}
    finally:
        (trained / ".training.lock").unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_a_second_one_stops_at_once(room, forks, number):
    started, folder = start_long(room, forks, f"stopped-{number}")
    code, _, err = stop(forks, started, number)
    assert code == 128 + number, err
    assert f"Stopped; a checkpoint is in stopped-{number}. To go on, run the same command with --resume." in err
    assert {item.name for item in folder.iterdir()} == {"checkpoints", "run.yaml"}
    (checkpoint,) = folder.glob("checkpoints/*")
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    code, _, err = forks.run(*TRAIN, *LONG, "--resume", "--output", folder.name, int(number), code=TWO_SIGNALS)
    assert code == (130 if number == signal.SIGINT else -number), err
    assert f"step {step + 2}" in err and "Stopped; a checkpoint" not in err
    end_of_epoch = (step + 2) // 8 * 8  # An epoch has 8 steps, and its end is saved too.
    assert [item.name for item in folder.glob("checkpoints/*")] == [f"checkpoint-{max(step, end_of_epoch)}"]


# The process sends itself the signal twice in the third step after it was resumed.
TWO_SIGNALS = """
import signal, sys
from transformers import TrainerCallback
from t5fusion.finetune import training as train
from t5fusion.cli.app import main

number = int(sys.argv.pop())

class Send(TrainerCallback):
    steps = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps += 1
        if self.steps == 3:
            print("step", state.global_step, file=sys.stderr, flush=True)
            signal.raise_signal(number)
            signal.raise_signal(number)

class Sent(train.FusionTrainer):
    def __init__(self, *args, callbacks, **kwargs):
        super().__init__(*args, callbacks=[*callbacks, Send()], **kwargs)

train.FusionTrainer = Sent
main()
"""


@pytest.fixture(scope="module")
def two_checkpoints(room, forks):
    """The folder of a stopped run with two intact checkpoints, and their names."""
    started, folder = start_long(room, forks, "kept")
    code, _, _ = stop(forks, started)
    assert code == 130
    (second,) = folder.glob("checkpoints/checkpoint-*")
    state = json.loads((second / "trainer_state.json").read_text())
    # `save_total_limit` leaves an earlier checkpoint if saving the later one is interrupted.
    earlier = second.with_name(f"checkpoint-{state['global_step'] - 1}")
    shutil.copytree(second, earlier)
    (earlier / "trainer_state.json").write_text(json.dumps(state | {"global_step": state["global_step"] - 1}))
    return folder, earlier.name, second.name


def foreign(file):
    torch.save({"state": {}, "param_groups": []}, file)


DAMAGE = {
    "empty optimizer": ("optimizer.pt", lambda file: file.write_bytes(b""), "optimizer.pt is empty"),
    "torn optimizer": (
        "optimizer.pt",
        lambda file: file.write_bytes(file.read_bytes()[:-500]),
        "optimizer.pt is damaged",
    ),
    "changed optimizer": ("optimizer.pt", lambda file: flip(file), "optimizer.pt is damaged"),
    "no optimizer": ("optimizer.pt", lambda file: file.unlink(), "there is no optimizer.pt"),
    "empty rng": ("rng_state.pth", lambda file: file.write_bytes(b""), "rng_state.pth is empty"),
    "other rng": ("rng_state.pth", lambda file: file.write_text("mine"), "rng_state.pth is damaged"),
    "empty scheduler": ("scheduler.pt", lambda file: file.write_bytes(b""), "scheduler.pt is empty"),
    "empty weights": (
        "adapter_model.safetensors",
        lambda file: file.write_bytes(b""),
        "adapter_model.safetensors is damaged",
    ),
    "torn weights": (
        "adapter_model.safetensors",
        lambda file: file.write_bytes(file.read_bytes()[:-500]),
        "adapter_model.safetensors is damaged",
    ),
    "no weights": ("adapter_model.safetensors", lambda file: file.unlink(), "there is no adapter_model.safetensors"),
    "empty options": ("options.json", lambda file: file.write_text(""), "options.json is damaged"),
    "options of a different type": ("options.json", lambda file: file.write_text("[1]"), "options.json is damaged"),
    "options of another program": ("options.json", lambda file: file.write_text("{}"), "options.json is not what t5f"),
    "empty state": ("trainer_state.json", lambda file: file.write_text(""), "trainer_state.json is damaged"),
    "state of a different type": (
        "trainer_state.json",
        lambda file: file.write_text("3"),
        "trainer_state.json is damaged",
    ),
    "state of another program": (
        "trainer_state.json",
        lambda file: file.write_text('{"mine": 1}'),
        "trainer_state.json belongs to a different checkpoint",
    ),
    "no state": ("trainer_state.json", lambda file: file.unlink(), "its saving was not finished"),
}


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_skipped(room, two_checkpoints, case):
    folder, earlier, later = two_checkpoints
    name, damage, problem = DAMAGE[case]
    checkpoints = room / f"damaged {case}"
    shutil.copytree(folder / "checkpoints", checkpoints)
    damage(checkpoints / later / name)
    last, damaged = last_checkpoint(checkpoints)
    assert last == checkpoints / earlier and list(damaged) == [later] and damaged[later].startswith(problem)
    damage(checkpoints / earlier / name)
    assert last_checkpoint(checkpoints)[0] is None


def test_resume_names_and_deletes_damaged_checkpoints(room, forks, two_checkpoints):
    folder, earlier, later = two_checkpoints
    shutil.copytree(folder, room / "over")
    (room / "over" / "checkpoints" / later / "optimizer.pt").write_bytes(b"")
    started = forks.start(*TRAIN, *LONG, "--resume", "--output", "over")
    until = time.monotonic() + 60
    while (room / "over" / "checkpoints" / later / "adapter_config.json").exists():
        assert Path(f"/proc/{started[0]}").exists() and time.monotonic() < until
        time.sleep(0.02)
    code, _, err = stop(forks, started)
    assert code == 130, err
    assert f"{later}: optimizer.pt is empty.\nResuming from {earlier}.\n" in err
    (left,) = (room / "over" / "checkpoints").iterdir()
    assert int(left.name.rpartition("-")[2]) >= int(later.rpartition("-")[2])
    assert last_checkpoint(room / "over" / "checkpoints") == (left, {})


def change(file, **tensors):
    save_file(load_file(file) | tensors, file)


NAME = "base_model.model.decoder.block.0.layer.0.SelfAttention.q.lora_A.weight"
FOREIGN = {  # intact files of another training
    "optimizer": ("optimizer.pt", foreign, "the state of its optimizer or learning rates cannot be loaded"),
    "optimizer of other shapes": (
        "optimizer.pt",
        lambda file: reshape(file),
        "the state of its optimizer or learning rates cannot be loaded (exp_avg is (3, 5) for a weight of",
    ),
    "scheduler": (
        "scheduler.pt",
        lambda file: torch.save([1], file),
        "the state of its optimizer or learning rates",
    ),
    "random numbers": ("rng_state.pth", foreign, "its random numbers cannot be loaded"),
    "weights": (
        "adapter_model.safetensors",
        lambda file: save_file({"mine": torch.ones(1)}, file),
        "its weights cannot be loaded",
    ),
    "weights of a different shape": (
        "adapter_model.safetensors",
        lambda file: change(file, **{NAME: torch.ones(3, 5)}),
        f"its weights cannot be loaded (1 weights are missing, unknown or of a different shape, for example {NAME})",
    ),
}


def reshape(file):
    content = torch.load(file, weights_only=True)
    content["state"][0]["exp_avg"] = torch.zeros(3, 5)
    torch.save(content, file)


@pytest.mark.parametrize("case", FOREIGN)
def test_a_file_of_another_training_is_refused(room, forks, two_checkpoints, case):
    folder, _, later = two_checkpoints
    name, replace, sentence = FOREIGN[case]
    run = room / f"foreign-{case.replace(' ', '-')}"
    shutil.copytree(folder, run)
    replace(run / "checkpoints" / later / name)
    before = content(run)
    error = refused(forks, *TRAIN, *LONG, "--resume", "--output", run.name)
    assert error.startswith(f"{run.name}/checkpoints/{later} cannot be resumed from: {sentence}")
    assert "Delete that checkpoint and resume from an earlier one, if there is one, or start over" in error
    assert content(run) == before


def test_resuming_without_an_intact_checkpoint_is_refused(room, forks, two_checkpoints):
    folder, earlier, later = two_checkpoints
    shutil.copytree(folder, room / "none")
    for file in (room / "none").rglob("scheduler.pt"):
        file.write_bytes(b"")
    error = refused(forks, *TRAIN, *LONG, "--resume", "--output", "none")
    problems = "; ".join(f"{name}: scheduler.pt is empty" for name in (later, earlier))
    assert error.startswith(f"no checkpoint in none/checkpoints is whole ({problems}).")
    assert error.endswith("To start over, pass --overwrite instead of --resume.")


def test_the_duration_includes_that_of_what_was_resumed(room, forks, trained):
    shutil.copytree(trained, room / "slow")
    (conditions,) = sorted((room / "slow").glob("checkpoints/*/options.json"))[-1:]
    recorded = json.loads(conditions.read_text())
    assert 0 < recorded["seconds"] < 1000
    conditions.write_text(json.dumps(recorded | {"seconds": 1000.0}))
    code, _, err = forks.run(*TRAIN, *SHORT, "--resume", "--output", "slow")
    assert code == 0, err
    assert 1000 <= json.loads((room / "slow" / "training.json").read_text())["seconds"] < 2000


@pytest.mark.parametrize("damage", ["", "[]", "{}"])
def test_a_finished_run_with_a_damaged_record_can_be_resumed(room, forks, trained, damage):
    if not (room / "finished").exists():
        shutil.copytree(trained, room / "finished")
    (room / "finished" / "training.json").write_text(damage)
    code, _, err = forks.run(*TRAIN, *SHORT, "--resume", "--output", "finished")
    assert code == 0 and err.count("This training had finished, so there is nothing to resume;") == 1, err
    assert json.loads((room / "finished" / "training.json").read_text())["rows"] == 32


# From the second checkpoint on, files can grow only to a limit, as on a full disk.
NO_ROOM = """
import resource, sys
from t5fusion.finetune import training as train
from t5fusion.cli.app import main

most, last = int(sys.argv.pop()), int(sys.argv.pop())

class Full(train.FusionTrainer):
    def _save_checkpoint(self, *args, **kwargs):
        if self.state.epoch >= 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        super()._save_checkpoint(*args, **kwargs)

class FullAtTheEnd(train.FusionTrainer):
    def train(self, *args, **kwargs):
        super().train(*args, **kwargs)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

train.FusionTrainer = FullAtTheEnd if last else Full
main()
"""


@pytest.mark.parametrize(("where", "most"), [("weights", 50_000), ("optimizer", 200_000), ("the end", 50_000)])
def test_a_full_disk_leaves_the_previous_checkpoint(room, forks, where, most):
    output = f"full-{where.replace(' ', '-')}"
    words = [*TRAIN, *EXACT, "--epochs", "3", "--output", output]
    last = int(where == "the end")
    code, _, err = forks.run(*words, last, most, code=NO_ROOM)
    assert code == 1 and "Traceback" not in err, err
    error = err.splitlines()[-1]
    (checkpoint,) = (room / output / "checkpoints").iterdir()
    assert checkpoint.name == ("checkpoint-12" if last else "checkpoint-4")
    failed = output if last else f"{output}/checkpoints/checkpoint-8"
    assert f"t5fusion: {failed} could not be written: " in error
    assert error.endswith(f"Free some space, and run the same command with --resume: {checkpoint.name} is whole.")
    code, _, err = forks.run(*words, "--resume")
    assert code == 0, err
    assert json.loads((room / output / "training.json").read_text())["history"][-1]["step"] == 12

"""Training by several processes, on one machine and on two, over gloo on the loopback interface.

Two tests run `accelerate launch`. In the others, a rank is a fork with the environment that the launcher would give it,
because imports take most of the time of a launch.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from forks import Forks, free_port
from safetensors.torch import load_file
from training_folder import fill_training_folder
from warm import warm_python

COLUMNS = ["--text-column", "name", "--target-column", "text", "--vector-column", "vector"]
# Without dropout, in the base model and in LoRA: each number of processes draws other random numbers.
FULL = ["train", "rows.jsonl", "--validation", "held_out.jsonl", "--base", "base", *COLUMNS, "--precision", "fp32"]
TRAIN = [*FULL, "--dropout", "0"]
LONG = [*TRAIN, "--epochs", "12"]
ALONE, TWO = ["--batch-size", "8"], ["--batch-size", "4"]  # eight rows a step, by one process or by two
LAUNCH = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
DDP = [*LAUNCH, "--num_processes", "2", "--multi_gpu"]
FSDP = [*LAUNCH, "--num_processes", "2", "--use_fsdp", "--fsdp_version", "2"]
FSDP += ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
BOUND = 2e-6  # relative; the losses are sums of the same numbers in a different order


def succeed(forks, *words, **options):
    """Run a command that must succeed. Return its standard output and standard error."""
    code, out, err = forks.run(*words, **options)
    assert code == 0, err
    return out, err


def start_two(forks, launch, *words, **options):
    return forks.start_two(*words, **options | launched_environment(launch))


def succeed_in_two(forks, launch, *words, **options):
    ended = [forks.end(started) for started in start_two(forks, launch, *words, **options)]
    assert [code for code, _, _ in ended] == [0, 0], ended[0][2] + ended[1][2]
    return [(out, err) for _, out, err in ended]


def launched_environment(words):
    """Return the variables that `accelerate launch` adds to the environment, made by its own code."""
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args([*words, "-m", "t5fusion"]))
    simple = arguments.cpu
    variables = prepare_simple_launcher_cmd_env(arguments)[1] if simple else prepare_multi_gpu_env(arguments)
    return {name: value for name, value in variables.items() if os.environ.get(name) != value}


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    """A folder to train in. The base model has no dropout, and the targets have different lengths."""
    folder = tmp_path_factory.mktemp("distributed")
    return fill_training_folder(
        folder, save_plain_t5, lambda row, a: "settings of " + a * (1 + row % 7), dropout_rate=0.0
    )


@pytest.fixture(scope="module")
def forks(room):
    forks = Forks(room)
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def alone(room, forks):
    """A run folder of two epochs, trained by one process."""
    succeed(forks, *TRAIN, *ALONE, "--epochs", "2", "--output", "alone")
    return room / "alone"


@pytest.fixture(scope="module")
def long_alone(room, forks):
    """A run folder like `alone`, with as many epochs as interrupted trainings have."""
    succeed(forks, *LONG, *ALONE, "--output", "long-alone")
    return room / "long-alone"


def record(folder):
    return json.loads((folder / "training.json").read_text())


def curve(folder):
    """Return the losses of a run on training and held-out rows, epoch by epoch."""
    return [entry.get("loss", entry.get("eval_loss")) for entry in record(folder)["history"]]


def weights(folder):
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def check_same(folder, expected):
    """Check that losses and weights of two runs differ only by the order of sums."""
    assert curve(folder) == pytest.approx(curve(expected), rel=BOUND)
    actual, wanted = weights(folder), weights(expected)
    assert actual.keys() == wanted.keys()
    for name, value in actual.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)


def test_two_processes_give_the_losses_of_one(room, forks, alone):
    (out, err), (silent, other) = succeed_in_two(forks, DDP, *TRAIN, *TWO, "--epochs", "2", "--output", "ddp")
    check_same(room / "ddp", alone)
    assert len(curve(alone)) == 4 and len(set(curve(alone))) == 4
    assert (record(room / "ddp")["processes"], record(alone)["processes"]) == (2, 1)
    assert out == "" and "weights train" in err and "Saved in ddp." in err  # Only the first process prints.
    assert silent == "" and other == ""


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_sharded_weights_are_saved_whole(room, forks, alone, kind):
    words, expected = TRAIN, alone
    if kind == "full":
        words, expected = [*FULL, "--full", "--fusion-lr", "1e-3"], room / "full-alone"
        succeed(forks, *words, *ALONE, "--epochs", "2", "--output", "full-alone")
    launch = FSDP if kind == "lora" else [*FSDP, "--fsdp_state_dict_type", "FULL_STATE_DICT"]
    succeed_in_two(forks, launch, *words, *TWO, "--epochs", "2", "--output", f"fsdp-{kind}")
    folder = room / f"fsdp-{kind}"
    check_same(folder, expected)
    shards = {path.name for path in (folder / "checkpoints" / "checkpoint-8").iterdir()}
    assert "pytorch_model_fsdp_0" in shards or "pytorch_model_fsdp.bin" in shards  # from FSDP, not DDP
    if kind == "lora":
        succeed(forks, "export", f"fsdp-{kind}", "bundle", "--kind", "standalone")
        out, _ = succeed(forks, "verify", "bundle")
        assert "right" in out or "bit" in out
    else:  # The class is our own, not the one that FSDP derives from it.
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["T5WithFusion"] and (folder / "modeling_t5fusion.py").exists()
        classes = ("modeling_t5fusion.T5WithFusion", "configuration_t5fusion.T5FusionConfig")
        named = {*classes, "processing_t5fusion.T5FusionProcessor"}
        assert set(config["auto_map"].values()) == named


STEP_OF_MIXED_RANKS = """
import json, sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from t5fusion import DataCollatorWithFusion
from t5fusion.finetune.inputs import prepare
from t5fusion.common.base_models import make_processor
from t5fusion.finetune.training import TrainingOptions, build_model

dist.init_process_group("gloo")
processor = make_processor("base", lexical_encoder=None, lexical_dim=8, lexical_source="given")
vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
rows = prepare(["app_a", "app_b", "app_c", "app_d"], ["a b", "b c", "c d", "d a"], vectors, processor)
model = build_model(TrainingOptions(base_model="base", dropout=0.0), processor, rows).train()
for row in rows[2:]:
    del row["lexical_embeds"]
batches = [DataCollatorWithFusion(processor.tokenizer)(part) for part in (rows[:2], rows[2:])]
assert [("lexical_embeds" in batch) for batch in batches] == [True, False]
sum(model(**batch).loss / 2 for batch in batches).backward()
expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
wrapped = DistributedDataParallel(model)
for _ in range(2):  # it is the second that fails if the first one waits for gradients
    model.zero_grad()
    wrapped(**batches[dist.get_rank()]).loss.backward()
for name, parameter in model.named_parameters():
    if parameter.requires_grad:
        torch.testing.assert_close(parameter.grad, expected[name], msg=lambda text: name + ": " + text)
assert any("fusion" in name and grad.any() for name, grad in expected.items())
print(len(expected), flush=True)
"""


def test_ranks_with_and_without_vectors_train_together(forks):
    for out, _ in succeed_in_two(forks, DDP, code=STEP_OF_MIXED_RANKS):
        assert int(out.splitlines()[-1]) == 2 * 16 + 3  # A and B of 16 matrices, and the fusion layer


def wait_for(checkpoints, running):
    while not list(checkpoints.glob("checkpoint-*/trainer_state.json")):
        assert running()
        time.sleep(0.01)


STOPS = {"ddp": signal.SIGINT, "fsdp": signal.SIGINT, "ddp-term": signal.SIGTERM}


@pytest.mark.parametrize("kind", STOPS)
def test_a_signal_to_one_rank_stops_all_ranks_at_the_same_step(room, forks, long_alone, kind):
    launch, output, number = (FSDP if kind == "fsdp" else DDP), f"stopped-{kind}", STOPS[kind]
    words = [*LONG, *TWO, "--output", output]
    started = start_two(forks, launch, *words)
    checkpoints = room / output / "checkpoints"
    wait_for(checkpoints, lambda: Path(f"/proc/{started[0][0]}").exists())
    os.kill(started[1][0], number)  # A terminal sends it to all ranks, one a moment after the other.
    os.kill(started[1][0], number)  # A cluster sends it to all ranks too, and the launcher passes it on.
    ended = [forks.end(each) for each in started]
    assert [code for code, _, _ in ended] == [128 + number] * 2, ended[0][2] + ended[1][2]
    assert f"Stopped; a checkpoint is in {output}." in ended[0][2] and "Stopped" not in ended[1][2]
    (checkpoint,) = checkpoints.iterdir()
    assert (checkpoint / "rng_state_0.pth").exists() and (checkpoint / "rng_state_1.pth").exists()
    if number == signal.SIGTERM:  # The checkpoint is saved as after SIGINT.
        return
    succeed_in_two(forks, launch, *words, "--resume")
    assert record(room / output)["history"][-1]["step"] == 48
    assert curve(room / output)[-1] == pytest.approx(curve(long_alone)[-1], rel=1e-4)


def launch(arguments, folder, environment, python):
    """Return a function that starts `accelerate launch ARGUMENTS -m t5fusion` with more words."""
    words = [*python, "-m", "accelerate.commands.launch", *arguments, "-m", "t5fusion"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return lambda *more: subprocess.Popen([*words, *more], cwd=folder, env=environment, **pipes)


def test_a_dying_rank_ends_the_job_and_one_process_can_resume(room, forks, long_alone):
    words = [*LONG, "--output", "killed"]
    job = launch([*DDP, "--main_process_port", "0"], room, forks.environment, [warm_python()])(*words, *TWO)
    wait_for(room / "killed" / "checkpoints", lambda: job.poll() is None)
    ranks = find_ranks("killed")
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    printed, _ = job.communicate(timeout=120)
    assert job.returncode == 1 and "Signal 9 (SIGKILL) received by PID" in printed
    assert not (room / "killed" / "training.json").exists()
    assert not Path(f"/proc/{ranks[0]}").exists()
    code, _, err = forks.end(forks.start(*words, *TWO, "--resume"))
    assert code == 1 and "batch size of all processes was 8, now 4. Resume with the same ones" in err
    (room / "killed" / "checkpoints" / "checkpoint-9999").mkdir()  # as if the run was killed while it saved
    succeed(forks, *words, *ALONE, "--resume")
    assert record(room / "killed")["processes"] == 1
    assert curve(room / "killed") == pytest.approx(curve(long_alone), rel=1e-4)


def find_ranks(output):
    """Return the ids of the processes that a launcher has started to train into `output`."""
    ranks = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It may have ended meanwhile.
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if output.encode() in words and b"t5fusion" in words and b"accelerate.commands.launch" not in words:
                ranks.append(int(folder.name))
    return sorted(ranks)


NAMED = "import os, socket, sys; socket.sethostname(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"


def on_machine(address):
    """Return a prefix that runs a command on a host with that name, where gloo listens. Empty if not permitted."""
    prefix = ["unshare", "--map-root-user", "--uts", sys.executable, "-c", NAMED, address]
    tried = subprocess.run([*prefix, "/bin/true"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else []


def listening():
    """Return the IPv4 addresses of listening sockets, in the format of /proc."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A"}


def test_two_machines(room, forks, alone):
    port, machines, seen = free_port(), [], set()
    before = listening()
    train = [str(room / word) if (room / word).exists() else word for word in TRAIN]
    environment = {name: value for name, value in forks.environment.items() if name != "GLOO_SOCKET_IFNAME"}
    for rank in ("0", "1"):
        (room / f"machine-{rank}").mkdir()
        words = ["--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--machine_rank", rank]
        words += ["--main_process_ip", "127.0.0.2", "--main_process_port", port, "--mixed_precision", "no"]
        prefix = on_machine(f"127.0.0.{int(rank) + 2}")
        start = launch(words, room / f"machine-{rank}", environment, [*prefix, warm_python()])
        machines.append(start(*train, *TWO, "--epochs", "2", "--output", "out"))
    while any(machine.poll() is None for machine in machines):
        seen |= listening() - before
        time.sleep(0.02)
    outputs = [machine.communicate()[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs[0] + outputs[1]
    if prefix:
        assert {"0200007F", "0300007F"} <= seen  # 127.0.0.2 and 127.0.0.3
    check_same(room / "machine-0" / "out", alone)
    assert "Saved in out." in outputs[0] and "Saved in out." not in outputs[1]
    written = {path.name for path in (room / "machine-1").rglob("*") if path.is_file()}
    assert written == {"rng_state_1.pth"}  # The second machine writes only its random state, for an exact resumption.


def test_a_launch_that_starts_too_few_processes_is_refused(forks):
    environment = launched_environment([*LAUNCH, "--num_processes", "2", "--cpu"])
    code, _, err = forks.end(forks.start(*TRAIN, "--output", "refused", **environment))
    assert code == 1 and err.startswith("t5fusion: accelerate started one process, not several. On CPUs, pass ")
    assert len(err.splitlines()) == 1 and "--multi_gpu to `accelerate launch` instead of --cpu" in err


ENCODE_SHARED = """
import os, sys, time, torch
from t5fusion.finetune.vector_cache import encode_cached
from t5fusion.common.base_models import make_processor

class Encoder:
    def encode(self, texts, **options):
        with open("encoded", "a") as file:
            print(os.environ["RANK"], file=file)
        time.sleep(1)
        return torch.arange(len(texts) * 8.0).reshape(-1, 8)

processor = make_processor("base", lexical_dim=8)
processor.encode = Encoder().encode
print(encode_cached(["a", "b", "a"], processor).tolist())
"""


def test_one_process_makes_the_vectors(room, forks):
    ended = succeed_in_two(forks, DDP, code=ENCODE_SHARED)
    assert ended[0][0] == ended[1][0] and "8.0" in ended[0][0]
    assert len((room / "encoded").read_text().split()) == 1


STREAM = """
import json, os, sys, torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments
from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion
from t5fusion.common.base_models import make_processor

rows, options, arguments = (json.loads(word) for word in sys.argv[1:])

class Stream(IterableDataset):
    def __iter__(self):
        return iter(rows)

processor = make_processor("base", lexical_dim=8)
model = T5WithFusion("base", lexical_dim=8)
arguments = TrainingArguments(
    output_dir="streamed", max_steps=2, logging_steps=1, learning_rate=1e-2, report_to="none", save_strategy="no",
    use_cpu=True, seed=0, **arguments,
)
trainer = Trainer(
    model=model, args=arguments, train_dataset=Stream(), data_collator=DataCollatorWithFusion(processor, **options)
)
trainer.train()
print(json.dumps([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
"""
FIXED = {"padding": "max_length", "max_length": 24, "max_target_length": 6}


def streamed(room, counts, padded):
    """Return sixteen rows of different lengths, with `counts` vectors in turn. `padded` pads them as tokenizers do."""
    numbers = torch.Generator().manual_seed(1)
    rows = []
    for number in range(16):
        ids = [*range(5, 6 + number), 1]
        labels = [*range(7, 8 + number % 4), 1]
        vectors = torch.randn(counts[number % len(counts)], 8, generator=numbers).tolist()
        row = {
            "input_ids": ids + [0] * padded * (20 - len(ids)),
            "labels": labels + [-100] * padded * (6 - len(labels)),
        }
        rows.append(row | ({"lexical_embeds": vectors} if vectors else {}))
    return json.dumps(rows)


STREAMS = {
    "rows of one length, nothing typed": ((1,), 1, {}, {}),
    "in the processes of a loader": ((1,), 1, {}, {"dataloader_num_workers": 1}),
    "rows of all lengths": ((1,), 0, FIXED, {}),
    "ragged vectors": ((2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3), 0, FIXED | {"max_vectors": 3}, {}),
    "each process its own batches": ((2, 0, 1), 0, {}, {"accelerator_config": {"dispatch_batches": False}}),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_streamed_rows_in_two_processes_give_the_losses_of_one(room, forks, kind):
    counts, padded, options, arguments = STREAMS[kind]
    rows = streamed(room, counts, padded)
    words = [rows, json.dumps(options)]
    out, _ = succeed(forks, *words, json.dumps(arguments | {"per_device_train_batch_size": 8}), code=STREAM)
    arguments = json.dumps(arguments | {"per_device_train_batch_size": 4})
    ended = succeed_in_two(forks, DDP, *words, arguments, code=STREAM)
    expected = json.loads(out.splitlines()[-1])
    assert len(set(expected)) == 2
    assert json.loads(ended[0][0].splitlines()[-1]) == pytest.approx(expected, rel=1e-4)


def test_streamed_rows_of_different_lengths_are_refused(room, forks):
    words = [streamed(room, (2, 1), 0), "{}", json.dumps({"per_device_train_batch_size": 4})]
    ended = [forks.end(started) for started in start_two(forks, DDP, *words, code=STREAM)]
    assert ended[0][0] != 0 and "DataCollatorWithFusion(..., padding='max_length', max_length=...)" in ended[0][2]

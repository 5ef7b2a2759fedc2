"""`t5fusion train` and its folder: what is refused before anything is written, and what is kept whatever happens.

The commands run in forks of a process that has imported torch already.
"""

import json

import pytest
import torch
from forks import Forks

COLUMNS = ["--text-column", "name", "--target-column", "text"]
TRAIN = ["train", "rows.jsonl", "--validation", "held_out.jsonl", "--base", "base", *COLUMNS]
SHORT = ["--vector-column", "vector", "--precision", "fp32", "--epochs", "1", "--batch-size", "8"]


@pytest.fixture(scope="module")
def room(save_plain_t5, tmp_path_factory):
    """A folder with a base, 32 rows to train on and 8 held out, with vectors of eight numbers."""
    room = tmp_path_factory.mktemp("runs")
    save_plain_t5(room / "base", d_model=32, num_layers=1)
    numbers = torch.Generator().manual_seed(0)
    rows = [
        {"name": f"app_{a}{b}", "text": f"settings of {a}", "vector": torch.randn(8, generator=numbers).tolist()}
        for a in "abcdefgh"
        for b in "stuvw"
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (room / "rows.jsonl").write_text("".join(lines[:32]))
    (room / "held_out.jsonl").write_text("".join(lines[32:]))
    return room


@pytest.fixture(scope="module")
def forks(room):
    forks = Forks(room)
    yield forks
    forks.close()


def refused(forks, *words):
    """The one sentence with which a command is refused."""
    code, _, err = forks.run(*words)
    assert code == 1, err
    (line,) = err.splitlines()
    assert line.startswith("t5fusion: ")
    return line.removeprefix("t5fusion: ")


IDLE = {
    "rank": (["--full", "--rank", "32"], "--rank has no effect with --full."),
    "alpha": (["--full", "--alpha", "8"], "--alpha has no effect with --full."),
    "dropout": (["--full", "--dropout", "0"], "--dropout has no effect with --full."),
    "modules": (["--full", "--target-modules", "q,v"], "--target-modules has no effect with --full."),
    "rate": (["--freeze-fusion", "--fusion-lr", "1e-3"], "--fusion-lr has no effect with --freeze-fusion."),
    "start": (["--freeze-fusion", "--fusion-start", "targets"], "--fusion-start has no effect with --freeze-fusion."),
    "encoder": (["--encoder", "all-MiniLM-L6-v2"], "--encoder has no effect with --vector-column."),
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

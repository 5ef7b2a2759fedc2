"""What a command shows while it loads the libraries, and which of their bars it shows."""

import os
import pty
import subprocess

import pytest
from warm import warm_python

ARE_SHOWN = """
import os
from t5fusion.cli import libraries
libraries.PATIENCE = float(os.environ["PATIENCE"])
libraries.load_libraries()
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils.logging import is_progress_bar_enabled
print(not are_progress_bars_disabled(), is_progress_bar_enabled())
"""


@pytest.mark.parametrize(
    ("is_terminal", "hidden_by_user", "expected"),
    [(True, False, "True False\n"), (True, True, "False False\n"), (False, False, "False False\n")],
)
def test_bars_of_downloads_are_shown_on_a_terminal_only(tmp_path, is_terminal, hidden_by_user, expected):
    """The first word is for bars of downloads; the second for bars of loading weights, which are never shown."""
    hidden = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} if hidden_by_user else {}
    assert load(tmp_path, is_terminal, PATIENCE="600", **hidden) == (expected, b"end")


def test_slow_loading_is_explained_on_a_terminal(tmp_path):
    _, printed = load(tmp_path, True, PATIENCE="0")
    assert printed.startswith(b"Loading torch, transformers and peft. This is slow the first time")


def load(folder, is_terminal, **environment):
    """Load the libraries in a new process. Return its standard output, and what it printed on a terminal before "end".

    Standard error is the terminal, or nothing.
    """
    screen, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [warm_python(), "-c", ARE_SHOWN],
            cwd=folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=terminal if is_terminal else subprocess.DEVNULL,
            text=True,
            timeout=300,
        )
        os.write(terminal, b"end")
        printed = os.read(screen, 10_000)
    finally:
        os.close(screen)
        os.close(terminal)
    return done.stdout, printed

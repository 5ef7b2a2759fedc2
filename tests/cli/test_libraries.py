"""Which bars of other libraries a command shows."""

import os
import pty
import subprocess
import sys

import pytest

ARE_SHOWN = """
from t5fusion.cli.libraries import load_libraries
load_libraries()
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
    environment = os.environ | ({"HF_HUB_DISABLE_PROGRESS_BARS": "1"} if hidden_by_user else {})
    screen, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", ARE_SHOWN],
            cwd=tmp_path,
            env=environment,
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
    assert (done.stdout, printed) == (expected, b"end")

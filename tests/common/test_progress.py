"""The bar of long work in a terminal, and its lines elsewhere."""

import contextlib
import os
import pty
import re
import select
import termios
from contextlib import contextmanager

from t5fusion.common.progress import Progress


@contextmanager
def terminal():
    """Make standard error a terminal. Yield a function that gives what was printed there since its last call."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))  # rows and columns

    def read_part():
        """Return what arrives in a moment. The system passes on what was written a little later, and in parts."""
        return os.read(ours, 100_000) if select.select([ours], [], [], 0.2)[0] else b""

    with os.fdopen(theirs, "w") as stream, contextlib.redirect_stderr(stream):
        yield lambda: b"".join(iter(read_part, b"")).decode()
    os.close(ours)


def test_a_terminal_shows_a_bar_with_total_and_time_left():
    with terminal() as shown, Progress("Encoding", 40, "texts") as progress:
        progress.advance(10, "loss 0.500")
        progress.bar.refresh()
        bar = r"Encoding:  25%\|.*10/40 \[\d\d:\d\d<\d\d:\d\d, .*texts/s, loss 0.500\]"
        assert re.search(bar, shown())
        progress.write("epoch 1: done")
        assert "epoch 1: done\r\n" in shown()


def test_a_pipe_gets_a_line_with_total_and_time_left(capsys):
    progress = Progress("Encoding", 4000, "texts", every=0)
    progress.advance(1000, "loss 0.500")
    out, err = capsys.readouterr()
    assert not out and re.fullmatch(r"Encoding: 1,000 of 4,000 texts \(25%\), \d\d:\d\d left, loss 0.500\n", err)
    progress.write("epoch 1: done")
    assert capsys.readouterr().err == "epoch 1: done\n"


def test_what_an_earlier_run_has_done_takes_no_time_of_this_one(capsys):
    progress = Progress("Training", 100, "steps", done=98, every=0)
    progress.started -= 100  # seconds
    progress.advance(1)
    assert capsys.readouterr().err == "Training: 99 of 100 steps (99%), 01:40 left\n"
    progress = Progress("Training", 100, "steps", done=98, every=0)
    progress.advance(0, "evaluating")
    assert capsys.readouterr().err == "Training: 98 of 100 steps (98%), evaluating\n"


def test_a_pipe_gets_no_more_than_a_line_every_half_minute(capsys):
    progress = Progress("Encoding", 4000)
    for _ in range(100):
        progress.advance()
    assert capsys.readouterr().err == ""
    progress.last_line -= 31  # seconds
    for _ in range(100):
        progress.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_of_several_processes_only_the_first_shows_it(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    progress = Progress("Encoding", 4000, every=0)
    progress.advance()
    progress.write("epoch 1: done")
    assert capsys.readouterr().err == ""
    with terminal():
        assert Progress("Encoding", 4000).bar is None

"""The check of a demonstration's folder in a new process: what is said if it differs, and if it fails."""

import subprocess

import numpy as np
import pytest

from t5fusion.common.losses import Losses
from t5fusion.demo import DIFFERS, demo


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (DIFFERS, "the model reloaded from .* differs from the trained one: text of row 0"),
        (1, r"the check of .* failed \(1\): text of row 0"),
        (-9, r"the check of .* failed \(-9\): text of row 0"),
    ],
)
def test_a_failed_check_is_not_a_different_model(tmp_path, monkeypatch, code, sentence):
    monkeypatch.setattr(demo, "losses", lambda *_: Losses(np.ones(0), np.ones(0)))
    monkeypatch.setattr(demo, "generate_texts", lambda *_: [])
    ended = subprocess.CompletedProcess([], code, "", "text of row 0\n")
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(RuntimeError, match=sentence):
        demo._check_reload(tmp_path, None, [], None)

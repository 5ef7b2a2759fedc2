"""What the demonstration says if there are too few names to train on."""

import re

import pytest

from t5fusion.demo import demo as demo_module

FILE = '"""A module with a docstring."""\n\n\ndef load(path):\n    """Load the settings from a file."""\n'


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of one file with two documented names."""
    (tmp_path / "settings.py").write_text(FILE)
    monkeypatch.setattr(demo_module, "standard_library", lambda: tmp_path)
    return tmp_path


def test_a_library_with_too_few_names(library):
    found = f"the standard library in {library} has 2 documented names to train on and 0 held out"
    advice = "expected two or more of each. Use a Python whose library is there as .py files."
    with pytest.raises(ValueError, match=f"^{re.escape(f'{found}; {advice}')}$"):
        demo_module.demo(library / "run")


def test_a_limit_that_leaves_too_few_names(library):
    with pytest.raises(
        ValueError, match="--limit 1 gives 1 name to train on and 0 held out; .* Pass a --limit of 100 or"
    ):
        demo_module.demo(library / "run", limit=1)

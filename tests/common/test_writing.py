"""`temporary_folder`. Full disks are tried with the commands that meet them, in the tests of those."""

import tempfile

import pytest

from t5fusion.common.writing import temporary_folder


def test_a_temporary_folder_that_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    sentence = r"no temporary folder can be made \(No such file or directory\)\. Free some space, or set TMPDIR"
    with pytest.raises(OSError, match=sentence), temporary_folder("x-"):
        pass

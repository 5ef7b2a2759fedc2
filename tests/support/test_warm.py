"""The warm interpreter: its processes are forks, which have torch, and import transformers as a new process does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_disk import tiny_disk
from warm import warm_python

TORCH_IS_THERE = "import sys; print('torch' in sys.modules)"
TRANSFORMERS_IS_NOT = """
import sys
print("transformers" in sys.modules)
import transformers
from transformers.models import t5
print(hasattr(transformers, "T5ForConditionalGeneration"), hasattr(t5, "T5Config"), hasattr(t5, "nothing"))
"""
SET_BY_IMPORTS = {"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE", "TORCHINDUCTOR_CACHE_DIR": "inductor"}


SET_BY_LAUNCHERS = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"}
SET_BY_LAUNCHERS |= {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
HOST_AND_DISK = "import os, socket, sys; print('torch' in sys.modules, socket.gethostname(), os.path.ismount('disk'))"
RENAMED = "import os, socket, sys; socket.sethostname('other'); os.execv(sys.argv[1], sys.argv[1:])"


def run(code, *before, **environment):
    """Return what code prints in a process with these variables, and without the others that imports set.

    `before` are words before the command.
    """
    others = {name: value for name, value in os.environ.items() if name not in SET_BY_IMPORTS}
    command, environment = [*before, warm_python(), "-c", code], others | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("environment", [{}, SET_BY_IMPORTS], ids=["before", "after"])
def test_a_process_is_a_fork_before_and_after_the_imports_that_set_variables(environment):
    """sentence-transformers imports sklearn, which sets two. After the first encoder, all processes would be slow."""
    assert run(TORCH_IS_THERE, **environment) == "True\n"


def test_a_rank_of_a_launcher_is_a_fork_that_has_its_variables():
    code = "import os, sys; print('torch' in sys.modules, *(os.environ[name] for name in sys.argv[1:]))"
    out = run(f"import sys; sys.argv += {[*SET_BY_LAUNCHERS]}; {code}", **SET_BY_LAUNCHERS)
    assert out == "True none 0 1\n"


def test_a_fork_has_the_host_name_and_the_disks_of_the_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    disk = tiny_disk(tmp_path / "disk", "size=64k")
    disk.insert(1, "--uts")
    here = Path("/proc/sys/kernel/hostname").read_text().strip()
    assert run(HOST_AND_DISK, *disk, sys.executable, "-c", RENAMED) == "True other True\n"
    assert run(HOST_AND_DISK) == f"True {here} False\n"


def test_a_variable_that_a_library_reads_at_its_import_needs_a_new_interpreter():
    assert run(TORCH_IS_THERE, MKL_VERBOSE="0") == "False\n"


def test_a_fork_imports_transformers_itself():
    """It knows the layout of the models beforehand, with the same names."""
    assert run(TRANSFORMERS_IS_NOT) == "False\nTrue True False\n"

"""accelerate: on CPUs, `--cpu --num_processes 2` starts one process, and `--use_fsdp` becomes DDP; neither says so."""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
SCRIPT = """
from accelerate import Accelerator
state = Accelerator(cpu=True).state
print(f"{state.num_processes} processes, {state.distributed_type}") if state.process_index == 0 else None
"""

with tempfile.TemporaryDirectory() as folder:
    script = Path(folder) / "script.py"
    script.write_text(SCRIPT)
    fsdp = ["--use_fsdp", "--fsdp_version", "2"]
    for options in (["--cpu"], fsdp):
        command = [*LAUNCH, *options, "--num_processes", "2", script]
        done = subprocess.run(command, capture_output=True, text=True)
        printed = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
        print(f"accelerate {version('accelerate')}, {' '.join(options)} --num_processes 2: {' '.join(printed)}")

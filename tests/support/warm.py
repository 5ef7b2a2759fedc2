"""A Python interpreter that starts with torch already imported, because imports take most of a short process's time.

`warm_python()` returns the path of a program that tests run in place of `sys.executable`:

1. The first call starts a server (warm_server.py), which imports `PRELOADED`, and installs the program
   (warm_program.py).
2. The program sends its arguments, environment, working directory and standard files to the server, which forks.
3. The fork takes all these over, and the program's host name and disks. It runs the code, and ends, as `python` would.
4. The program passes signals on to the fork, and ends with the fork's exit code. If it is killed, the server kills the
   fork.
5. The program runs the real interpreter if a fork would differ from it: with options other than -I, -u, -W, -c and -m,
   or with other values of the variables that torch reads when it is imported.

`PRELOADED` reads no settings of the Hub, and does not know t5fusion. A fork imports the `FRESH` packages by itself, as
a fresh process does. Use `sys.executable` where imports are what is tested.
"""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

PRELOADED = (
    "torch", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor",
    "numpy", "pandas", "pyarrow.dataset", "pyarrow.parquet", "rouge_score.rouge_scorer", "sacrebleu", "scipy.io",
    "scipy.optimize", "sklearn.metrics", "sympy",
    "anyio", "dill", "filelock", "fsspec", "h11", "httpx2", "jinja2", "joblib", "multiprocess", "networkx", "pydantic",
    "safetensors.torch", "tokenizers", "truststore", "typer._adapters", "xxhash", "yaml",
)  # fmt: skip
# Beginnings of the names of variables that the preloaded modules, or the interpreter, read when they start.
READ_WHEN_IMPORTED = ("CUDA", "KMP", "LD_", "MALLOC", "MKL", "OMP", "OPENBLAS", "PYTHON", "PYTORCH", "TORCH")
FRESH = ("accelerate", "datasets", "huggingface_hub", "peft", "sentence_transformers", "t5fusion", "transformers")
HERE = Path(__file__).parent


@cache
def warm_python() -> str:
    """Return the path of the program. The server starts with the first call and ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="t5fusion-warm-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"OMP_NUM_THREADS": "1"}  # The last bit of a product depends on it.
    settings = {name: value for name, value in environment.items() if name.startswith(READ_WHEN_IMPORTED)}
    (folder / "settings.json").write_text(json.dumps([sys.executable, READ_WHEN_IMPORTED, settings]))
    program = folder / "python"
    program.write_text(f"#!{sys.executable} -IS\n" + (HERE / "warm_program.py").read_text())
    program.chmod(0o755)
    arguments = json.dumps([str(folder), PRELOADED, FRESH])
    server = subprocess.Popen(
        [sys.executable, "-I", str(HERE / "warm_server.py"), arguments], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    atexit.register(end, server, folder)
    assert server.stdout.readline() == "ready\n"
    return str(program)


def end(server: subprocess.Popen, folder: Path) -> None:
    """End the server, whose standard input is its sign of life, and delete the program's folder."""
    server.stdin.close()
    server.wait(60)
    server.stdout.close()
    shutil.rmtree(folder, ignore_errors=True)

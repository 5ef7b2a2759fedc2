"""Forks of a process that has imported the libraries already: importing them takes most of a short command's time.

`Forks(folder).run("train", "rows.jsonl")` runs a command of t5fusion in a folder. All `Forks` of a test process
share one server, which imports once and forks for each command. `Forks` with an environment of its own gets a server of
its own, because the libraries read the settings of the Hub when they are imported.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

from warm import warm_python

COMMAND = "from t5fusion.cli.app import main; main()"
PATIENCE = 300  # seconds until a process that does not end is killed
IMPORTS = (
    "t5fusion.cli.app, t5fusion.finetune.file_training, t5fusion.finetune.file_evaluation, "
    "t5fusion.finetune.file_generation, t5fusion.hub_export.upload, t5fusion.hub_export.bundle, "
    "torch.distributed.fsdp, transformers.models.t5.modeling_t5, sentence_transformers, "
    "rouge_score.rouge_scorer, sacrebleu, scipy.io, typer._adapters"
)

# A line of input is JSON: [code, arguments, environment, folder, name of the files for standard output and error]. The
# server forks, and answers with the process's id. If a line is such an id, the server waits for the process to end, and
# answers with its exit code.
SERVER = """
import gc, importlib, json, os, signal, sys, traceback

for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass  # an optional dependency
# The first model that a process loads makes transformers compile a thousand regular expressions.
getattr(sys.modules.get("transformers.conversion_mapping"), "get_checkpoint_conversion_mapping", str)("t5")
gc.collect()
gc.freeze()  # forks do not collect what is loaded
signal.signal(signal.SIGINT, signal.default_int_handler)
for line in sys.stdin:
    request = json.loads(line)
    if isinstance(request, int):
        print(os.waitstatus_to_exitcode(os.waitpid(request, 0)[1]), flush=True)
        continue
    code, arguments, environment, folder, name = request
    child = os.fork()
    if child == 0:
        for number, file in enumerate((os.devnull, name + ".out", name + ".err")):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv, status = ["t5fusion", *arguments], 0
        try:
            exec(code, {"__name__": "__main__"})
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(child, flush=True)
"""


class Server:
    """The process that imports and forks, in the given environment."""

    def __init__(self, folder: Path, environment: dict[str, str], imports: str = IMPORTS):
        command = [warm_python(), "-c", SERVER, *imports.split(", ")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, **pipes)

    def ask(self, request: list | int) -> int:
        """Send a line of input, and return the answer: the id of the new process, or the exit code of an ended one."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def offline_environment(home: Path) -> dict[str, str]:
    """Return this process's environment, offline, and with the caches of the Hub in `home`."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home),
        "OMP_NUM_THREADS": "1",  # The last bit of a product depends on it.
        "COLUMNS": "200",
    }
    environment.pop("T5FUSION_DEBUG", None)
    return environment


@cache
def shared_server() -> tuple[Server, Path]:
    """Return the server that all `Forks` without an environment of their own share, and its HF_HOME."""
    home = tempfile.TemporaryDirectory(prefix="t5fusion-forks-")
    server = Server(Path(home.name), offline_environment(Path(home.name)))
    atexit.register(home.cleanup)
    atexit.register(server.close)  # before the folder is deleted
    return server, Path(home.name)


class Forks:
    """A folder in which commands of t5fusion, or other code, run as forks of a server.

    Args:
        folder: The folder. Caches and the files with a process's output are in it too.
        environment: Variables for the processes, added to this process's own.
        imports: Names of the modules that the server imports, with commas between them.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, imports: str = IMPORTS):
        self.folder, self.started = folder, 0
        self.own_server: Server | None = None
        cache = {"T5FUSION_CACHE": str(folder / "cache")}
        if environment is None and imports == IMPORTS:
            self.server, home = shared_server()
            self.environment = offline_environment(home) | cache
        else:
            self.environment = offline_environment(folder / "hf") | cache | (environment or {})
            self.server = self.own_server = Server(folder, self.environment, imports)

    def start(self, *words, code: str = COMMAND, cwd: Path | None = None, **environment) -> tuple[int, str]:
        """Start a process. Return its id, and the name of the files that get its output, without ".out" and ".err"."""
        self.started += 1
        name = str(self.folder / f"printed-{self.started}")
        request = [code, [*map(str, words)], self.environment | environment, str(cwd or self.folder), name]
        return self.server.ask(request), name

    def start_two(self, *words, **options) -> list[tuple[int, str]]:
        """Start two processes, as the two ranks of a launch."""
        same = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        return [self.start(*words, **options | same, RANK=rank, LOCAL_RANK=rank) for rank in "01"]

    def end(self, started: tuple[int, str]) -> tuple[int, str, str]:
        """Wait for a process. Return its exit code, standard output and standard error.

        A process that does not end is killed, so that a test in which two ranks wait for each other fails.
        """
        process, name = started
        patience = threading.Timer(PATIENCE, os.kill, (process, signal.SIGKILL))
        patience.start()
        code = self.server.ask(process)
        patience.cancel()
        return code, *(Path(name + end).read_text() for end in (".out", ".err"))

    def run(self, *words, **options) -> tuple[int, str, str]:
        """Start a process and wait for it. Return its exit code, standard output and standard error."""
        return self.end(self.start(*words, **options))

    def close(self) -> None:
        if self.own_server is not None:
            self.own_server.close()


def free_port() -> str:
    """Return a port that no process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])

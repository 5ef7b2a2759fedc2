"""Runs code and commands in processes that have imported torch already: most of a command's time would else be that."""

import json
import os
import socket
import subprocess
from pathlib import Path

from warm import warm_python

OF_THE_COMMANDS = "t5fusion.cli.app, t5fusion.finetune.training, t5fusion.hub_export.upload, torch.distributed.fsdp"
COMMAND = "from t5fusion.cli.app import main; main()"

# Imports once and forks for each. A line is [code, arguments, environment, folder, name of the files for standard
# output and error], which it answers with the process's id; or such an id, which it answers with its exit code.
SERVER = """
import json, os, signal, sys, traceback
import {imports}

signal.signal(signal.SIGINT, signal.default_int_handler)
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, int):
        print(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]), flush=True)
        continue
    code, arguments, environment, folder, name = asked
    child = os.fork()
    if child == 0:
        for number, file in enumerate((os.devnull, name + ".out", name + ".err")):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
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


class Forks:
    """Commands of t5fusion, or other code, in a folder; `start_two` as the two ranks of a launch.

    Args:
        room: the folder, which also takes caches and what is printed.
        environment: of the processes, beside this one's own.
        imports: names of the modules that are imported before the forks.
    """

    def __init__(self, room: Path, environment: dict[str, str] | None = None, imports: str = OF_THE_COMMANDS):
        self.room, self.started = room, 0
        self.environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",  # what the last bit of a product depends on
            "HF_HOME": str(room / "hf"),
            "T5FUSION_CACHE": str(room / "cache"),
            "COLUMNS": "200",
        }
        self.environment |= environment or {}
        self.environment.pop("T5FUSION_DEBUG", None)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen(
            [warm_python(), "-c", SERVER.replace("{imports}", imports)], cwd=room, env=self.environment, **pipes
        )

    def ask(self, question) -> int:
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, *words, code: str = COMMAND, cwd: Path | None = None, **environment) -> tuple[int, str]:
        """The process's id, and the name of the files to which it prints."""
        self.started += 1
        name = str(self.room / f"printed-{self.started}")
        return self.ask([code, [*map(str, words)], environment, str(cwd or self.room), name]), name

    def start_two(self, *words, **options) -> list[tuple[int, str]]:
        """Two processes, each with its rank and where they meet."""
        same = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        return [self.start(*words, **options | same, RANK=rank, LOCAL_RANK=rank) for rank in "01"]

    def end(self, started: tuple[int, str]) -> tuple[int, str, str]:
        """Exit code, standard output, standard error; waits for it."""
        process, name = started
        return self.ask(process), *(Path(name + end).read_text() for end in (".out", ".err"))

    def run(self, *words, **options) -> tuple[int, str, str]:
        return self.end(self.start(*words, **options))

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(60)
        self.server.stdout.close()


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])

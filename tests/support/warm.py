"""A Python interpreter that starts with torch already imported: imports are most of what a short process costs.

`warm_python()` is the path of a program that takes the arguments of `python` and stands in for `sys.executable`. It
asks a server, one per test process, to fork. The fork takes over the arguments, the environment, the working directory,
and standard input, output and error, and it ends as `python` would. The server has imported only libraries that read no
setting of the Hub and know nothing of t5fusion, so a fork imports transformers, peft and t5fusion as a fresh process
does. A request that a fork could not serve faithfully runs the real interpreter: other options than -I, -u, -W, -c and
-m, or another value of a variable that torch reads when it is imported.

Use `sys.executable` itself where the imports are what is tested.
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
    "numpy", "pandas", "pyarrow.dataset", "pyarrow.parquet", "scipy.optimize", "sklearn.metrics", "sympy",
    "anyio", "dill", "fsspec", "jinja2", "joblib", "multiprocess", "networkx", "pydantic", "yaml",
)  # fmt: skip
READ_WHEN_IMPORTED = ("CUDA", "KMP", "LD_", "MALLOC", "MKL", "OMP", "OPENBLAS", "PYTHON", "PYTORCH", "TORCH")
FRESH = ("accelerate", "datasets", "huggingface_hub", "peft", "sentence_transformers", "t5fusion", "transformers")

# A request is the length of what follows, in eight bytes, with three descriptors; then JSON: [arguments, environment,
# working directory]. The answer is the exit status as `os.waitpid` gives it. Each byte that the program sends meanwhile
# is a signal for the fork, and the end of its connection kills the fork.
SERVER = """
import atexit, gc, importlib, json, os, runpy, select, signal, socket, sys, threading, types, warnings

place, preloaded, fresh = json.loads(sys.argv[1])
for name in preloaded:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
assert not sys.modules.keys() & set(fresh), sys.modules.keys() & set(fresh)
gc.collect()
gc.freeze()  # what is loaded stays: no fork need look through it
listener = socket.socket(socket.AF_UNIX)
listener.bind(place + "/socket")
listener.listen(64)
print("ready", flush=True)


def serve():
    "Returns, in a fork, what was asked for."
    running = {}  # descriptor of a process -> its id, the connection
    while True:
        connections = {connection.fileno(): process for process, connection in running.values()}
        ready, _, _ = select.select([0, listener, *running, *connections], [], [])
        if 0 in ready:  # the tests are over
            for process, _ in running.values():
                os.kill(process, signal.SIGKILL)
            os._exit(0)
        for each in connections.keys() & set(ready):
            for number in os.read(each, 64) or [signal.SIGKILL]:
                os.kill(connections[each], number)
        for each in running.keys() & set(ready):
            process, connection = running.pop(each)
            os.close(each)
            _, status = os.waitpid(process, 0)
            try:
                connection.sendall(status.to_bytes(4, "big"))
            except OSError:
                pass  # the program was killed
            connection.close()
        if listener in ready:
            connection, _ = listener.accept()
            length, files, _, _ = socket.recv_fds(connection, 8, 3)
            asked = b""
            while len(asked) < int.from_bytes(length, "big"):
                asked += connection.recv(1 << 20)
            process = os.fork()
            if process == 0:
                for number, file in enumerate(files):
                    os.dup2(file, number)
                for file in (*files, *running, *(other.fileno() for _, other in running.values())):
                    os.close(file)
                connection.close(), listener.close()
                return json.loads(asked)
            for file in files:
                os.close(file)
            running[os.pidfd_open(process)] = process, connection


arguments, environment, folder = serve()
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.executable = place + "/python"
sys.stdin, sys.stdout, sys.stderr = (open(file, mode) for file, mode in ((0, "r"), (1, "w"), (2, "w")))
sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
isolated = False
while arguments[0] in ("-I", "-u", "-W"):
    option = arguments.pop(0)
    isolated |= option == "-I"
    if option == "-u":
        sys.stdout.reconfigure(write_through=True)
    if option == "-W":
        sys.warnoptions.append(arguments.pop(0))
        warnings._processoptions(sys.warnoptions[-1:])
if not isolated:
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    if environment.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)
    first = {"-c": "", "-m": os.getcwd()}.get(arguments[0], os.path.dirname(os.path.abspath(arguments[0])))
    others = environment.get("PYTHONPATH", "")
    sys.path[:0] = [first, *(others.split(os.pathsep) if others else [])]
status = 0
try:
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
except SystemExit as end:
    status = 0 if end.code is None else end.code
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
except BaseException as error:
    error.__traceback__ = error.__traceback__.tb_next  # without this program's own line
    sys.excepthook(type(error), error, error.__traceback__)
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else 1
# what the interpreter does at its end, but for tearing down each module that is loaded, which takes a second
threading._shutdown()
atexit._run_exitfuncs()
try:
    sys.stdout.flush()
except OSError as error:
    print(f"Exception ignored in: {sys.stdout!r}\\n{type(error).__name__}: {error}", file=sys.stderr)
    status = 120
sys.stderr.flush()
if status == "interrupted":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
os._exit(status & 255)
"""

PROGRAM = """#!{real} -IS
import json, os, signal, socket, sys

arguments, place = sys.argv[1:], os.path.dirname(os.path.abspath(sys.argv[0]))
with open(place + "/settings.json") as file:
    real, names, settings = json.load(file)
options = list(arguments)
while options and options[0] in ("-I", "-u", "-W"):
    del options[: 1 + (options[0] == "-W")]
known = bool(options) and (options[0] in ("-c", "-m") or not options[0].startswith("-"))
taken = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONUNBUFFERED")
here = {{name: value for name, value in os.environ.items() if name.startswith(tuple(names)) and name not in taken}}
if not known or here != settings:
    os.execv(real, [real, *arguments])
server = socket.socket(socket.AF_UNIX)
server.connect(place + "/socket")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
asked = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [len(asked).to_bytes(8, "big")], [0, 1, 2])
server.sendall(asked)
for file in (0, 1):
    os.close(file)
ended = server.recv(4)
code = os.waitstatus_to_exitcode(int.from_bytes(ended, "big")) if ended else 70
if code < 0:
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@cache
def warm_python() -> str:
    """Path of the program. The server starts with the first call and ends with this process."""
    place = Path(tempfile.mkdtemp(prefix="t5fusion-warm-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"OMP_NUM_THREADS": "1"}  # what the last bit of a product depends on
    settings = {name: value for name, value in environment.items() if name.startswith(READ_WHEN_IMPORTED)}
    (place / "settings.json").write_text(json.dumps([sys.executable, READ_WHEN_IMPORTED, settings]))
    program = place / "python"
    program.write_text(PROGRAM.format(real=sys.executable))
    program.chmod(0o755)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    asked = json.dumps([str(place), PRELOADED, FRESH])
    server = subprocess.Popen([sys.executable, "-I", "-c", SERVER, asked], env=environment, **pipes)
    atexit.register(end, server, place)
    assert server.stdout.readline() == "ready\n"
    return str(program)


def end(server: subprocess.Popen, place: Path) -> None:
    server.stdin.close()
    server.wait(60)
    server.stdout.close()
    shutil.rmtree(place, ignore_errors=True)

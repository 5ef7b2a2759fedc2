"""The server behind `warm_python()` (see warm.py): it imports once, and forks for each request.

A request is its length in eight bytes, sent with the descriptors of standard input, output and error, and then JSON:
[arguments, environment, working directory]. The answer is the exit status as `os.waitpid` returns it, in four bytes.
Until then, each byte from the program is a signal for the fork, and the end of the connection kills the fork.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import importlib.machinery
import json
import os
import pickle
import re
import runpy
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import types
import warnings
from pathlib import Path

INTERRUPTED = "interrupted"


def preload(names):
    """Import modules."""
    for name in names:
        with contextlib.suppress(ImportError):  # Some are optional.
            importlib.import_module(name)


class LayoutFinder:
    """An import finder that tells transformers the layout of its models: which file has which public names.

    transformers reads this off all files of its models, twice, whenever it is imported. That is a third of the time of
    its import, and the files are the same for each fork.
    """

    name = "transformers.utils.import_utils"

    def __init__(self, models, layout):
        self.models, self.layout = models, layout

    def find_spec(self, name, path=None, target=None):
        """Find the module as usual, and give it the layout once it has run."""
        if name != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module

        def run_and_tell(module):
            run(module)
            read = module.create_import_structure_from_path
            module.create_import_structure_from_path = lambda path: (
                pickle.loads(self.layout) if str(path).removesuffix("/__init__.py") == self.models else read(path)
            )

        spec.loader.exec_module = run_and_tell
        return spec


def learn_of_fresh_modules(fresh):
    """Prepare what each fork would find again when it imports the fresh packages, which this process must not know.

    A child process imports them, and tells the layout of transformers' models, the regular expressions that the imports
    and the first loading of a model have compiled (a thousand), and which modules have code.
    """
    re._MAXCACHE = 10_000  # Python's own limit of 512 would let the expressions push each other out.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with contextlib.suppress(ImportError), open(writer, "wb") as file:
            pickle.dump(describe_fresh_modules(fresh), file)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        written = file.read()
    os.waitpid(child, 0)
    if written:
        models, layout, expressions, modules = pickle.loads(written)
        sys.meta_path.insert(0, LayoutFinder(models, layout))
        for pattern, flags in expressions:
            re.compile(pattern, flags)
        keep_code(modules)


def describe_fresh_modules(fresh):
    """Return the folder of transformers' models, their layout, (pattern, flags) pairs, and (name, file) pairs."""
    models = Path(importlib.import_module("transformers").__file__).parent / "models"
    layout = importlib.import_module(LayoutFinder.name).create_import_structure_from_path(models)
    with contextlib.suppress(ImportError, AttributeError):  # Releases of transformers differ here.
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("t5")
    for name in ("datasets", "peft", "transformers.models.t5.modeling_t5", "transformers.trainer_seq2seq"):
        importlib.import_module(name)
    files = [(name, getattr(module, "__file__", None) or "") for name, module in sys.modules.items()]
    modules = [(name, file) for name, file in files if name.partition(".")[0] in fresh and file.endswith(".py")]
    return str(models), pickle.dumps(layout), [words for _, *words in re._cache], modules


def keep_code(modules):
    """Read the compiled code of modules, so that forks need not read it."""
    loader = importlib.machinery.SourceFileLoader
    read, kept = loader.get_code, {file: loader(name, file).get_code(name) for name, file in modules}
    loader.get_code = lambda self, name: kept.get(self.path) or read(self, name)


def serve(listener):
    """Fork for each request until the tests end. Only a fork returns from here, with its request."""
    running = {}  # descriptor of a fork -> its id, the connection
    while True:
        connections = {connection.fileno(): process for process, connection in running.values()}
        ready, _, _ = select.select([0, listener, *running, *connections], [], [])
        if 0 in ready:  # Standard input was closed: the tests are over.
            for process, _ in running.values():
                os.kill(process, signal.SIGKILL)
            os._exit(0)
        for descriptor in connections.keys() & set(ready):
            for number in os.read(descriptor, 64) or [signal.SIGKILL]:
                os.kill(connections[descriptor], number)
        for descriptor in running.keys() & set(ready):
            answer(descriptor, *running.pop(descriptor))
        if listener in ready:
            connection, request, files = receive(listener)
            process = os.fork()
            if process == 0:
                for number, file in enumerate(files):
                    os.dup2(file, number)
                join_namespaces(connection)
                for file in (*files, *running, *(other.fileno() for _, other in running.values())):
                    os.close(file)
                connection.close()
                listener.close()
                return json.loads(request)
            for file in files:
                os.close(file)
            running[os.pidfd_open(process)] = process, connection


def join_namespaces(connection):
    """Join the namespaces of the program, in which `unshare` may have given it another host name, or disks."""
    program, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    for kind in ("user", "uts", "mnt"):  # The first one permits to join the others.
        theirs = f"/proc/{program}/ns/{kind}"
        if os.readlink(theirs) != os.readlink(f"/proc/self/ns/{kind}"):
            with open(theirs) as namespace:
                failed = ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0)
            if failed:
                raise OSError(ctypes.get_errno(), f"setns: {theirs}")


def receive(listener):
    """Return the connection, the request, and three descriptors."""
    connection, _ = listener.accept()
    length, files, _, _ = socket.recv_fds(connection, 8, 3)
    request = b""
    while len(request) < int.from_bytes(length, "big"):
        request += connection.recv(1 << 20)
    return connection, request, files


def answer(descriptor, process, connection):
    """Send the exit status of a fork that has ended."""
    os.close(descriptor)
    _, status = os.waitpid(process, 0)
    with contextlib.suppress(OSError):  # The program may have been killed.
        connection.sendall(status.to_bytes(4, "big"))
    connection.close()


def become_a_python(arguments, environment, folder):
    """Set up this fork as `python` starts. Return the arguments without options."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # An import may have looked for it, but this environment may name another one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115, open until the end
    sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    arguments, isolated, unbuffered = list(arguments), False, False
    while arguments[0] in ("-I", "-u", "-W"):
        option = arguments.pop(0)
        isolated |= option == "-I"
        unbuffered |= option == "-u"
        if option == "-W":
            sys.warnoptions.append(arguments.pop(0))
            warnings._processoptions(sys.warnoptions[-1:])
    if not isolated:
        sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
        unbuffered |= bool(environment.get("PYTHONUNBUFFERED"))
        first = {"-c": "", "-m": os.getcwd()}.get(arguments[0], os.path.dirname(os.path.abspath(arguments[0])))
        others = environment.get("PYTHONPATH", "")
        sys.path[:0] = [first, *(others.split(os.pathsep) if others else [])]
    if unbuffered:
        sys.stdout.reconfigure(write_through=True)
    return arguments


def execute(arguments):
    """Run `-c CODE`, `-m MODULE` or FILE, with its arguments, as the module `__main__`."""
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


def run(arguments):
    """Execute the arguments, and return the exit code, or `INTERRUPTED`. Print an error as `python` does."""
    try:
        execute(arguments)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        while error.__traceback__ and error.__traceback__.tb_frame.f_code.co_filename == __file__:
            error.__traceback__ = error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def finish(status):
    """End as `python` does, except that modules are not torn down, which takes a second."""
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored in: {sys.stdout!r}\n{type(error).__name__}: {error}", file=sys.stderr)
        status = 120
    sys.stderr.flush()
    if status == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 255)


if __name__ == "__main__":
    folder, preloaded, fresh = json.loads(sys.argv[1])
    preload(preloaded)
    learn_of_fresh_modules(fresh)
    assert not sys.modules.keys() & set(fresh), sys.modules.keys() & set(fresh)
    gc.collect()
    gc.freeze()  # Forks then do not collect what is loaded.
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(folder + "/socket")
    listener.listen(64)
    print("ready", flush=True)
    arguments, environment, working_directory = serve(listener)
    sys.executable = folder + "/python"
    finish(run(become_a_python(arguments, environment, working_directory)))

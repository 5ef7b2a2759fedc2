"""A stand-in for `python`, which asks the server of warm_server.py for a fork and ends as the fork does (see warm.py).

warm.py installs a copy of this file, and settings.json beside it.
"""

import json
import os
import signal
import socket
import sys

OWN_OF_A_FORK = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONUNBUFFERED")  # A fork reads these itself.
# sklearn and torch set these when they are imported, in the server too. So the process of the tests has them from some
# test on, which is no reason for a new interpreter.
SET_BY_IMPORTS = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR")
# Beginnings of the variables that a launcher gives its ranks. torch reads them when it trains, not when it is imported.
SET_BY_LAUNCHERS = ("TORCHELASTIC_", "TORCH_NCCL_ASYNC_ERROR_HANDLING")
NO_ANSWER = 70  # exit code if the server ends


def can_fork(arguments, read_when_imported, settings):
    """Return whether a fork would do the same as a real interpreter with these arguments."""
    options = list(arguments)
    while options and options[0] in ("-I", "-u", "-W"):
        del options[: 1 + (options[0] == "-W")]
    is_known = bool(options) and (options[0] in ("-c", "-m") or not options[0].startswith("-"))
    current = {name: value for name, value in os.environ.items() if name.startswith(tuple(read_when_imported))}
    current = {name: value for name, value in current.items() if not name.startswith(SET_BY_LAUNCHERS)}
    for name in OWN_OF_A_FORK + SET_BY_IMPORTS:
        current.pop(name, None)
        settings.pop(name, None)
    return is_known and current == settings


def main():
    """Pass the arguments, the standard files and all signals on to a fork, and end as it ends."""
    arguments, folder = sys.argv[1:], os.path.dirname(os.path.abspath(sys.argv[0]))
    with open(folder + "/settings.json") as file:
        interpreter, read_when_imported, settings = json.load(file)
    if not can_fork(arguments, read_when_imported, settings):
        os.execv(interpreter, [interpreter, *arguments])
    server = socket.socket(socket.AF_UNIX)
    server.connect(folder + "/socket")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: server.send(bytes([number])))
    request = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    for file in (0, 1):  # Only the fork holds these open now, so that readers see its end of file.
        os.close(file)
    answer = server.recv(4)
    code = os.waitstatus_to_exitcode(int.from_bytes(answer, "big")) if answer else NO_ANSWER
    if code < 0:  # The fork was ended by a signal.
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main()

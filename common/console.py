"""Messages to the user: on standard error, and only from the first of several processes."""

import os
import sys
from typing import NoReturn


def is_first_process() -> bool:
    """Return whether this process is the only one, or the first one that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print a line on standard error. Of several processes, only the first prints."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)


def end_stopped() -> NoReturn:
    """End the program after Ctrl-C, with a sentence and exit code 130."""
    print("t5fusion: stopped.", file=sys.stderr)
    # If Ctrl-C came while Python executed a string, as `dataclass` does, `python -m` ends with the signal instead of
    # our exit code. Executing another string resets that.
    exec("")
    sys.exit(130)

"""Messages to the user: on standard error, and only from the first of several processes."""

import os
import sys


def is_first_process() -> bool:
    """Return whether this process is the only one, or the first of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print a line on standard error. Of several processes, only the first prints."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)

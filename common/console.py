"""Messages to the user: on standard error, and only from the first of several processes."""

import logging
import os
import sys
import warnings


def is_first_process() -> bool:
    """Return whether this process is the only one, or the first of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print a line on standard error. Of several processes, only the first prints."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)


def silence_libraries() -> None:
    """Hide the messages of the libraries. Errors and our own lines stay."""
    import datasets  # slow to import, and `--help` does not need it
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.logging.set_verbosity(logging.CRITICAL)  # our own error names what is wrong with a file
    if not sys.stderr.isatty():  # bars would clutter a log or a pipe
        datasets.disable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

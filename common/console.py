"""Lines for the user: on standard error, from the first of several processes only."""

import logging
import os
import sys
import warnings


def is_first_process() -> bool:
    """Whether this process is the only one, or the first of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """A line for the user, on standard error, where progress is; of several processes, the first speaks."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)


def silence_libraries() -> None:
    """Keep the messages of libraries off the screen; errors and our own lines stay."""
    import datasets  # slow to import, and not needed for `--help`
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what is wrong with a file is said in one line, by us
    if not sys.stderr.isatty():  # in a log or a pipe, an error is one line
        datasets.disable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

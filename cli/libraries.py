"""The libraries that take seconds to import. A command loads them once its arguments are known to be good."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

from ..common.console import say

PATIENCE = 5.0  # seconds after which a user is told why nothing happens yet


def load_libraries() -> None:
    """Import torch, transformers and PEFT, install this package's hooks, and hide what the libraries print.

    Errors and this package's own lines are still printed. So are bars of downloads, if standard error is a terminal.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    with _explained_if_slow():
        import datasets
        from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
        from transformers.utils import logging as transformers_logging

        from ..hooks import register

        register()
    transformers_logging.set_verbosity_error()
    user_wants_bars = not are_progress_bars_disabled()  # HF_HUB_DISABLE_PROGRESS_BARS=1 disables them.
    # This hides the bars of loading weights. It hides the bars of downloads, too, which are shown again below.
    transformers_logging.disable_progress_bar()
    datasets.logging.set_verbosity(logging.CRITICAL)  # Our own error says what is wrong with a file.
    if not sys.stderr.isatty():  # Bars would clutter a log or a pipe.
        datasets.disable_progress_bars()
    elif user_wants_bars:  # A large download without a bar would seem to hang.
        enable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


@contextmanager
def _explained_if_slow() -> Iterator[None]:
    """Print a line if the work takes long and standard error is a terminal. In a log, the line would help nobody."""
    timer = Timer(
        PATIENCE, say, ["Loading torch, transformers and peft. This is slow the first time, or on a busy machine."]
    )
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()

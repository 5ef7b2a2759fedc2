"""The libraries that take seconds to import. A command loads them once its arguments are known to be good."""

import logging
import sys
import warnings


def load_libraries() -> None:
    """Import torch, transformers and PEFT, install this package's hooks, and hide the libraries' messages.

    Errors and our own lines stay.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    import datasets
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    from ..hooks import register

    register()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # our own error names what is wrong with a file
    if not sys.stderr.isatty():  # bars would clutter a log or a pipe
        datasets.disable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

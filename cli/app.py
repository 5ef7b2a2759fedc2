"""The program `t5fusion`: its commands, and its errors, each in one sentence."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from .demo import demo
from .evaluate import evaluate
from .export import export
from .generate import generate
from .info import info
from .parsing import Commands
from .push import push
from .train import train
from .verify import verify

app = Commands(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, evaluate and share T5 models that read vectors beside their text.",
)


def print_version(is_asked_for: bool) -> None:
    if is_asked_for:
        typer.echo(f"t5fusion {version('t5fusion')}")
        raise typer.Exit


@app.callback()
def set_up(
    show_version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error. T5FUSION_DEBUG=1 does the same.")
    ] = False,
):
    if debug:
        os.environ["T5FUSION_DEBUG"] = "1"


for command in (demo, train, generate, evaluate, info, export, verify, push):
    app.command()(command)


def main() -> None:
    """Run the program.

    An error that the user can correct is printed in one sentence, and the exit code is 1. If `T5FUSION_DEBUG` is set,
    its traceback is printed.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        try:
            app(prog_name="t5fusion")  # also for `python -m t5fusion`
        finally:
            sys.stdout.flush()  # so that a full disk raises here, as any other error does
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        _drop_output()
        if os.environ.get("T5FUSION_DEBUG"):
            raise
        if not isinstance(error, BrokenPipeError):  # the reader of standard output, such as `head`, has ended
            print(f"t5fusion: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("t5fusion: stopped.", file=sys.stderr)
        sys.exit(130)


def _drop_output() -> None:
    """Discard what standard output cannot take: Python would try to write it again when it exits, and fail."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""The program `t5fusion`: all commands, and errors as one sentence."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from .demo import demo
from .evaluate import evaluate
from .export import export
from .generate import generate
from .parsing import Commands
from .push import push
from .train import train
from .verify import verify

app = Commands(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="T5 with a second kind of input: train, evaluate and run models that read lexical vectors beside their text.",
)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"t5fusion {version('t5fusion')}")
        raise typer.Exit


@app.callback()
def before_any(
    show: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error arose. Also: T5FUSION_DEBUG=1.")] = False,
):
    if debug:
        os.environ["T5FUSION_DEBUG"] = "1"


for command in (demo, train, generate, evaluate, export, verify, push):
    app.command()(command)


def main() -> None:
    """The console entry: what the user can mend ends in one sentence and exit code 1; `T5FUSION_DEBUG=1` shows all."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a full disk is an error like others
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        _drop_output()
        if os.environ.get("T5FUSION_DEBUG"):
            raise
        if not isinstance(error, BrokenPipeError):  # whoever read standard output has had enough
            print(f"t5fusion: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("t5fusion: stopped.", file=sys.stderr)
        sys.exit(130)


def _drop_output() -> None:
    """Python writes what is left of standard output once more as it ends; where that fails, it goes nowhere."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""The program `t5fusion`. It runs a command, and prints an error that the user can correct as one sentence."""

import os
import sys
from collections.abc import MutableMapping
from importlib.metadata import version
from typing import Annotated

import typer

from ..common.console import end_stopped
from .demo import demo
from .evaluate import evaluate
from .export import export
from .generate import generate
from .info import info
from .parsing import Commands, Stopped, UsageError
from .push import push
from .shrink import shrink
from .train import train
from .verify import verify

PROGRAM = "t5fusion"
app = Commands(
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, evaluate and share T5 models that read vectors beside their text.\n\n"
    "Begin with [bold]t5fusion demo[/bold]. For data of your own, see [bold]t5fusion train --help[/bold].",
)


def print_version(is_wanted: bool) -> None:
    """Print the version and end the program, if `--version` was given."""
    if is_wanted:
        typer.echo(f"t5fusion {version('t5fusion')}")
        raise typer.Exit


@app.callback()
def set_up(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error. T5FUSION_DEBUG=1 does the same.")
    ] = False,
):
    """Take the options of the program itself. Without a command, print the help."""
    if debug:
        os.environ["T5FUSION_DEBUG"] = "1"
    if context.invoked_subcommand is None:
        context.get_help()  # Typer prints the help here, and returns an empty text.
        raise typer.Exit(2)


for command in (demo, train, generate, evaluate, info, shrink, export, verify, push):
    app.command()(command)


def prepare_environment(environment: MutableMapping[str, str]) -> None:
    """Set the environment variables that libraries read when they are imported. What the user has set stays."""
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads of OpenMP wait for each other in a loop of 300,000 turns by default. If other work keeps one of two cores
    # busy, training then takes 40 times as long as on idle cores. With 10,000 turns it takes 4 times as long, and 1.07
    # times as long on idle cores.
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "10000")


def main() -> None:
    """Run the program.

    After an error that the user can correct, the exit code is 1, or 2 if the arguments cannot be parsed. For
    code 1, `T5FUSION_DEBUG` prints the traceback instead. Ctrl-C gives exit code 130.
    """
    prepare_environment(os.environ)
    try:
        try:
            # Without `prog_name`, `python -m t5fusion` would show a different name. In standalone mode, Typer would
            # print errors in boxes.
            code = app(prog_name=PROGRAM, standalone_mode=False)
        finally:
            sys.stdout.flush()  # If the disk is full, this raises an error that is printed below.
    except UsageError as error:
        print(f"{PROGRAM}: {_sentence(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, Stopped, typer.Abort):
        end_stopped()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        _drop_output()
        if os.environ.get("T5FUSION_DEBUG"):
            raise
        if not isinstance(error, BrokenPipeError):  # It only means that the reader, such as `head`, has ended.
            print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    sys.exit(code or 0)  # `typer.Exit` sets the code; otherwise it is None.


def _sentence(error) -> str:
    """Return a sentence about what is wrong with the arguments, and the command that explains them."""
    problem = error.format_message().replace("Value error, ", "")  # Some releases of typer begin like this.
    end = "" if problem.endswith((".", "?")) else "."
    command = error.ctx.command_path if error.ctx else PROGRAM
    return f"{problem[:1].lower()}{problem[1:]}{end} See `{command} --help`."


def _drop_output() -> None:
    """Discard what standard output cannot take. Otherwise Python tries to write it again when it exits, and fails."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""`t5fusion demo`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..common.console import say, silence_libraries
from .arguments import Limit


class Lexical(str, Enum):
    body = "body"
    name = "name"


def demo(
    output: Annotated[Path, typer.Option(help="Where to save the adapter.")] = Path("runs/demo"),
    lexical: Annotated[Lexical, typer.Option(help="What the vector is made of.")] = Lexical.body,
    base: Annotated[str, typer.Option(help="Hub id or folder of a T5; tiny_t5 is the embedded one.")] = "tiny_t5",
    epochs: Annotated[float, typer.Option(min=0.01)] = 2.0,
    seed: int = 42,
    limit: Limit = None,
):
    """Teach the embedded T5 to describe the Python standard library, and see what the vectors are worth.

    Example: [bold]t5fusion demo --lexical name[/bold]
    """
    silence_libraries()
    from ..demo.demo import DEMO
    from ..demo.demo import demo as run
    from ..finetune.output_folder import check_output, is_unused
    from ..finetune.trainer import Interrupted

    if not is_unused(output) and not (output / DEMO).exists():
        raise ValueError(f"{output} holds something else than a demo, and is left alone. Choose another --output.")
    check_output(output, overwrite=True, mark=DEMO)
    try:
        run(output, lexical=lexical.value, base=base, epochs=epochs, limit=limit, seed=seed)
    except Interrupted as stop:
        say("Stopped. The next demo starts over.")
        raise typer.Exit(stop.exit_code) from None

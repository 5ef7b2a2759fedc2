"""`t5fusion demo`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..common.console import say
from ..common.panels import OUTPUT, TRAINING, VECTORS
from ..demo import DEMO
from ..naming_t5fusion import NEWEST_EMBEDDED
from .arguments import Limit
from .libraries import load_libraries

DURATION = "This takes about 3 minutes on two quiet cores, and several times longer on a busy machine."


class VectorSource(str, Enum):
    """The text that a vector is made from: the code of a definition, or its name."""

    body = "body"
    name = "name"


def demo(
    output: Annotated[Path, typer.Option(rich_help_panel=OUTPUT, help="Folder to save the adapter in.")] = Path(
        "runs/demo"
    ),
    lexical: Annotated[
        VectorSource,
        typer.Option(
            rich_help_panel=VECTORS, help="Text that the vector is made from: the source code, or the name itself."
        ),
    ] = VectorSource.body,
    base_model: Annotated[
        str,
        typer.Option(
            rich_help_panel=TRAINING, help=f'Hub id or folder of a T5. "{NEWEST_EMBEDDED}" is the one in this package.'
        ),
    ] = NEWEST_EMBEDDED,
    epochs: Annotated[float, typer.Option(min=0.01, rich_help_panel=TRAINING, help="Passes over the rows.")] = 2.0,
    seed: Annotated[int, typer.Option(rich_help_panel=TRAINING, help="Seed of the random numbers.")] = 42,
    limit: Limit = None,
):
    """Teach the T5 in this package to describe the Python standard library, and measure what the vectors add.

    It needs no network.

    Example: [bold]t5fusion demo[/bold]
    """
    # These import the Hub's client, which --help does not need.
    from ..common.folder_names import check_base_model
    from ..finetune.output_folder import check_output, is_unused

    if not is_unused(output) and not (output / DEMO).exists():
        raise ValueError(f"{output} holds files that the demo did not write, so it stays. Choose a different --output.")
    check_output(output, overwrite=True, mark=DEMO)
    check_base_model(base_model)
    print(f"{base_model} learns to describe Python code. {DURATION}", flush=True)
    load_libraries()
    from ..demo.demo import demo as run_demo  # It is slow to import, and --help does not need it.
    from ..finetune import Interrupted

    try:
        run_demo(output, lexical=lexical.value, base_model=base_model, epochs=epochs, limit=limit, seed=seed)
    except Interrupted as stop:
        say("Stopped. The next demo starts over.")
        raise typer.Exit(stop.exit_code) from None

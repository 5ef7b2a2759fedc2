"""`t5fusion shrink`."""

from pathlib import Path
from typing import Annotated

import typer

from ..common.console import say
from ..common.panels import LORA, OUTPUT
from ..finetune.options import DTYPES
from .libraries import load_libraries
from .parsing import one_of


def shrink(
    run: Annotated[str, typer.Argument(help="Folder that `t5fusion train` saved, with a LoRA adapter.")],
    output: Annotated[Path, typer.Argument(help="Run folder to write.")],
    rank: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=LORA, help="New rank. Default: unchanged."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(**one_of(DTYPES), rich_help_panel=LORA, help="Type of the saved numbers. Default: unchanged."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            rich_help_panel=OUTPUT,
            help="Replace the smaller adapter that OUTPUT holds. Your own files stay.",
        ),
    ] = False,
):
    """Make a trained LoRA adapter smaller: of a lower rank, in half precision, or both.

    OUTPUT becomes a run folder like RUN. Every layer gets the best approximation of the new rank. The fusion layer is
    kept whole. Measure the result: a lower rank changes the outputs.

    Example: [bold]t5fusion shrink runs/files runs/small --rank 8 --dtype float16[/bold]
    """
    # These import the Hub's client, which --help does not need.
    from ..common.next_commands import after_shrink
    from ..common.run_files import RunFiles
    from ..finetune.shrinking import check_shrinkable

    check_shrinkable(RunFiles(run), output, rank, dtype, overwrite)
    load_libraries()
    from ..finetune import shrink_adapter  # It is slow to import, and --help does not need it.

    print(shrink_adapter(run, output, rank, dtype, overwrite))
    say(f"Next: {after_shrink(output)}")

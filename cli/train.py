"""`t5fusion train`."""

from pathlib import Path
from typing import Annotated

import typer

from ..common.console import is_first_process, say
from ..common.panels import DATA, OUTPUT
from ..finetune.file_names import check_readable
from ..finetune.options import LORA_ONLY, Recipe, TrainingOptions
from .arguments import Data, Encoding, LexicalColumn, Limit, Overwrite, TargetColumn, TextColumn, VectorColumn
from .libraries import load_libraries
from .parsing import options_from, refuse_idle, with_options_of

IDLE_OPTIONS = {  # options, and those that have no effect beside them
    "full": LORA_ONLY,
    "freeze_fusion": ("fusion_lr", "fusion_start"),
    "vector_column": ("lexical_column", "encoder", "lexical_dim"),
    "resume": ("overwrite",),
}


@with_options_of(Recipe, TrainingOptions)
def train(
    context: typer.Context,
    data: Data,
    text_column: TextColumn,
    target_column: TargetColumn,
    lexical_column: LexicalColumn = None,
    vector_column: VectorColumn = None,
    output: Annotated[
        Path | None,
        typer.Option(rich_help_panel=OUTPUT, help="Folder to save in. Default: runs/ and the name of DATA."),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(rich_help_panel=DATA, help="File to validate with. Default: a tenth of DATA is held out."),
    ] = None,
    limit: Limit = None,
    encoding: Encoding = None,
    resume: Annotated[
        bool, typer.Option("--resume", rich_help_panel=OUTPUT, help="Resume from the last checkpoint in the output.")
    ] = False,
    overwrite: Overwrite = False,
    **fields,
):
    """Train LoRA, or all weights, on rows of text -> text with a vector beside each text.

    Example: [bold]t5fusion train files.jsonl --text-column filename --target-column file_desc[/bold]
    """
    refuse_idle(context, IDLE_OPTIONS)
    options, recipe = options_from(TrainingOptions, fields), options_from(Recipe, fields)
    output = output or Path("runs") / Path(data.removesuffix(".gz")).stem
    for source in filter(None, (data, validation)):
        check_readable(source, encoding)
    if is_first_process():  # the others would see what it writes
        from ..finetune.output_folder import check_output  # imports the Hub's client: --help does without

        check_output(output, resume, overwrite)
    load_libraries()
    from ..finetune import Columns, Interrupted, train_file  # slow to import: --help does without

    columns = Columns(text_column, target_column, lexical_column, vector_column)
    try:
        train_file(
            data, columns, output, options, recipe,
            validation=validation, limit=limit, encoding=encoding, resume=resume, overwrite=overwrite,
        )  # fmt: skip
    except Interrupted as stop:
        say(f"Stopped; a checkpoint is in {output}. To go on, give the same command with --resume.")
        raise typer.Exit(stop.exit_code) from None

"""`t5fusion train`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..common.console import is_first_process, say
from ..common.panels import DATA, OUTPUT, TRAINING
from ..finetune.file_names import check_header, check_readable, check_vector_files
from ..finetune.options import LORA_ONLY, Recipe, TrainingOptions
from ..finetune.run_config import SETTINGS, VECTOR_COLUMN, as_text, read_config
from ..finetune.vector_options import parse_vector_columns, vector_names
from .arguments import Data, Encoding, LexicalColumn, SkipNan, TargetColumn, TextColumn, TrainLimit, VectorColumn
from .libraries import load_libraries
from .parsing import options_from, refuse_idle, with_options_of
from .settings import parse_settings, settings_option

IDLE_OPTIONS = {  # for each option, the options that have no effect if it is passed
    "full": LORA_ONLY,
    "freeze_fusion": ("fusion_lr", "fusion_start"),
    "max_steps": ("epochs",),
    "streaming": ("epochs",),
    "resume": ("overwrite",),
}


def read_defaults(context: typer.Context, file: Path | None) -> Path | None:
    """Make the values in a file the defaults of the options that the command line leaves out."""
    if file is not None and not context.resilient_parsing:
        given = read_config(file)
        context.meta[SETTINGS] = given.pop(SETTINGS, {})
        context.default_map = {
            name: value if name == VECTOR_COLUMN else as_text(value) for name, value in given.items()
        }
    return file


@with_options_of(Recipe, TrainingOptions)
def train(
    context: typer.Context,
    data: Data,
    *,
    text_column: TextColumn = None,
    target_column: TargetColumn,
    lexical_column: LexicalColumn = None,
    vector_column: VectorColumn = None,
    output: Annotated[
        Path | None,
        typer.Option(rich_help_panel=OUTPUT, help="Folder to save in. Default: runs/ and the name of DATA."),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(rich_help_panel=DATA, help="File or data set to validate with. Default: a tenth of DATA."),
    ] = None,
    limit: TrainLimit = None,
    encoding: Encoding = None,
    skip_nan: SkipNan = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", rich_help_panel=OUTPUT, help="Resume from the last checkpoint in the output folder."),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            rich_help_panel=OUTPUT,
            help="Replace the run in the output folder, as soon as the first checkpoint is saved. Your own files stay.",
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            is_eager=True,
            callback=read_defaults,
            rich_help_panel=DATA,
            metavar="FILE",
            help="YAML file of options by their names, with `data:` for DATA and `set:` for --set. Options on the "
            "command line override it. Each run writes such a file: run.yaml in its folder.",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        settings_option(
            TRAINING,
            "Any other field of transformers' Seq2SeqTrainingArguments or PEFT's LoraConfig, such as "
            "weight_decay=0.01.",
        ),
    ] = None,
    **fields,
):
    """Train LoRA, or all weights, on rows with a text, a target text, and a vector beside the text.

    Rows with vectors may have no text. Then leave --text-column out.

    Example: [bold]t5fusion train files.jsonl --text-column filename --target-column file_desc[/bold]
    """
    refuse_idle(context, IDLE_OPTIONS)
    settings = context.meta.get(SETTINGS, {}) | parse_settings(setting or [], "weight_decay=0.01")
    options, recipe = options_from(TrainingOptions, fields), options_from(Recipe, fields)
    if not (text_column or vector_column or lexical_column):
        raise ValueError(
            "--text-column is missing. Only rows with --vector-column or --lexical-column may have no text."
        )
    has_encoder = bool(lexical_column or recipe.encoder)
    if not has_encoder:
        refuse_idle(context, {"vector_column": ("lexical_dim",)})
    vector, kinds = parse_vector_columns(vector_column, has_encoder)
    output = output or Path("runs") / Path(data.removesuffix(".gz")).stem
    for source in filter(None, (data, validation)):
        check_readable(source, encoding)
        check_header(source, (text_column, target_column, lexical_column, *vector_names(vector)), encoding)
    check_vector_files(vector_names(vector), data, validation)
    from ..common.folder_names import check_base_model  # It imports the Hub's client, which --help does not need.

    check_base_model(options.base_model)
    if is_first_process():  # Another process might already see, and refuse, what the first one has written.
        from ..finetune.output_folder import check_output  # It imports the Hub's client, which --help does not need.

        check_output(output, resume, overwrite)
    load_libraries()
    from ..finetune import Columns, Interrupted, train_file  # It is slow to import, and --help does not need it.

    options = replace(options, settings=settings or None)
    columns = Columns(text_column, target_column, lexical_column, vector)
    try:
        train_file(
            data, columns, output, options, replace(recipe, kinds=kinds),
            validation=validation, limit=limit, encoding=encoding, skip_nan=skip_nan, resume=resume,
            overwrite=overwrite,
        )  # fmt: skip
    except Interrupted as stop:
        say(f"Stopped; a checkpoint is in {output}. To go on, run the same command with --resume.")
        raise typer.Exit(stop.exit_code) from None

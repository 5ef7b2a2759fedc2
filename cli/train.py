"""`t5fusion train`."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from ..common.console import is_first_process, say, silence_libraries
from .arguments import Encoding, LexicalColumn, Limit, Overwrite, TargetColumn, TextColumn, VectorColumn

IDLE = {  # options of `train`, and those that have no effect beside them
    "full": ("rank", "alpha", "dropout", "target_modules"),
    "freeze_fusion": ("fusion_lr", "fusion_start"),
    "vector_column": ("encoder", "lexical_dim"),
    "resume": ("overwrite",),
}


def refuse_idle(context: typer.Context) -> None:
    """ValueError if an option was given that another one, given too, leaves without effect."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    for option, idle in IDLE.items():
        for other in idle:
            if {option, other} <= given:
                names = [f"--{name.replace('_', '-')}" for name in (other, option)]
                raise ValueError(f"{names[0]} has no effect with {names[1]}. Leave one of them out.")


def train(
    context: typer.Context,
    data: Annotated[str, typer.Argument(help="JSONL, CSV or Parquet file, or id of a data set on the Hub.")],
    text_column: TextColumn,
    target_column: TargetColumn,
    output: Annotated[Path | None, typer.Option(help="Where to save. Default: runs/ and the name of DATA.")] = None,
    base: Annotated[str, typer.Option(help="Hub id or folder of a T5; tiny_t5 is the embedded one.")] = "tiny_t5",
    lexical_column: LexicalColumn = None,
    vector_column: VectorColumn = None,
    encoder: Annotated[str | None, typer.Option(help="sentence-transformers model. Default: all-MiniLM-L6-v2")] = None,
    lexical_dim: Annotated[int, typer.Option(min=1, help="Width of the encoder's vectors.")] = 384,
    template: Annotated[str, typer.Option(help="The prompt, {text} standing for the text.")] = "{text}",
    validation: Annotated[str | None, typer.Option(help="File to validate with. Default: a tenth of DATA.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of LoRA.")] = False,
    target_modules: Annotated[str, typer.Option(help="What LoRA is put on, such as q,v; all: every matrix.")] = "all",
    freeze_fusion: Annotated[bool, typer.Option("--freeze-fusion", help="Do not train the fusion layer.")] = False,
    fusion_start: Annotated[str, typer.Option(help="targets or random.")] = "targets",
    epochs: Annotated[float, typer.Option(min=0.01)] = 3.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step, of each process.")] = 8,
    lr: Annotated[float | None, typer.Option(help="Peak rate. Default: 1e-3 for LoRA, 5e-4 for --full.")] = None,
    fusion_lr: Annotated[float | None, typer.Option(help="That of the fusion layer. Default: the same.")] = None,
    rank: Annotated[int, typer.Option(min=1)] = 32,
    alpha: Annotated[int, typer.Option(min=1)] = 32,
    dropout: Annotated[float, typer.Option(min=0, max=1)] = 0.05,
    max_source: Annotated[int, typer.Option(min=2, help="Most tokens of an input.")] = 128,
    max_target: Annotated[int, typer.Option(min=2, help="Most tokens of a target.")] = 64,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    seed: int = 42,
    limit: Limit = None,
    encoding: Encoding = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
    overwrite: Overwrite = False,
):
    """Train LoRA (or all weights) on rows of text -> text with a vector beside each.

    Example: [bold]t5fusion train files.jsonl --text-column filename --target-column file_desc[/bold]
    """
    refuse_idle(context)
    silence_libraries()
    from ..common.base_models import make_processor
    from ..finetune.data import Columns, hold_out, hub_data_set, vector_columns, vector_width, with_all_texts
    from ..finetune.files import load_rows
    from ..finetune.inputs import make_inputs, say_counted
    from ..finetune.options import TrainingOptions
    from ..finetune.output_folder import check_output
    from ..finetune.trainer import Interrupted, check_launch
    from ..finetune.training import train as run
    from ..processing_t5fusion import MINILM

    check_launch()
    if lexical_column and vector_column:
        raise ValueError("--lexical-column and --vector-column were both given; give one of them.")
    options = TrainingOptions(
        base=base, full=full, train_fusion=not freeze_fusion, fusion_start=fusion_start, epochs=epochs,
        target_modules=None if target_modules == "all" else tuple(name.strip() for name in target_modules.split(",")),
        batch_size=batch_size, lr=lr, fusion_lr=fusion_lr, rank=rank, alpha=alpha, dropout=dropout, precision=precision,
        max_source=max_source, max_target=max_target, seed=seed,
    )  # fmt: skip
    columns = Columns(text_column, target_column, lexical_column, vector_column)
    rows = with_all_texts(load_rows(data, encoding=encoding), columns)
    unread = [] if lexical_column or vector_column or encoder else vector_columns(rows)
    if unread:
        raise ValueError(
            f"{data} holds vectors in {'column' if len(unread) == 1 else 'columns'} {', '.join(map(repr, unread))}, "
            f"which nothing reads. Give --vector-column {shlex.quote(unread[0])}; or --encoder {MINILM} to make the "
            "vectors of the text."
        )
    if validation:
        held_out = with_all_texts(load_rows(validation, "validation", encoding), columns)
    else:
        rows, held_out = hold_out(rows, columns)
    if limit:
        rows, held_out = rows.select(range(min(limit, len(rows)))), held_out.select(range(min(limit, len(held_out))))
    if vector_column:
        lexical_dim = vector_width(rows, columns)
    output = output or Path("runs") / Path(data.removesuffix(".gz")).stem
    if is_first_process():  # before the vectors are made, which can take hours
        check_output(output, resume, overwrite)
    recipe: dict[str, str | None] = {"lexical_encoder": encoder} if encoder else {}
    if vector_column:
        recipe = {"lexical_encoder": None}
    source = "given" if lexical_column or vector_column else "text"
    processor = make_processor(base, template=template, lexical_source=source, lexical_dim=lexical_dim, **recipe)
    limits = (max_source, max_target)
    counted: Counter = Counter()
    training = make_inputs(rows, columns, processor, limits, cut=counted)
    validating = make_inputs(held_out, columns, processor, limits, cut=counted)
    say_counted(counted, *limits)
    try:
        run(training, validating, processor, options, output, resume, hub_data_set(data), columns, overwrite)
    except Interrupted as stop:
        say(f"Stopped; a checkpoint is in {output}. To go on, give the same command with --resume.")
        raise typer.Exit(stop.exit_code) from None
    text = rows[0][text_column]
    words = [text if len(text) < 80 and text.isprintable() else "TEXT"]
    if source == "given":
        columns_of_vectors = (
            ("--lexical-column", lexical_column) if lexical_column else ("--vector-column", vector_column)
        )
        words = ["--file", data, "--text-column", text_column, *map(str, columns_of_vectors)]
    example = shlex.join(["t5fusion", "generate", str(output), *words])
    say(f"Saved in {output}. Next: {example}")

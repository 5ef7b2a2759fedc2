"""The command line: `t5fusion demo | train | generate | evaluate`."""

import json
import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


class OneValueEach(TyperCommand):
    """A command that refuses an option which is given twice; click would take the last and say nothing.

    Ctrl-C ends it with a sentence and exit code 130.
    """

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option, times in Counter(each for each in given if each.param_type_name == "option").items():
            if times > 1 and not (option.multiple or getattr(option, "is_flag", False)):
                often = "twice" if times == 2 else f"{times} times"
                raise ValueError(f"{option.opts[0]} was given {often}. Give it once: only one value would be used.")
        return super().parse_args(ctx, args)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # of which typer says nothing, or "Aborted.", depending on its release
            print("t5fusion: stopped.", file=sys.stderr)
            raise typer.Exit(130) from None


class Commands(typer.Typer):
    """A Typer all of whose commands are `OneValueEach`."""

    def command(self, name: str | None = None, **options):
        return super().command(name, **{"cls": OneValueEach, **options})


app = Commands(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="T5 with a second kind of input: train, evaluate and run models that read lexical vectors beside their text.",
)


class Lexical(str, Enum):
    body = "body"
    name = "name"


class VectorKind(str, Enum):
    true = "true"
    shuffled = "shuffled"
    none = "none"
    all = "all"


TextColumn = Annotated[str, typer.Option(help="Column with the input text.")]
TargetColumn = Annotated[str, typer.Option(help="Column with the text to write.")]
LexicalColumn = Annotated[
    str | None, typer.Option(help="Column with the text that the vector is made of. Default: the input text.")
]
VectorColumn = Annotated[str | None, typer.Option(help="Column that holds the vectors themselves, one in each row.")]
Encoding = Annotated[
    str | None, typer.Option(help="Of a CSV or .txt file or standard input, such as latin-1. Default: UTF-8.")
]
Trained = Annotated[
    str, typer.Argument(metavar="FOLDER", help="What `t5fusion train` saved, or a bundle, or a repository's id.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit, where FOLDER is the id of a repository.")]
Limit = Annotated[int | None, typer.Option(help="Use only the first rows.", min=1)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is in the output folder, once there is a checkpoint.")
]


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


@app.command()
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
    quiet()
    from .demo import DEMO
    from .demo import demo as run
    from .run_folder import check_output, is_unused
    from .train import Interrupted

    if not is_unused(output) and not (output / DEMO).exists():
        raise ValueError(f"{output} holds something else than a demo, and is left alone. Choose another --output.")
    check_output(output, overwrite=True, mark=DEMO)
    try:
        run(output, lexical=lexical.value, base=base, epochs=epochs, limit=limit, seed=seed)
    except Interrupted as stop:
        say("Stopped. The next demo starts over.")
        raise typer.Exit(stop.exit_code) from None


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


@app.command()
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
    quiet()
    from ..processing_t5fusion import MINILM
    from .data import hold_out, is_first_process, say_counted, vector_columns
    from .files import load_rows
    from .run_folder import check_output
    from .train import Interrupted, TrainingOptions, check_launch, make_processor
    from .train import train as run

    check_launch()
    if lexical_column and vector_column:
        raise ValueError("--lexical-column and --vector-column were both given; give one of them.")
    options = TrainingOptions(
        base=base, full=full, train_fusion=not freeze_fusion, fusion_start=fusion_start, epochs=epochs,
        target_modules=None if target_modules == "all" else tuple(name.strip() for name in target_modules.split(",")),
        batch_size=batch_size, lr=lr, fusion_lr=fusion_lr, rank=rank, alpha=alpha, dropout=dropout, precision=precision,
        max_source=max_source, max_target=max_target, seed=seed,
    )  # fmt: skip
    columns = (text_column, target_column, lexical_column, vector_column)
    rows = _tidy(load_rows(data, encoding=encoding), columns)
    unread = [] if lexical_column or vector_column or encoder else vector_columns(rows)
    if unread:
        raise ValueError(
            f"{data} holds vectors in {'column' if len(unread) == 1 else 'columns'} {', '.join(map(repr, unread))}, "
            f"which nothing reads. Give --vector-column {shlex.quote(unread[0])}; or --encoder {MINILM} to make the "
            "vectors of the text."
        )
    if validation:
        held_out = _tidy(load_rows(validation, "validation", encoding), columns)
    else:
        rows, held_out = hold_out(rows, text_column, lexical_column, vector_column)
    if limit:
        rows, held_out = rows.select(range(min(limit, len(rows)))), held_out.select(range(min(limit, len(held_out))))
    if vector_column:
        lexical_dim = _width(rows, text_column, vector_column)
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
    training = _inputs(rows, columns, processor, limits, cut=counted)
    validating = _inputs(held_out, columns, processor, limits, cut=counted)
    say_counted(counted, *limits)
    try:
        run(training, validating, processor, options, output, resume, _on_hub(data), columns, overwrite)
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


@app.command()
def generate(
    name: Trained,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts. Default: lines of standard input.")] = None,
    file: Annotated[
        str | None, typer.Option(help="File of rows (JSONL, CSV, Parquet), or a .txt, a text a line.")
    ] = None,
    text_column: TextColumn = "text",
    lexical_column: LexicalColumn = None,
    vector_column: VectorColumn = None,
    no_vectors: Annotated[bool, typer.Option("--no-vectors", help="Use the text alone.")] = False,
    beams: Annotated[int, typer.Option(min=1)] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    split: Annotated[str, typer.Option(help="Of a data set on the Hub.")] = "train",
    encoding: Encoding = None,
    revision: Revision = None,
    output: Annotated[
        Path | None, typer.Option(help="File for the lines; what an interrupted run left there is gone on with.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start --output anew.")] = False,
):
    """Write a text for each input, as JSON lines: one for each row, in order; null for a row without text.

    Example: [bold]t5fusion generate runs/files app_config read_settings[/bold]

    Example: [bold]t5fusion generate runs/files --file files.jsonl --text-column filename --output made.jsonl[/bold]
    """
    quiet()
    from .chunks import Output, chunks_of_texts, processes, read_chunks
    from .generate import generate_lines, generate_texts
    from .loading import find_trained, load_trained, trained_digest, trained_limits

    if texts and file:
        raise ValueError("texts and --file were both given; give one of them.")
    if text_column == "output":
        raise ValueError("lines name what was written 'output', and --text-column is that as well. Rename the column.")
    state = processes()
    if state.num_processes > 1 and not (texts or file):
        raise ValueError("several processes cannot share standard input. Give --file.")
    if file:
        chunks = read_chunks(file, split, text_column, encoding)
    else:
        chunks = chunks_of_texts(texts or _typed(encoding), text_column)
    columns = (text_column, None, lexical_column, vector_column)
    folder = find_trained(name, revision)
    model, processor = load_trained(folder)
    model, limits = model.to(state.device), trained_limits(folder)
    options: dict = {"num_beams": beams, "max_new_tokens": max_new_tokens}
    begun_with = {"model": trained_digest(folder), "columns": list(columns), "no_vectors": no_vectors}
    begun_with |= {"batch_size": batch_size}
    lines = Output(output, text_column, begun_with | options, overwrite) if state.is_main_process else None

    def inputs(rows, numbers, counted):
        return _inputs(rows, columns, processor, limits, not no_vectors, keep=False, numbers=numbers, cut=counted)

    def write(rows, progress):
        return generate_texts(model, rows, processor, batch_size, progress if lines else None, **options)

    try:
        counted = generate_lines(chunks, columns, inputs, write, lines)
    except KeyboardInterrupt:
        written = f" {lines.found + lines.made} rows are in {output}. To go on, give the same command." if lines else ""
        say("Stopped." if output is None else f"Stopped;{written}")
        raise typer.Exit(130) from None
    if lines:
        _say_written(lines, counted, limits)
        if vector_column and not no_vectors and 0 < counted["inputs"] == counted["without vectors"] and not lines.found:
            raise ValueError(f"column {vector_column!r} holds no vector in any row; all lines are of the text alone.")


def _typed(encoding: str | None) -> Iterator[str]:
    """The lines of standard input."""
    from .files import lines_of

    try:
        yield from lines_of(sys.stdin.buffer, encoding)
    except ValueError as error:
        raise ValueError(f"standard input cannot be read: {error}.") from error


def _say_written(lines, counted: Counter, limits: tuple[int, int]) -> None:
    from .data import say_counted

    if lines.found + lines.made == 0:
        raise ValueError("there are no texts; give them as arguments, with --file, or on standard input.")
    say_counted(counted, *limits)
    if counted["empty"]:
        say(f"{counted['empty']} rows with an empty text; what is written for them is null.")
    if lines.path and not lines.made:
        say(f"{lines.path} is complete: all {lines.found} rows are there.")
    elif lines.path:
        before = f", {lines.found} of them from before" if lines.found else ""
        say(f"{lines.found + lines.made} rows are in {lines.path}{before}.")


@app.command()
def evaluate(
    name: Trained,
    data: Annotated[str, typer.Argument(help="JSONL, CSV or Parquet file, or id of a data set on the Hub.")],
    text_column: TextColumn,
    target_column: TargetColumn,
    lexical_column: LexicalColumn = None,
    vector_column: VectorColumn = None,
    split: Annotated[str, typer.Option(help="Of a data set on the Hub.")] = "validation",
    vectors: Annotated[
        VectorKind, typer.Option(help="The rows' own, other rows', none; or all, compared.")
    ] = VectorKind.true,
    revision: Revision = None,
    limit: Limit = None,
    encoding: Encoding = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
):
    """Measure loss, ROUGE and chrF on rows that have a target.

    It is kept for the model card, in FOLDER/evaluation.json, unless that is of more rows or more kinds of vectors; a
    bundle's card is filled in with it at once. Nothing is kept where FOLDER is the id of a repository.

    Example: [bold]t5fusion evaluate runs/files test.jsonl --text-column filename --target-column file_desc[/bold]
    """
    quiet()
    from ..hub_export.bundle import MANIFEST, keep_evaluation
    from .chunks import processes
    from .data import say_counted
    from .evaluate import (
        EVALUATION,
        SAMPLES,
        Vectors,
        evaluate_large,
        evaluation_record,
        measures_of,
        paired_bootstrap,
        save_evaluation,
    )
    from .files import load_rows
    from .loading import find_trained, load_trained, trained_limits

    state = processes()
    columns = (text_column, target_column, lexical_column, vector_column)
    rows = _tidy(load_rows(data, split, encoding), columns)
    rows = rows.select(range(min(limit or len(rows), len(rows))))
    folder = find_trained(name, revision)
    model, processor = load_trained(folder)
    model, limits = model.to(state.device), trained_limits(folder)

    def inputs(part, counted):
        chosen = rows.select(part)
        return _inputs(chosen, columns, processor, limits, vectors != VectorKind.none, cut=counted)

    every: tuple[Vectors, ...] = ("true", "shuffled", "none")
    kinds = [kind for kind in every if vectors.value in (kind, "all")]
    having = _having(rows, text_column, vector_column) if vector_column and kinds != ["none"] else None
    made, counted = evaluate_large(model, processor, len(rows), inputs, kinds, state.is_main_process, having)
    if not state.is_main_process:
        return
    say_counted(counted, *limits)
    # the scores do not see white space, but the samples of the model card are shown on one line
    references = [" ".join(target.split()) for target in rows[target_column]]
    found: dict[str, dict] = {kind: measures_of(*made[kind], references) for kind in kinds}
    worth: dict[str, dict] = {
        kind: paired_bootstrap(losses, made["true"][0])._asdict()
        for kind, (losses, _) in made.items()
        if len(kinds) > 1 and kind != "true"
    }
    if as_json:
        print(json.dumps(found | {"worth_of_vectors": worth} if worth else found[vectors.value]))
    else:
        _print_measures(found, worth)
    shown = made["true"][1][:SAMPLES] if "true" in kinds else []
    written = zip(rows[text_column], references, shown, strict=False)
    record = evaluation_record(
        rows=len(rows),
        scored_rows=len(rows),
        measures={
            kind: {name: measures[name] for name in measures if name != "rows"} for kind, measures in found.items()
        },
        worth=worth,
        samples=[dict(zip(("text", "reference", "output"), row, strict=True)) for row in written],
        **({"data": data, "split": split} if _on_hub(data) else {}),
    )
    if not Path(name).is_dir():
        say(f"Not kept: {name} is a repository. To have it in a card, evaluate the folder that was pushed from.")
    elif not save_evaluation(folder, record):
        say(f"Not kept: {folder / EVALUATION} is of more rows or kinds of vectors. To replace it, delete it first.")
    elif (folder / MANIFEST).exists():
        keep_evaluation(folder)
        say(f"Kept in {folder / EVALUATION}, and in the bundle's card, which `t5fusion push` sends.")
    else:
        say(f"Kept in {folder / EVALUATION}, for the model card.")


def _print_measures(found: dict[str, dict], worth: dict[str, dict]) -> None:
    """A column for each kind of vectors, and what the rows' own are worth against the others."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", *(f"vectors: {kind}" for kind in found))
    for name in next(iter(found.values())):
        values = [measures[name] for measures in found.values()]
        table.add_row(name, *(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values))
    console = Console()
    console.print(table)
    for kind, interval in worth.items():
        low, high = interval["low"], interval["high"]
        line = f"{kind} instead of the rows' own vectors: {interval['difference']:+.4f} nats per token"
        console.print(f"{line} (95 % between {low:+.4f} and {high:+.4f})", highlight=False)


def _on_hub(data: str) -> str | None:
    """`data` if it is the id of a data set on the Hub, None for a file or folder."""
    return None if Path(data).exists() else data


def _tidy(rows, columns):
    """The rows that have text in every column of texts; how many have not is said."""
    from .data import check_columns, without_empty

    check_columns(rows, columns)
    rows, dropped = without_empty(rows, [column for column in columns[:3] if column])
    if dropped:
        say(f"{dropped} {'row' if dropped == 1 else 'rows'} with an empty text left out; {len(rows)} remain.")
    if len(rows) == 0:
        raise ValueError("no row has text in every column that is used.")
    return rows


def _vectors(rows, text: str, vector: str):
    """The vectors of column `vector`, row by row; a row is named by its text."""
    from .data import read_vectors

    return read_vectors(rows, vector, lambda index: f"the row of {rows[index][text]!r}")


def _width(rows, text: str, vector: str) -> int:
    """The width of the vectors in column `vector`: that of the first row which has one."""
    width = next((len(each) for each in _vectors(rows, text, vector) if each is not None), None)
    if width is None:
        raise ValueError(f"column {vector!r} holds no vector in any of {len(rows)} rows.")
    return width


def _having(rows, text: str, vector: str):
    """Which rows have a vector in column `vector`, bool (rows,)."""
    import numpy as np

    _width(rows, text, vector)
    return np.array([each is not None for each in _vectors(rows, text, vector)])


def _inputs(
    rows, columns, processor, limits, vectors: bool = True, keep: bool = True, numbers=None, cut: Counter | None = None
) -> list[dict]:
    """Tidy rows as the model reads them, with the vectors that the processor's recipe asks for."""
    from .data import encode_cached, encode_distinct, given_vectors, prepare

    text, target, lexical, vector = columns
    encode = encode_cached if keep else encode_distinct
    made: Any = None

    def called(index: int) -> str:  # by its number in the file, where that is still known
        return f"row {numbers[index]}" if numbers is not None else f"the row of {rows[index][text]!r}"

    if vectors and vector:
        made = given_vectors(rows, vector, called)
        width = next((len(each) for each in made if each is not None), processor.lexical_dim)
        if width != processor.lexical_dim:
            expected = f"expected {processor.lexical_dim}, as in training"
            raise ValueError(f"column {vector!r} holds vectors of {width} numbers; {expected}.")
    elif vectors and lexical:
        made = encode(rows[lexical], processor)
    elif vectors and processor.lexical_source == "text":
        made = encode(rows[text], processor)
    elif vectors and processor.lexical_source == "given":
        raise ValueError(
            "this model's vectors are not made of the text itself. Give rows of a file with --lexical-column or "
            "--vector-column, as in training, or --no-vectors."
        )
    return prepare(rows[text], rows[target] if target else None, made, processor, limits[0], limits[1], cut)


def say(line: str) -> None:
    from .data import say as say_once

    say_once(line)


def quiet() -> None:
    """Keeps what libraries say of themselves off the screen; errors and our own lines stay."""
    import warnings

    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    import datasets

    datasets.logging.set_verbosity(logging.CRITICAL)  # what is wrong with a file is said in one line, by us
    if not sys.stderr.isatty():  # in a log or a pipe, an error is one line
        datasets.disable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


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

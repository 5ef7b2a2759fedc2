"""`t5fusion generate`."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ..common.console import say, silence_libraries
from .arguments import Encoding, LexicalColumn, Revision, TextColumn, Trained, VectorColumn


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
    silence_libraries()
    from ..common.run_folder import find_trained, load_trained, trained_digest, trained_limits
    from ..finetune.data import Columns
    from ..finetune.generation import generate_lines, generate_texts
    from ..finetune.inputs import make_inputs
    from ..finetune.output_file import Output
    from ..finetune.parallel import processes
    from ..finetune.streaming import chunks_of_texts, read_chunks

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
    columns = Columns(text_column, None, lexical_column, vector_column)
    folder = find_trained(name, revision)
    model, processor = load_trained(folder)
    model, limits = model.to(state.device), trained_limits(folder)
    options: dict = {"num_beams": beams, "max_new_tokens": max_new_tokens}
    begun_with = {"model": trained_digest(folder), "columns": list(columns), "no_vectors": no_vectors}
    begun_with |= {"batch_size": batch_size}
    lines = Output(output, text_column, begun_with | options, overwrite) if state.is_main_process else None

    def inputs(rows, numbers, counted):
        return make_inputs(rows, columns, processor, limits, not no_vectors, keep=False, numbers=numbers, cut=counted)

    def write(rows, progress):
        return generate_texts(model, rows, processor, batch_size, progress if lines else None, **options)

    try:
        counted = generate_lines(chunks, columns, inputs, write, lines)
    except KeyboardInterrupt:
        written = f" {lines.old + lines.new} rows are in {output}. To go on, give the same command." if lines else ""
        say("Stopped." if output is None else f"Stopped;{written}")
        raise typer.Exit(130) from None
    if lines:
        _say_written(lines, counted, limits)
        if vector_column and not no_vectors and 0 < counted["inputs"] == counted["without vectors"] and not lines.old:
            raise ValueError(f"column {vector_column!r} holds no vector in any row; all lines are of the text alone.")


def _typed(encoding: str | None) -> Iterator[str]:
    """The lines of standard input."""
    from ..finetune.files import lines_of

    try:
        yield from lines_of(sys.stdin.buffer, encoding)
    except ValueError as error:
        raise ValueError(f"standard input cannot be read: {error}.") from error


def _say_written(lines, counted: Counter, limits: tuple[int, int]) -> None:
    from ..finetune.inputs import say_counted

    if lines.old + lines.new == 0:
        raise ValueError("there are no texts; give them as arguments, with --file, or on standard input.")
    say_counted(counted, *limits)
    if counted["empty"]:
        say(f"{counted['empty']} rows with an empty text; what is written for them is null.")
    if lines.path and not lines.new:
        say(f"{lines.path} is complete: all {lines.old} rows are there.")
    elif lines.path:
        before = f", {lines.old} of them from before" if lines.old else ""
        say(f"{lines.old + lines.new} rows are in {lines.path}{before}.")

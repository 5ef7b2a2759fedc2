"""`t5fusion generate`."""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.console import say
from ..common.panels import DATA, GENERATION, OUTPUT, VECTORS
from ..engines.names import REFERENCE
from ..finetune.decoding import Decoding, check_decoding
from ..finetune.file_names import INPUT_SUFFIXES, check_ending, check_readable, check_vector_files, suffix_of
from ..finetune.vector_options import parse_vector_columns, vector_names
from ..kinds_t5fusion import counted
from .arguments import (
    Encoding,
    Engine,
    EngineName,
    Limit,
    Revision,
    Split,
    Trained,
    TrainedLexicalColumn,
    TrainedVectorColumn,
)
from .libraries import load_libraries
from .settings import parse_settings, settings_option

if TYPE_CHECKING:
    from ..finetune import Generated
    from ..finetune.streaming import Chunk


def generate(
    name: Trained,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Input texts. Default: the lines of standard input.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA,
            help="JSONL, CSV, Parquet or Arrow file, or id of a data set on the Hub; or .txt file with one text per "
            "line.",
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA,
            help='Column of the input text. Default: as in the training; "text" for texts and .txt files.',
        ),
    ] = None,
    lexical_column: TrainedLexicalColumn = None,
    vector_column: TrainedVectorColumn = None,
    no_vectors: Annotated[
        bool,
        typer.Option("--no-vectors", rich_help_panel=VECTORS, help="Generate from the text alone, without vectors."),
    ] = False,
    beams: Annotated[
        int, typer.Option(min=1, rich_help_panel=GENERATION, help="Number of beams. 1: greedy decoding.")
    ] = Decoding.num_beams,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, rich_help_panel=GENERATION, help="Longest generated text, in tokens.")
    ] = Decoding.max_new_tokens,
    batch_size: Annotated[
        int, typer.Option(min=1, rich_help_panel=GENERATION, help="Rows in a batch.")
    ] = Decoding.batch_size,
    setting: Annotated[
        list[str] | None,
        settings_option(
            GENERATION, "Field of transformers' GenerationConfig, such as do_sample=true or temperature=0.7."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, rich_help_panel=GENERATION, help="Seed of the random numbers, with do_sample=true.")
    ] = Decoding.seed,
    engine: Engine = EngineName[REFERENCE],
    limit: Limit = None,
    split: Split = "train",
    encoding: Encoding = None,
    revision: Revision = None,
    output: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUT,
            help="Output file: .jsonl, .csv, .parquet, .jsonl.gz or .csv.gz. Default: JSON lines on standard output.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", rich_help_panel=OUTPUT, help="Replace the output file, when the new one is whole."),
    ] = False,
):
    """Generate a text for each row, and write the rows, in order, with the texts in a column "output".

    A row with empty text, or with no input, gets null. All columns of FILE are kept, but vectors only in .jsonl and
    .parquet. If a run with --output is interrupted, the same command resumes it from OUTPUT.partial. OUTPUT itself is
    written when all rows have their text.

    Example: [bold]t5fusion generate runs/files app_config read_settings[/bold]

    Example: [bold]t5fusion generate runs/files --file files.jsonl --text-column filename --output out.jsonl[/bold]
    """
    if texts and file:
        raise ValueError("both texts and --file were given. Pass one of them.")
    if file == "-":
        raise ValueError("--file does not read standard input. Leave it out: each line of standard input is a text.")
    settings = check_decoding(parse_settings(setting or [], "temperature=0.7"))
    decoding = Decoding(beams, max_new_tokens, batch_size, settings, seed, engine.value)
    vector, _ = parse_vector_columns(vector_column, has_encoder=bool(lexical_column), takes_options=False)
    from ..common.folder_names import check_reachable  # It imports the Hub's client, which --help does not need.

    if file:
        check_readable(file, encoding, INPUT_SUFFIXES)
        check_vector_files(vector_names(vector), file)
    # An existing file is checked later, by the code that writes it, because the check reads the file.
    if output and not output.exists():
        check_ending(output)
    check_reachable(name, revision)
    load_libraries()
    # These are slow to import, and --help does not need them.
    from ..common.next_commands import after_generate
    from ..finetune import Columns, GenerationStopped, columns_for, generate_file
    from ..finetune.file_generation import generate_chunks

    options: dict = {"vectors": not no_vectors, "revision": revision, "overwrite": overwrite}
    try:
        if file:
            text = text_column or ("text" if suffix_of(file) == ".txt" else None)
            columns = columns_for(
                name, text, None, lexical_column, vector, revision=revision, vectors=not no_vectors, data=file
            )
            generated = generate_file(
                name, file, columns, output, limit=limit, split=split, encoding=encoding, **vars(decoding), **options
            )
        else:
            columns = Columns(text_column or "text", None, lexical_column, vector)
            chunks = _chunks_of_texts(texts, text_column or "text", limit, encoding)
            generated = generate_chunks(name, chunks, columns, output, decoding, **options)
    except GenerationStopped as stop:
        say(stopped_sentence(stop.rows, output, overwrite))
        raise typer.Exit(130) from None
    if output:
        _say_how_many(generated, output)
    say(f"Next: {after_generate(name, revision)}")


def stopped_sentence(rows: int | None, output: Path | None, overwrite: bool) -> str:
    """Return what to say after Ctrl-C: how many rows are kept, and how to go on."""
    if output is None:
        return "Stopped."
    if not rows:
        return f"Stopped before the text of a row was saved in {output}.partial."
    resume = "the same command without --overwrite" if overwrite else "the same command"
    return f"Stopped; {rows_are_in(rows)} {output}.partial. To go on, run {resume}."


def rows_are_in(number: int) -> str:
    """Return the beginning of a sentence, such as "5 rows are in"."""
    return f"{counted(number, 'row')} {'is' if number == 1 else 'are'} in"


def _say_how_many(generated: "Generated", output: Path) -> None:
    """Tell the user how many rows the output holds."""
    if generated.rows == generated.earlier:
        say(f"{output} is complete: all {generated.rows:,} rows are there.")
    else:
        from_before = f", {generated.earlier:,} of them from before" if generated.earlier else ""
        say(f"{rows_are_in(generated.rows)} {output}{from_before}.")


def _chunks_of_texts(
    texts: list[str] | None, column: str, limit: int | None, encoding: str | None
) -> "Iterator[Chunk]":
    """Return the texts, or without any the lines of standard input, as chunks of rows with one column."""
    from ..finetune.streaming import chunks_of_texts  # It is slow to import, and --help does not need it.

    is_typed = not texts and sys.stdin.isatty()
    lines = islice(texts or _lines_of_standard_input(encoding), limit)
    if is_typed:
        say("Type a text and press Enter; Ctrl-D ends.")
    return chunks_of_texts(lines, column, size=1 if is_typed else None)  # A user who types sees each answer at once.


def _lines_of_standard_input(encoding: str | None) -> Iterator[str]:
    """Return the lines of standard input.

    Raises:
        ValueError: Several processes would share standard input, or it cannot be read.
    """
    from ..finetune.files import lines_of  # It is slow to import, and --help does not need it.
    from ..finetune.parallel import processes

    if processes().num_processes > 1:
        raise ValueError("several processes cannot share standard input. Pass --file.")

    def lines() -> Iterator[str]:
        try:
            yield from lines_of(sys.stdin.buffer, encoding)
        except ValueError as error:
            raise ValueError(f"standard input cannot be read: {error}.") from error

    return lines()

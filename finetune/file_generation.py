"""Generate a text for each row of a file, as `t5fusion generate` does."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list

from ..common.console import say
from ..common.progress import Progress
from ..common.run_folder import trained_digest
from ..kinds_t5fusion import counted
from .data import Columns, check_trained_columns, no_vector_in, report_no_text
from .decoding import Decoding
from .generation import Output, generate_rows
from .inputs import WITHOUT_VECTORS, report_counts
from .output_file import OutputFile, check_output_name
from .parallel import processes
from .record import absolute_vector_files, trained_columns
from .standard_output import StandardOutput
from .streaming import Chunk, check_vector_counts, count_rows, first_of, read_chunks
from .text_generator import TextGenerator
from .trained_model import columns_for


class Generated(NamedTuple):
    """How many rows an output holds."""

    rows: int  # number of all rows in it
    earlier: int  # number of the rows that an earlier run wrote


class GenerationStopped(KeyboardInterrupt):
    """Ctrl-C was pressed.

    Args:
        rows: Number of rows whose texts are kept; None in all processes but the first.
    """

    def __init__(self, rows: int | None):
        super().__init__()
        self.rows = rows


def generate_file(
    name: str | Path,
    data: str | Path,
    columns: Columns | None = None,
    output: str | Path | None = None,
    *,
    vectors: bool = True,
    num_beams: int = Decoding.num_beams,
    max_new_tokens: int = Decoding.max_new_tokens,
    batch_size: int = Decoding.batch_size,
    settings: Mapping[str, Any] | None = None,
    seed: int = Decoding.seed,
    engine: str = Decoding.engine,
    limit: int | None = None,
    split: str = "train",
    revision: str | None = None,
    encoding: str | None = None,
    overwrite: bool = False,
) -> Generated:
    """Generate a text for each row of a file, and write the rows with their texts, in their order.

    The output has all columns of the input and, as the last one, "output": the generated text, or null if the row lacks
    a text. If the input itself has a column "output", the last one is called "output_2". Columns of vectors are kept in
    .jsonl and .parquet, and left out of .csv and standard output. In .jsonl and .csv, values other than text become
    JSON, with times by ISO 8601 and binary data in base64.

    While texts are generated, they are kept in a file beside the output, OUTPUT.partial. The output itself is written
    when all rows have their text, so it is whole as soon as it exists. After an interrupted or killed run, the same
    call resumes from OUTPUT.partial. (Earlier releases appended to OUTPUT itself; the call resumes from such a .jsonl
    file too.) If the output is whole and the input has new rows at its end, texts are generated for these only.
    OUTPUT.made-with records what the texts depend on.

    Args:
        name: Folder that training saved, bundle, or id of a repository on the Hub.
        data: JSONL, CSV, Parquet or Arrow file, or id of a data set on the Hub; or a .txt file with one text per line.
        columns: The columns to read; None for the columns of the training. `columns.target` is ignored.
        output: File to write, which ends in .jsonl, .csv, .parquet, .jsonl.gz or .csv.gz; None to print JSON lines on
            standard output.
        vectors: Whether to give the model vectors.
        num_beams, max_new_tokens: Arguments of `model.generate`.
        batch_size: Rows in a batch.
        settings: Fields of transformers' GenerationConfig, such as {"do_sample": True, "temperature": 0.7}.
        seed: Seed of the random numbers, if `do_sample`. One seed gives the same texts for any number of processes,
            even if the run is interrupted and resumed.
        engine: What generates, a name in `t5fusion.engines.ENGINES`. By default, the model itself.
        limit: Use at most this many rows, the first ones.
        split: Split of the data set on the Hub.
        revision: Branch, tag or commit of the repository.
        encoding: Encoding of a .txt or CSV file; None for UTF-8. Outputs are always UTF-8.
        overwrite: Replace what is in `output`, when all rows have their text. If the run fails, `output` stays.

    Returns:
        How many rows the output holds.

    Raises:
        GenerationStopped: Ctrl-C was pressed.
        ValueError: An argument or the rows cannot be used, `output` has a different ending or holds other rows, or the
            model is damaged.
        OSError: A file, a data set, the model or its base model cannot be read, or `output` cannot be written.
    """
    columns_to_read = columns or columns_for(name, revision=revision, vectors=vectors, data=data)
    files, text_column = columns_to_read.vector_files, columns_to_read.text or "text"
    check_vector_counts(str(data), encoding, files)

    def chunks() -> Iterable[Chunk]:
        return first_of(read_chunks(str(data), split, text_column, encoding, files), limit)

    decoding = Decoding(num_beams, max_new_tokens, batch_size, settings, seed, engine)
    return generate_chunks(
        name, chunks(), columns_to_read, output, decoding, chunks, vectors=vectors, revision=revision,
        overwrite=overwrite, total=lambda: count_rows(str(data), split, encoding, limit),
        without_rows=f"{data} has no rows.",
    )  # fmt: skip


def generate_chunks(
    name: str | Path,
    chunks: Iterable[Chunk],
    columns: Columns,
    output: str | Path | None,
    decoding: Decoding,
    reread: Callable[[], Iterable[Chunk]] | None = None,
    *,
    vectors: bool = True,
    revision: str | None = None,
    overwrite: bool = False,
    total: Callable[[], int | None] = lambda: None,
    without_rows: str = "there are no texts. Pass them as arguments, in a --file, or on standard input.",
) -> Generated:
    """Generate a text for each row of chunks, such as those of `streaming.chunks_of_texts`, and write rows and texts.

    The output is that of `generate_file`.

    Args:
        name, columns, output, vectors, revision, overwrite: As for `generate_file`.
        chunks: The rows.
        decoding: How the texts are decoded.
        reread: A function that returns the chunks once more; None if the rows have no column but their text.
        total: A function that returns the number of rows, for the progress bar, or None if it is not known.
        without_rows: The message of the ValueError if there are no rows.

    Returns, Raises:
        As `generate_file`.
    """
    path = None if output is None else Path(output)
    if path:  # The name is checked now, because loading the model takes long.
        check_output_name(path)
    generator = TextGenerator(name, columns, vectors=vectors, revision=revision, **vars(decoding))
    columns, options, folder = generator.columns, generator.options, generator.folder
    made_with: dict[str, Any] = {
        "model": trained_digest(folder),
        "columns": list(absolute_vector_files(columns)),
        "no_vectors": not vectors,
    }
    made_with |= {"batch_size": decoding.batch_size, "engine": generator.engine} | options
    made_with |= {"seed": decoding.seed} if options.get("do_sample") else {}
    writer: Output | None = None  # Only the first process writes.
    if processes().is_main_process:
        writer = OutputFile(path, columns, made_with, overwrite) if path else StandardOutput(columns)
    checked = _checked_columns(chunks, columns, trained_columns(folder))
    report_no_text(columns, ())
    try:
        with Progress("Generating", total() if writer else None) as progress:
            counts = generate_rows(checked, columns, generator.inputs, generator.generate, writer, reread, progress)
    except KeyboardInterrupt:
        raise GenerationStopped(writer.rows if writer else None) from None
    finally:
        if writer:
            writer.close()
    generated = _count(writer)
    if generated.rows == 0:
        raise ValueError(without_rows)
    _report(counts, generator.limits, columns)
    if columns.vector and vectors and 0 < counts["inputs"] == counts[WITHOUT_VECTORS] and not generated.earlier:
        raise ValueError(
            f"{no_vector_in(columns)} in any row, so all texts were generated from the rows' texts alone. Name the "
            "right column with --vector-column, or pass --no-vectors if that is what you want."
        )
    return generated


def _checked_columns(chunks: Iterable[Chunk], columns: Columns, trained: Columns | None) -> Iterator[Chunk]:
    """Yield the chunks, and raise ValueError if a column is missing.

    Args:
        trained: The columns of the training, for the error.
    """
    for chunk in chunks:
        check_trained_columns(chunk.rows, columns, trained)
        yield chunk


def _count(writer: Output | None) -> Generated:
    """Return how many rows the output holds. All processes must call it, because only the first one knows."""
    numbers = [writer.earlier_rows, writer.new_rows] if writer else [0, 0]
    broadcast_object_list(numbers)
    return Generated(rows=sum(numbers), earlier=numbers[0])


def _report(counts: Counter, limits: tuple[int, int], columns: Columns) -> None:
    """Print how many rows were cut, empty or without a vector."""
    report_counts(counts, *limits)
    if counts["empty"]:
        lack = "an empty text" if columns.texts else "neither text nor a vector"
        have, their = ("has", "its") if counts["empty"] == 1 else ("have", "their")
        say(f"{counted(counts['empty'], 'row')} {have} {lack}; {their} output is null.")

"""Generate a text for each row."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from ..common.progress import Progress
from ..processing_t5fusion import T5FusionProcessor
from .data import Columns, are_usable, check_columns, check_texts
from .inputs import batches
from .output_file import OutputFile
from .parallel import shared
from .standard_output import StandardOutput
from .streaming import Chunk

Output = OutputFile | StandardOutput
Advance = Callable[[int], None]  # takes the number of rows that have just got their texts
MakeInputs = Callable[..., list[dict]]  # takes rows, their numbers and a counter, as `inputs.make_inputs` does
MakeTexts = Callable[[list[dict], int, Advance], list[str]]  # takes inputs, and the number of their first row


@torch.inference_mode()
def generate_texts(
    model,
    rows: list[dict],
    processor: T5FusionProcessor,
    batch_size: int = 64,
    advance: Advance | None = None,
    **options,
) -> list[str]:
    """Return the text that the model generates for each row, in the rows' order.

    Args:
        model: A fused model, with or without an adapter.
        rows: Rows of `inputs.prepare`. Labels in them are ignored.
        processor: The processor of the rows.
        batch_size: Rows in a batch.
        advance: Called after each batch with its number of rows.
        **options: Arguments of `model.generate`. By default, decoding is greedy, up to 64 new tokens.
    """
    model.eval()
    options = {"max_new_tokens": 64, "do_sample": False, **options}
    texts = [""] * len(rows)
    rows = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
    for indices, batch in batches(rows, processor, batch_size, "input_ids"):
        generated = model.generate(**batch.to(model.device), **options)
        decoded = processor.batch_decode(generated, skip_special_tokens=True)
        for index, text in zip(indices, decoded, strict=True):
            texts[index] = text
        if advance:
            advance(len(indices))
    return texts


def generate_rows(
    chunks: Iterable[Chunk],
    columns: Columns,
    make_inputs: MakeInputs,
    make_texts: MakeTexts,
    output: Output | None,
    reread: Callable[[], Iterable[Chunk]] | None = None,
    progress: Progress | None = None,
) -> Counter[str]:
    """Generate a text for each row that has none yet, chunk by chunk.

    All processes must call it. They share the work, and the first one writes.

    Args:
        chunks: The same chunks in all processes.
        columns: The columns to read.
        make_inputs: Makes the model's inputs.
        make_texts: Generates the texts of inputs.
        output: Writes the rows and their texts, in the first process; None in all others.
        reread: A function that returns the same chunks once more, for `output.finish`; None if the rows have no column
            but their text.
        progress: Counts the rows; None to show nothing.

    Returns:
        The counts of `make_inputs` over the rows of this run, and `empty`: the number of rows without text, or with
        neither text nor a vector. They get null.

    Raises:
        ValueError: A column is missing or holds no text, or a text of an earlier run belongs to a different row.
        OSError: The output cannot be written.
    """
    total_counts: Counter[str] = Counter()
    progress = progress or Progress("Generating", None)
    shown = 0  # number of rows of the current chunk that `progress` has counted

    def work(item: tuple[Chunk, int]) -> tuple[list[str | None], Counter[str]]:
        chunk, _ = item
        if chunk.first > progress.done:  # An earlier run wrote the rows before this chunk.
            progress.skip(chunk.first - progress.done)

        def advance(count: int) -> None:
            nonlocal shown
            shown += count
            progress.advance(count)

        return generate_chunk(chunk, columns, make_inputs, make_texts, advance)

    for (chunk, written), (texts, counts) in shared(incomplete_chunks(chunks, columns, output), work):
        total_counts.update(counts)
        progress.advance(len(chunk.rows) - shown)
        shown = 0
        if output:
            output.append(chunk.rows.select(range(written, len(chunk.rows))), texts[written:])
    if output:
        output.finish(reread)
    return total_counts


def incomplete_chunks(chunks: Iterable[Chunk], columns: Columns, output: Output | None) -> Iterator[tuple[Chunk, int]]:
    """Yield each chunk whose texts are not all in the output, with the number of its texts that are there.

    Args:
        columns: The columns that the rows must have.
        output: The output, in the first process, which sends the numbers to the others; None in all others.

    Raises:
        ValueError: A column is missing or holds no text, or a text of the output belongs to a different row.
    """
    for chunk in chunks:
        check_columns(chunk.rows, columns.by_use.values())
        check_texts(chunk.rows, columns.texts)
        counts = [output.count_written(chunk.rows) if output else 0]
        broadcast_object_list(counts)
        if counts[0] < len(chunk.rows):
            yield chunk, counts[0]


def generate_chunk(
    chunk: Chunk,
    columns: Columns,
    make_inputs: MakeInputs,
    make_texts: MakeTexts,
    advance: Advance,
) -> tuple[list[str | None], Counter[str]]:
    """Return a generated text for each row of a chunk (None for a row that is not usable), and the counts."""
    numbers = range(chunk.first, chunk.first + len(chunk.rows))
    usable = np.flatnonzero(are_usable(chunk.rows, columns, numbers)).tolist()
    counts = Counter(empty=len(chunk.rows) - len(usable))
    texts: list[str | None] = [None] * len(chunk.rows)
    if usable:
        inputs = make_inputs(chunk.rows.select(usable), [numbers[row] for row in usable], counts)
        for row, text in zip(usable, make_texts(inputs, chunk.first, advance), strict=True):
            texts[row] = text
    return texts, counts

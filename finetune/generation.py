"""Generate a text for each row."""

from collections import Counter
from collections.abc import Callable, Iterable

import torch

from ..common.progress import Progress
from ..processing_t5fusion import T5FusionProcessor
from .data import Columns, rows_with_text
from .inputs import batches
from .output_file import Output, unfinished
from .parallel import shared
from .streaming import Chunk

Advance = Callable[[int], None]
Write = Callable[[list[dict], int, Advance], list[str]]


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
        rows: rows of `inputs.prepare`.
        advance: called with the number of rows after each batch.
        **options: arguments of `model.generate`. By default, decoding is greedy, up to 64 new tokens.
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


def generate_lines(
    chunks: Iterable[Chunk],
    columns: Columns,
    inputs: Callable[..., list[dict]],
    write: Write,
    output: Output | None,
    reread: Callable[[], Iterable[Chunk]] | None = None,
    progress: Progress | None = None,
) -> Counter[str]:
    """Generate a text for each row that has none yet, chunk by chunk. Processes share the work; the first one writes.

    Args:
        chunks: the same chunks in all processes.
        columns: the columns to read.
        inputs: returns the model's inputs for rows, given their numbers and a counter, as `inputs.prepare` does.
        write: returns the texts for inputs, given the number of the chunk's first row and a function to call with the
            number of rows that have just got theirs.
        output: where the rows and their texts go, in the first process; None in all others.
        reread: returns the same chunks once more, for `output.finish`; None if the rows have no column but their text.
        progress: counts the rows; None to show nothing.

    Returns:
        The counts of `inputs` over the rows of this run; and `empty`, how many rows lack a text, so that null
        is generated for them.
    """
    total_counts: Counter[str] = Counter()
    progress = progress or Progress("Generating", None)
    shown = 0  # rows of the chunk in work that the progress counts already

    def work(item: tuple[Chunk, int]) -> tuple[list[str | None], Counter[str]]:
        nonlocal shown
        if item[0].first > progress.done:  # an earlier run wrote the rows between
            progress.skip(item[0].first - progress.done)

        def advance(rows: int) -> None:
            nonlocal shown
            shown += rows
            progress.advance(rows)

        return _generate_chunk(item[0], columns, inputs, write, advance)

    for (chunk, written), (texts, counts) in shared(unfinished(chunks, columns, output), work):
        total_counts.update(counts)
        progress.advance(len(chunk.rows) - shown)
        shown = 0
        if output:
            output.append(chunk.rows.select(range(written, len(chunk.rows))), texts[written:])
    if output:
        output.finish(reread)
    return total_counts


def _generate_chunk(
    chunk: Chunk,
    columns: Columns,
    inputs: Callable[..., list[dict]],
    write: Write,
    advance: Advance,
) -> tuple[list[str | None], Counter[str]]:
    """Return a text for each row of a chunk, None for a row without text, and the counts."""
    with_text = rows_with_text(chunk.rows, columns.texts)
    counts = Counter(empty=len(chunk.rows) - len(with_text))
    texts: list[str | None] = [None] * len(chunk.rows)
    if with_text:
        rows = inputs(chunk.rows.select(with_text), [chunk.first + row for row in with_text], counts)
        for row, text in zip(with_text, write(rows, chunk.first, advance), strict=True):
            texts[row] = text
    return texts, counts

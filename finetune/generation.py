"""Writing: what the model makes of each row."""

from collections import Counter
from collections.abc import Callable, Iterable

import torch

from ..processing_t5fusion import T5FusionProcessor
from .data import Columns, rows_with_text
from .inputs import batches
from .output_file import Output, unfinished
from .parallel import shared
from .streaming import Chunk


@torch.inference_mode()
def generate_texts(
    model, rows: list[dict], processor: T5FusionProcessor, batch_size: int = 64, progress: str | None = None, **options
) -> list[str]:
    """What the model writes for each row (as `data.prepare` makes them), in the rows' order.

    Args:
        progress: what stands before the progress bar; None for no bar.
        **options: those of `model.generate`; by default greedy, and at most 64 new tokens.
    """
    model.eval()
    options = {"max_new_tokens": 64, "do_sample": False, **options}
    texts = [""] * len(rows)
    rows = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
    for indices, batch in batches(rows, processor, batch_size, "input_ids", progress):
        written = processor.batch_decode(model.generate(**batch.to(model.device), **options), skip_special_tokens=True)
        for index, text in zip(indices, written, strict=True):
            texts[index] = text
    return texts


def _generate_chunk(
    chunk: Chunk,
    columns: Columns,
    inputs: Callable[..., list[dict]],
    write: Callable[[list[dict], str], list[str]],
) -> tuple[list[str | None], Counter[str]]:
    kept = rows_with_text(chunk.rows, columns.texts)
    counted = Counter(empty=len(chunk.rows) - len(kept))
    made: list[str | None] = [None] * len(chunk.rows)
    if kept:
        rows = inputs(chunk.rows.select(kept), [chunk.first + row for row in kept], counted)
        for row, text in zip(kept, write(rows, f"Writing from row {chunk.first:,}"), strict=True):
            made[row] = text
    return made, counted


def generate_lines(
    chunks: Iterable[Chunk],
    columns: Columns,
    inputs: Callable[..., list[dict]],
    write: Callable[[list[dict], str], list[str]],
    output: Output | None,
) -> Counter[str]:
    """Appends the lines of all rows that have none yet, chunk by chunk; what several processes do, the first writes.

    Args:
        chunks: the same in all processes.
        columns: the columns to read.
        inputs: makes the model's inputs of rows, their numbers and a counter, as `data.prepare` does.
        write: makes texts of inputs; it is given what stands before the progress bar.
        output: None in all processes but the first.

    Returns:
        How many rows of this run were `empty`: have no text where one is needed, so that null is written for them; and
        what `inputs` counted.
    """
    counted: Counter[str] = Counter()
    pending = unfinished(chunks, columns, output)
    for (chunk, there), (made, counts) in shared(
        pending, lambda todo: _generate_chunk(todo[0], columns, inputs, write)
    ):
        counted.update(counts)
        if output:
            output.append(chunk.rows[output.text_column][there:], made[there:])
    if output:
        output.finish()
    return counted

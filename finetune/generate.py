"""Writing: what the model makes of each row."""

import torch

from ..processing_t5fusion import T5FusionProcessor
from .data import batches


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

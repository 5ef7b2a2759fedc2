"""What a smaller adapter costs: bytes, held-out loss, and outputs that change, for lower ranks and half precision.

    python benchmarks/smaller_adapters.py runs/demo

The run is that of `t5fusion demo`. Its rows are harvested again, so run it with the Python of the training. The table
shows the loss on all held-out rows, how far the log probability of a target's token moves in the first 200 of them, and
how many of the first 100 greedy texts stay the same.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from t5fusion import DataCollatorWithFusion
from t5fusion.common.run_files import ADAPTER_SAFETENSORS
from t5fusion.common.saved_files import read_weights
from t5fusion.demo.demo import demo_inputs, demo_rows
from t5fusion.finetune import load_trained, shrink_adapter
from t5fusion.finetune.record import rows_digest, trained_options
from t5fusion.finetune.training import held_out_loss

VARIANTS = ((None, "float16"), (None, "bfloat16"), (24, "float16"), (16, "float16"), (8, "float16"), (4, "float16"))
SAMPLE, GENERATED, BATCH = 200, 100, 25


@torch.no_grad()
def outputs(folder: Path, batches: list) -> tuple[torch.Tensor, list[str]]:
    """Return the log probability of each token of the targets, float (tokens,), and greedy texts."""
    model, processor = load_trained(folder)
    scores, texts = [], []
    for number, batch in enumerate(batches):
        real = batch["labels"] != -100
        logs = model(**batch).logits.log_softmax(-1)[real]
        scores.append(logs.gather(1, batch["labels"][real][:, None])[:, 0])
        if number < GENERATED // BATCH:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            ids = model.generate(**inputs, max_new_tokens=24, no_repeat_ngram_size=3)
            texts += processor.batch_decode(ids, skip_special_tokens=True)
    return torch.cat(scores), texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    _, processor = load_trained(run)
    rows = demo_inputs(demo_rows()[1], processor)
    if rows_digest(rows) != json.loads((run / "training.json").read_text())["held_out_digest"]:
        raise SystemExit(
            f"{run} was trained on the standard library of a different Python. Run this with that Python, or make the "
            "run again: t5fusion demo."
        )
    collate = DataCollatorWithFusion(processor)
    batches = [collate(rows[first : first + BATCH]) for first in range(0, SAMPLE, BATCH)]
    expected, expected_texts = outputs(run, batches)

    def show(name: str, folder: Path) -> None:
        sizes = {key: value.nbytes for key, value in read_weights(folder / ADAPTER_SAFETENSORS)}
        fusion = sum(size for key, size in sizes.items() if ".fusion." in key) / sum(sizes.values())
        size = (folder / ADAPTER_SAFETENSORS).stat().st_size
        share = size / (run / ADAPTER_SAFETENSORS).stat().st_size
        loss = held_out_loss(load_trained(folder)[0], rows, processor, trained_options(run))
        scores, texts = outputs(folder, batches)
        moved, same = (scores - expected).abs(), sum(map(str.__eq__, texts, expected_texts))
        print(
            f"| {name} | {size:,} | {share:.0%} | {fusion:.0%} | {loss:.3f} | {moved.mean():.4f} | {moved.max():.4f} | "
            f"{same} of {len(texts)} |",
            flush=True,
        )

    print("| adapter | bytes | share | fusion layer | held-out loss | moved, mean | moved, most | same texts |")
    show("as trained", run)
    with TemporaryDirectory() as folder:
        for rank, dtype in VARIANTS:
            small = Path(folder) / f"{rank}-{dtype}"
            show(f"rank {shrink_adapter(run, small, rank, dtype).rank}, {dtype}", small)


if __name__ == "__main__":
    main()

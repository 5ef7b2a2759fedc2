"""What a scale is worth: raw numbers as vectors, with a scale and without, beside numbers standardised by hand.

    python benchmarks/raw_numbers.py                        # all tasks
    python benchmarks/raw_numbers.py prices --seeds 0        # one task, one seed

All rows have the same text, so the model can read the target in the vector only. The table shows the loss on rows that
no training saw, as the mean over the seeds. The digits and the diabetes data come with scikit-learn, which
sentence-transformers installs.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from peft import get_peft_model
from sklearn.datasets import load_diabetes, load_digits
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion, VectorKind

BASE = "tiny_t5_v2"
RATINGS = ("free", "cheap", "modest", "fair", "dear", "costly", "lavish", "priceless")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LOWEST, HIGHEST = 0.5, 5000.0  # prices
EPOCHS, BATCH = 6, 16
LORA_LR, FUSION_LR = 2e-3, 1e-1
# For each way: the scale of the kind, and whether the numbers are standardised by hand.
WAYS: dict[str, tuple[str | None, bool]] = {
    "raw, no scale": (None, False),
    'raw, "standard"': ("standard", False),
    'raw, "log"': ("log", False),
    'by hand, "standard"': ("standard", True),
    "by hand, no scale": (None, True),
}
Task = tuple[np.ndarray, list[str]]  # vectors, float32 (rows, dim), and a target per row


def prices() -> Task:
    """Return prices from 0.5 to 5000, and a word for each eighth of their logarithms: width 1."""
    random = np.random.default_rng(0)
    shares = random.uniform(0, 1, 600)
    values = LOWEST * (HIGHEST / LOWEST) ** shares
    return values[:, None].astype(np.float32), [RATINGS[int(share * len(RATINGS))] for share in shares]


def readings() -> Task:
    """Return readings of a sensor, 100 and 5 for each unit with a little noise, and the unit's name: width 1."""
    random = np.random.default_rng(0)
    units = random.integers(0, 10, 600)
    values = 100 + 5 * (units + random.normal(0, 0.1, 600))
    return values[:, None].astype(np.float32), [DIGITS[unit] for unit in units]


def digits() -> Task:
    """Return images of digits, 8 x 8 grey values from 0 to 16, and their names: width 64."""
    images, names = load_digits(return_X_y=True)
    return images[:1000].astype(np.float32), [DIGITS[name] for name in names[:1000]]


def diabetes() -> Task:
    """Return ten raw measurements of 442 patients, and a word for the fifth that their progression is in: width 10."""
    measurements, progressions = load_diabetes(return_X_y=True, scaled=False)
    limits = np.quantile(progressions, [0.2, 0.4, 0.6, 0.8])
    return measurements.astype(np.float32), [RATINGS[np.searchsorted(limits, value)] for value in progressions]


def skewed() -> Task:
    """Return positive features that span orders of magnitude, around one of eight centres, and its word: width 64."""
    random = np.random.default_rng(0)
    groups, centres = random.integers(0, 8, 800), random.normal(0, 1, (8, 64))
    features = np.exp(2 * (centres[groups] + random.normal(0, 1, (800, 64))))
    return features.astype(np.float32), [RATINGS[group] for group in groups]


TASKS: dict[str, Callable[[], Task]] = {
    "prices": prices, "readings": readings, "digits": digits, "diabetes": diabetes, "skewed": skewed,
}  # fmt: skip


def loss(vectors: np.ndarray, targets: list[str], scale: str | None, by_hand: bool, lora: bool, seed: int) -> float:
    """Train on four fifths of the rows, and return the loss per token on the others.

    Args:
        vectors: Raw numbers, float32 (rows, dim).
        targets: The target of each row.
        scale: The scale of the kind.
        by_hand: Whether to standardise the numbers, with the mean and the deviation of the rows to train on.
        lora: Whether LoRA trains with the fusion layer; if not, the fusion layer alone.
        seed: Seed of the training.
    """
    set_seed(seed)
    order = np.random.default_rng(1).permutation(len(vectors))
    training, held_out = np.split(order, [len(order) * 4 // 5])
    if by_hand:
        deviation = vectors[training].std(0)
        vectors = (vectors - vectors[training].mean(0)) / np.where(deviation == 0, 1, deviation)
    kinds = {"numbers": VectorKind(vectors.shape[1], scale=scale)}
    processor = T5FusionProcessor(BASE, vectors=kinds, lexical_encoder=None, lexical_source="given")
    rows = processor.rows(["describe: it"] * len(vectors), targets, lexical_embeds=vectors)
    model = T5WithFusion(BASE, vectors=kinds, dtype=torch.float32)
    if lora:
        model = get_peft_model(model, model.lora_config())
    else:
        for name, weight in model.named_parameters():
            weight.requires_grad_(".fusion." in name)
    arguments = TrainingArguments(
        "runs/raw_numbers", num_train_epochs=EPOCHS if lora else 2 * EPOCHS, per_device_train_batch_size=BATCH,
        learning_rate=LORA_LR if lora else FUSION_LR, save_strategy="no", report_to="none", disable_tqdm=True,
        logging_strategy="no", seed=seed,
    )  # fmt: skip
    parts = [[rows[index] for index in part] for part in (training, held_out)]
    trainer = Trainer(model, arguments, DataCollatorWithFusion(processor), *parts)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return float(trainer.evaluate()["eval_loss"])


def main() -> None:
    """Print a table of losses: a row for each way, a column for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"some of {', '.join(TASKS)}; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fusion-only", action="store_true", help="train the fusion layer alone, without LoRA")
    given = parser.parse_args()
    tasks = given.tasks or list(TASKS)
    if unknown := [name for name in tasks if name not in TASKS]:
        parser.error(f"there is no task {unknown[0]!r}; expected some of {', '.join(TASKS)}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(f"| {'the fusion layer alone' if given.fusion_only else 'with LoRA'} | {' | '.join(tasks)} |")
    print("|---" * (len(tasks) + 1) + "|")
    for way, (scale, by_hand) in WAYS.items():
        losses = [
            statistics.mean(loss(*TASKS[task](), scale, by_hand, not given.fusion_only, seed) for seed in given.seeds)
            for task in tasks
        ]
        print(f"| {way} | {' | '.join(f'{value:.4f}' for value in losses)} |", flush=True)


if __name__ == "__main__":
    main()

"""Measure what the vectors add, and which way of training gets the most from them: the table of docs/method.md.

    python benchmarks/method.py RUNS [--seeds 0 1 2] [--variants recommended none ...]

Each variant is trained with each seed on the demo's task. The loss on the held-out rows is measured with their own
vectors and with other rows'; for the model that is trained without vectors, with none. Finished runs stay in RUNS and
are not repeated. The variants that begin with "six-steps" are what a user types in Python: `get_peft_model` with LoRA
on q and v, and the plain `Trainer`, in fp32. The others are `t5fusion train` with its options.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import Trainer, TrainingArguments

from t5fusion import DataCollatorWithFusion, T5WithFusion
from t5fusion.common.base_models import base_source
from t5fusion.common.losses import Losses, paired_bootstrap
from t5fusion.demo.demo import demo_inputs, demo_processor, demo_rows
from t5fusion.finetune.evaluation import change_vectors, losses
from t5fusion.finetune.options import TrainingOptions
from t5fusion.finetune.training import train
from t5fusion.hooks.trainer_hook import FusionCallback
from t5fusion.naming_t5fusion import NEWEST_EMBEDDED

BATCH = 16
# The published table was measured with transformers' own training steps. `main` switches the faster ones off too.
STEPS = {"packing": False}

VARIANTS = {
    "recommended": {},
    "none": {},
    "q-and-v": {"target_modules": ("q", "v")},
    "rank-8": {"rank": 8, "alpha": 8},
    "lr-2e-3": {"lr": 2e-3},
    "lr-4e-3": {"lr": 4e-3},
    "random-start": {"fusion_start": "random"},
    "random-start-fast": {"fusion_start": "random", "fusion_lr": 1e-2},
    "frozen": {"fusion_start": "random", "train_fusion": False, "target_modules": ("q", "v")},
    "full": {"full": True},
    "full-random-start": {"full": True, "fusion_start": "random"},
}
SIX_STEPS = ("six-steps", "six-steps-fit", "six-steps-random-start")


def run(variant: str, seed: int, args: argparse.Namespace) -> None:
    """Train and measure one variant with one seed, unless its result is there already."""
    file = args.folder / f"{variant}-{seed}.json"
    if file.exists():
        return
    training, held_out = demo_rows()
    processor = demo_processor(args.base, "body")
    inputs, test = demo_inputs(training, processor), demo_inputs(held_out, processor)
    if variant == "none":
        inputs, test = change_vectors(inputs, "none"), change_vectors(test, "none")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as output:
        if variant in SIX_STEPS:
            model = six_steps(variant, inputs, processor.tokenizer, seed, args, output)
        else:
            choice = VARIANTS[variant]
            options = TrainingOptions(
                base_model=args.base, epochs=args.epochs, batch_size=BATCH, seed=seed, **STEPS, **choice
            )
            model = train(inputs, test, processor, options, Path(output))
    result = {"variant": variant, "seed": seed, "seconds": time.monotonic() - start}
    for condition in ("true",) if variant == "none" else ("true", "shuffled"):
        measured = losses(model, change_vectors(test, condition), processor)
        result[condition] = {"sums": measured.sums.tolist(), "tokens": measured.tokens.tolist()}
    args.folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))


def six_steps(variant: str, rows: list[dict], tokenizer, seed: int, args: argparse.Namespace, output: str):
    """Return a PEFT model, trained as a user does in Python: LoRA on q and v, and the plain `Trainer`."""
    model = T5WithFusion(base_source(args.base), dtype=torch.float32)
    if variant == "six-steps-fit":
        model.fit_fusion(rows)
    torch.manual_seed(seed)
    peft_model = get_peft_model(
        model,
        LoraConfig(
            r=32, lora_alpha=32, target_modules=["q", "v"], lora_dropout=0.05, bias="none",
            task_type=TaskType.SEQ_2_SEQ_LM,
        ),
    )  # fmt: skip
    arguments = TrainingArguments(
        output, num_train_epochs=args.epochs, per_device_train_batch_size=BATCH, learning_rate=1e-3, seed=seed,
        report_to="none", save_strategy="no", logging_strategy="epoch", disable_tqdm=True,
    )  # fmt: skip
    collator = DataCollatorWithFusion(tokenizer)
    trainer = Trainer(model=peft_model, args=arguments, train_dataset=rows, data_collator=collator)
    if variant == "six-steps-random-start":
        trainer.remove_callback(FusionCallback)
    trainer.train()
    return peft_model


def pooled(runs: list[dict], condition: str) -> Losses:
    """Return each row's losses in one condition ("true" or "shuffled" vectors), summed over the seeds.

    The bootstrap then draws whole rows.
    """
    sums = np.sum([run[condition]["sums"] for run in runs], axis=0)
    return Losses(sums, np.sum([run[condition]["tokens"] for run in runs], axis=0))


def report(folder: Path) -> None:
    """Print the table of all finished runs."""
    runs = sorted((json.loads(file.read_text()) for file in folder.glob("*.json")), key=lambda r: r["variant"])
    groups = {variant: list(group) for variant, group in itertools.groupby(runs, key=lambda r: r["variant"])}
    trained_without = groups.get("none", [])
    print("| variant | seeds | loss | shuffled - true (95 %) | without - with (95 %) |\n|---|---|---|---|---|")
    for variant, group in groups.items():
        true = pooled(group, "true")
        shuffled_minus_true = without_minus_true = ""
        if variant != "none":
            shuffled_minus_true = "{:+.3f} ({:+.3f} to {:+.3f})".format(
                *paired_bootstrap(pooled(group, "shuffled"), true)
            )
            seeds = {run["seed"] for run in group}
            same_seeds = [run for run in trained_without if run["seed"] in seeds]
            if len(same_seeds) == len(seeds):
                difference = paired_bootstrap(pooled(same_seeds, "true"), true)
                without_minus_true = "{:+.3f} ({:+.3f} to {:+.3f})".format(*difference)
        print(f"| {variant} | {len(group)} | {true.mean:.3f} | {shuffled_minus_true} | {without_minus_true} |")


def main() -> None:
    """Train and measure what is not in the folder yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the finished runs")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="*", default=[*SIX_STEPS, *VARIANTS], choices=[*SIX_STEPS, *VARIANTS])
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--base", default=NEWEST_EMBEDDED)
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    T5WithFusion.fast_training = False
    for seed, variant in itertools.product(args.seeds, args.variants):
        run(variant, seed, args)
    report(args.folder)


if __name__ == "__main__":
    main()

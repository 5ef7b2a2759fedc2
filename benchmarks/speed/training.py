"""Training: seconds per 8 rows, share of the processor's bf16 peak, and peak memory, compared with other ways to train.

The rows have 36 tokens of text, 18 of target and one vector, as in the pipeline that this package replaces ("the old
pipeline"). LoRA of rank 32 is on q and v. All ways train the same fused model, so "transformers" means the model's
training steps without `fast_t5fusion.py`.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

from t5fusion import DataCollatorWithFusion
from t5fusion.common.base_models import base_source
from t5fusion.naming_t5fusion import NEWEST_EMBEDDED

from .measure import Result, in_turn, peak_megabytes
from .shape import flan_t5_small

TEXT, TARGET, VECTOR = 36, 18, 384
OLD_LENGTH = 128  # to which the old pipeline pads each row
UNEVEN = (4, 36)  # shortest and longest text of uneven rows; targets are half as long
MATRIX = 2048  # rows and columns of the matrices that show the processor's peak
REPEATS = 5
MEMORY_ROWS = 32
OLD, FP32 = "the old pipeline", "transformers fp32"
GOALS = {OLD: 12, FP32: 2.5}  # how many times faster than each
PEAK_GOAL = 0.4  # share of the processor's bf16 peak

Batch = dict[str, torch.Tensor]
Step = Callable[[], None]


def peft_model(fast: bool, **shape: int) -> torch.nn.Module:
    """Return a fused model with LoRA and random weights, in training mode; `shape` are fields of its config."""
    model = flan_t5_small(**shape)
    model.fast_training = fast
    config = LoraConfig(
        r=32, lora_alpha=32, target_modules=["q", "v"], lora_dropout=0.05, bias="none",
        task_type=TaskType.SEQ_2_SEQ_LM,
    )  # fmt: skip
    return get_peft_model(model, config).train()


def even_batch(model: torch.nn.Module, rows: int, padded_to: int | None = None) -> Batch:
    """Return a batch of rows of one length, padded to `padded_to` as the old pipeline pads."""
    numbers = torch.Generator().manual_seed(0)
    text = torch.randint(3, 32000, (rows, TEXT), generator=numbers)
    text[:, 0] = model.config.lexical_token_id
    labels = torch.randint(3, 32000, (rows, TARGET), generator=numbers)
    mask = torch.ones_like(text)
    if padded_to is not None:
        text, mask = (torch.nn.functional.pad(each, (0, padded_to - TEXT)) for each in (text, mask))
        labels = torch.nn.functional.pad(labels, (0, padded_to - TARGET), value=-100)
    vectors = torch.nn.functional.normalize(torch.randn(rows, VECTOR, generator=numbers))
    return {"input_ids": text, "attention_mask": mask, "labels": labels, "lexical_embeds": vectors}


def step_of(model: torch.nn.Module, batches: list[Batch], bf16: bool) -> Step:
    """Return a function that trains on one batch after another: forward, backward, clipping, AdamW."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    device = weights[0].device.type
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)

    def step() -> None:
        for batch in batches:
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return step


def measure_steps() -> Result:
    """Measure seconds per 8 rows of one length."""
    plain, fast = peft_model(fast=False), peft_model(fast=True)
    eight, many = even_batch(plain, 8), even_batch(plain, 32)
    left, right = (torch.randn(MATRIX, MATRIX).bfloat16() for _ in range(2))
    times = in_turn(
        {
            OLD: step_of(plain, [even_batch(plain, 8, OLD_LENGTH)], bf16=False),
            FP32: step_of(plain, [eight], bf16=False),
            "transformers bf16": step_of(plain, [eight], bf16=True),
            "transformers bf16, batch 32": step_of(plain, [many], bf16=True),
            "bf16": step_of(fast, [eight], bf16=True),
            "bf16, batch 32": step_of(fast, [many], bf16=True),
            "peak": lambda: torch.mm(left, right),
        },
        repeats=REPEATS,
    )
    seconds = {name: each.median / (4 if "batch 32" in name else 1) for name, each in times.items()}
    peak = 2 * MATRIX**3 / seconds.pop("peak")
    ours = {name: seconds.pop(name) for name in ("bf16", "bf16, batch 32")}
    # The fast steps replace functions, which the counter cannot see into. The work is the same.
    with FlopCounterMode(display=False) as counter:
        step_of(plain, [eight], bf16=True)()
    share = counter.get_total_flops() / ours["bf16"] / peak
    share_of_many = counter.get_total_flops() / ours["bf16, batch 32"] / peak
    ratios = {f"faster than {name}": value / ours["bf16"] for name, value in seconds.items() if "batch 32" not in name}
    ratios["batch 32: faster than transformers bf16, batch 32"] = (
        seconds["transformers bf16, batch 32"] / ours["bf16, batch 32"]
    )
    ratios |= {"share of the bf16 peak": share, "batch 32: share of the bf16 peak": share_of_many}
    met = all(ratios[f"faster than {name}"] >= goal for name, goal in GOALS.items()) and share >= PEAK_GOAL
    faster = ", ".join(f"{goal} x {name}" for name, goal in GOALS.items())
    return Result(
        work="training, 8 rows of 36 + 18 tokens",
        unit="s",
        goal=f"{faster}, {100 * PEAK_GOAL:.0f} % of the bf16 peak",
        peers=seconds,
        ours=ours,
        ratios=ratios,
        met=met,
        notes="docs/speed.md, Training, says what limits a step, and what was tried.",
    )


def measure_packing() -> Result:
    """Measure seconds per 8 rows of uneven length, padded and packed."""
    model = peft_model(fast=True)
    padded, packed = ([batch] for batch in uneven_batches(model, rows=32))
    times = in_turn(
        {"padded": step_of(model, padded, bf16=True), "packed": step_of(model, packed, bf16=True)}, repeats=REPEATS
    )
    peers, ours = {"padded": times["padded"].median / 4}, {"packed": times["packed"].median / 4}
    ratio = peers["padded"] / ours["packed"]
    return Result(
        work="training, 8 of 32 rows of 4 to 36 + 2 to 18 tokens, bf16",
        unit="s",
        goal="packed rows faster than padded ones",
        peers=peers,
        ours=ours,
        ratios={"faster than padded": ratio},
        met=ratio > 1,
        notes="",
    )


def uneven_batches(model: torch.nn.Module, rows: int) -> tuple[Batch, Batch]:
    """Return the same uneven rows as a padded and as a packed batch."""
    tokenizer = AutoTokenizer.from_pretrained(base_source(NEWEST_EMBEDDED))
    numbers = torch.Generator().manual_seed(0)
    uneven_rows = []
    for _ in range(rows):
        length = int(torch.randint(*UNEVEN, (), generator=numbers))
        uneven_rows.append(
            {
                "input_ids": torch.randint(3, 6000, (length,), generator=numbers).tolist(),
                "labels": torch.randint(3, 6000, (max(2, length // 2),), generator=numbers).tolist(),
                "lexical_embeds": torch.randn(VECTOR, generator=numbers).tolist(),
            }
        )
    batches = []
    for packing in (False, True):
        collator = DataCollatorWithFusion(tokenizer, packing=packing)
        batch = dict(collator(uneven_rows))
        is_placeholder = batch["input_ids"] == collator.lexical_token_id
        batch["input_ids"] = batch["input_ids"].masked_fill(is_placeholder, model.config.lexical_token_id)
        batches.append(batch)
    return batches[0], batches[1]


def measure_memory() -> Result:
    """Measure the peak memory of a process that trains in bf16 on batches of 32 rows."""
    ways = {"transformers bf16": "plain", "bf16": "fast"}
    peaks = {name: _peak_of_process(way) for name, way in ways.items()}
    ratio = peaks["bf16"] / peaks["transformers bf16"]
    return Result(
        work=f"training, peak memory of a process, batch {MEMORY_ROWS}",
        unit="MB",
        goal="no more than transformers bf16",
        peers={"transformers bf16": peaks["transformers bf16"]},
        ours={"bf16": peaks["bf16"]},
        ratios={"share of transformers bf16": ratio},
        met=ratio <= 1,
        notes="",
    )


def _peak_of_process(way: str) -> float:
    """Return the peak memory, in MB, of a new process that trains a few steps."""
    command = [sys.executable, "-m", f"{__package__}.training", "--memory", way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _train_and_print_peak(way: str) -> None:
    model = peft_model(fast=way == "fast")
    step = step_of(model, [even_batch(model, MEMORY_ROWS)], bf16=True)
    for _ in range(3):
        step()
    print(peak_megabytes())


def measure() -> list[Result]:
    """Return the results of all measurements of this module."""
    return [measure_steps(), measure_packing(), measure_memory()]


def show_profile() -> None:
    """Print where the time of a step in bf16 goes."""
    model = peft_model(fast=True)
    step = step_of(model, [even_batch(model, 8)], bf16=True)
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            step()
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50))


def main() -> None:
    """Print the results, or with --profile where the time of a step goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", choices=["plain", "fast"], help="train a few steps, and print the peak memory")
    parser.add_argument("--profile", action="store_true", help="show where the time of a step in bf16 goes")
    args = parser.parse_args()
    if args.memory:
        _train_and_print_peak(args.memory)
    elif args.profile:
        show_profile()
    else:
        for result in measure():
            print(result)


if __name__ == "__main__":
    main()

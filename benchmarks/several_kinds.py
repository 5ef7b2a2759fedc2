"""What several kinds of vectors are worth together: the name of a Debian package -> its section.

    python benchmarks/several_kinds.py RUNS                # everything that the page shows
    python benchmarks/several_kinds.py RUNS --seeds 0

Beside its name, a package has vectors of three kinds: `words`, its one-line description by all-MiniLM-L6-v2 (384
numbers); `tags`, its debtags, a one for each (about 300); and `depends`, its place in the graph of dependencies (a
truncated SVD, 128). A model is trained with none of them, with each, with all, and with all but each. The packages are
those of `apt-cache dumpavail`, one of each source package, and at most 300 of a section. Finished runs stay in RUNS and
are not repeated.
"""

import argparse
import json
import re
import statistics
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import get_peft_model
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion, VectorKind
from t5fusion.common.losses import Losses, paired_bootstrap
from t5fusion.finetune.evaluation import losses
from t5fusion.finetune.metrics import text_scores
from t5fusion.naming_t5fusion import NEWEST_EMBEDDED

KINDS = ("words", "tags", "depends")
CHOICES: tuple[tuple[str, ...], ...] = (
    (), *((kind,) for kind in KINDS), *(tuple(k for k in KINDS if k != kind) for kind in KINDS), KINDS,
)  # fmt: skip
TRAINING_ROWS, HELD_OUT_ROWS = 5500, 1500
MOST_PACKAGES = 300  # of a section: a third of all packages are libraries of Perl or of C
FEWEST_PACKAGES = 20  # Rarer tags, dependencies and sections are left out.
GRAPH_DIM = 128
EPOCHS, BATCH, LEARNING_RATE, RANK = 3, 32, 2e-3, 16


class Package(NamedTuple):
    """A Debian package."""

    name: str
    section: str
    description: str
    tags: frozenset[str]
    depends: frozenset[str]


def packages() -> list[Package]:
    """Return one package of each source package, at most 300 of a section, in a fixed order.

    Raises:
        RuntimeError: apt knows too few packages with tags.
    """
    listed = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True, text=True).stdout
    by_source = {}
    for record in listed.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): ?(.*(?:\n .*)*)", record, re.MULTILINE))
        if {"Package", "Section", "Description", "Tag"} <= fields.keys():
            source = fields.get("Source", fields["Package"]).split()[0]
            by_source.setdefault(source, _package(fields))
    by_section: dict[str, list[Package]] = {}
    everything = list(by_source.values())
    for index in np.random.default_rng(0).permutation(len(everything)):
        by_section.setdefault(everything[index].section, []).append(everything[index])
    kept = [p for section in by_section.values() if len(section) >= FEWEST_PACKAGES for p in section[:MOST_PACKAGES]]
    if len(kept) < TRAINING_ROWS + HELD_OUT_ROWS:
        raise RuntimeError(
            f"{len(kept)} source packages of apt have tags and a frequent section; expected at least "
            f"{TRAINING_ROWS + HELD_OUT_ROWS}. Run `apt-get update` on Debian."
        )
    return [kept[index] for index in np.random.default_rng(0).permutation(len(kept))]


def _package(fields: dict[str, str]) -> Package:
    tags = re.split(r",\s*", fields["Tag"])
    depends = re.findall(r"(?:^|,|\|)\s*([a-z0-9][a-z0-9+.-]+)", fields.get("Depends", ""))
    section = fields["Section"].rpartition("/")[2]
    return Package(fields["Package"], section, fields["Description"], frozenset(tags), frozenset(depends))


def vectors_of(all_packages: list[Package]) -> dict[str, np.ndarray]:
    """Return the vectors of each kind, float32 (packages, dim)."""
    graph = TfidfTransformer().fit_transform(_indicators([package.depends for package in all_packages]))
    return {
        "words": T5FusionProcessor(NEWEST_EMBEDDED).encode([package.description for package in all_packages]),
        "tags": _indicators([package.tags for package in all_packages]).toarray(),
        "depends": TruncatedSVD(GRAPH_DIM, random_state=0).fit_transform(graph).astype(np.float32),
    }


def _indicators(sets: Sequence[frozenset[str]]) -> csr_matrix:
    """Return a one for each word that a set holds, float32 (sets, words). Rare words are left out."""
    counts = Counter(word for words in sets for word in words)
    columns = {word: index for index, word in enumerate(sorted(w for w in counts if counts[w] >= FEWEST_PACKAGES))}
    ones = [(row, columns[word]) for row, words in enumerate(sets) for word in words if word in columns]
    return csr_matrix((np.ones(len(ones), np.float32), tuple(zip(*ones, strict=True))), shape=(len(sets), len(columns)))


def run(
    chosen: tuple[str, ...], seed: int, all_packages: list[Package], vectors: dict[str, np.ndarray], args: Any
) -> None:
    """Train and measure one model with the chosen kinds and one seed, unless its result is there already."""
    file = args.folder / f"{'+'.join(chosen) or 'none'}-{seed}.json"
    if file.exists():
        return
    set_seed(seed)
    # A model without vectors is the same model, whose rows have none.
    kinds = {kind: VectorKind(vectors[kind].shape[1], scale=args.scale) for kind in chosen or KINDS[:1]}
    processor = T5FusionProcessor(
        NEWEST_EMBEDDED, vectors=kinds, lexical_encoder=None, lexical_source="given", template="Package: {text}"
    )
    rows = processor.rows(
        [package.name for package in all_packages],
        [package.section for package in all_packages],
        lexical_embeds=[{kind: vectors[kind][row] for kind in chosen} for row in range(len(all_packages))],
    )
    training, held_out = rows[HELD_OUT_ROWS : HELD_OUT_ROWS + TRAINING_ROWS], rows[:HELD_OUT_ROWS]
    model = T5WithFusion(NEWEST_EMBEDDED, vectors=kinds, dtype=torch.float32)
    model = get_peft_model(model, model.lora_config(r=RANK, lora_alpha=RANK))
    arguments = TrainingArguments(
        str(args.folder / "trainer"), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE, seed=seed, use_cpu=True, bf16=args.bf16, save_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, DataCollatorWithFusion(processor), training)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    measured = losses(model, held_out, processor)
    texts = write_sections(model, processor, held_out)
    correct = text_scores(texts, [package.section for package in all_packages[:HELD_OUT_ROWS]])["exact_match"]
    result = {"sums": measured.sums.tolist(), "tokens": measured.tokens.tolist(), "correct": correct}
    file.write_text(json.dumps(result))
    print(f"{file.stem}: loss {measured.mean:.4f}, {correct:.1%} right", flush=True)


def write_sections(model: Any, processor: T5FusionProcessor, rows: list[dict]) -> list[str]:
    """Return the section that the model writes for each row."""
    collator, texts = DataCollatorWithFusion(processor), []
    for first in range(0, len(rows), BATCH):
        batch = collator([{k: v for k, v in row.items() if k != "labels"} for row in rows[first : first + BATCH]])
        texts += processor.batch_decode(model.generate(**batch, max_new_tokens=12), skip_special_tokens=True)
    return texts


def pooled(results: list[dict]) -> Losses:
    """Return each row's losses, summed over the seeds, so that the bootstrap draws whole rows."""
    return Losses(*(np.sum([result[name] for result in results], axis=0) for name in ("sums", "tokens")))


def report(folder: Path) -> None:
    """Print the table of all finished runs, and what each kind adds to the others."""
    results: dict[tuple[str, ...], list[dict]] = {}
    for chosen in CHOICES:
        files = sorted(folder.glob(f"{'+'.join(chosen) or 'none'}-*.json"))
        if files:
            results[chosen] = [json.loads(file.read_text()) for file in files]
    print("| vectors | seeds | loss | right | against all three (95 %) |\n|---|---|---|---|---|")
    everything = pooled(results[KINDS]) if KINDS in results else None
    for chosen, group in results.items():
        mean, right = pooled(group).mean, statistics.mean(result["correct"] for result in group)
        against = ""
        if everything is not None and chosen != KINDS and len(group) == len(results[KINDS]):
            against = "{:+.3f} ({:+.3f} to {:+.3f})".format(*paired_bootstrap(pooled(group), everything))
        print(f"| {', '.join(chosen) or 'none'} | {len(group)} | {mean:.3f} | {right:.1%} | {against} |")


def main() -> None:
    """Train and measure what is not in the folder yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RUNS", help="folder of the finished runs")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--scale", choices=("standard", "log"), help="scale of all kinds; default: none")
    parser.add_argument("--bf16", action="store_true", help="train in bf16, which is faster on some processors")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    args.folder.mkdir(parents=True, exist_ok=True)
    all_packages = packages()[: HELD_OUT_ROWS + TRAINING_ROWS]
    vectors = vectors_of(all_packages)
    print(", ".join(f"{kind}: {matrix.shape[1]} numbers" for kind, matrix in vectors.items()), flush=True)
    for seed in args.seeds:
        for chosen in CHOICES:
            run(chosen, seed, all_packages, vectors, args)
    report(args.folder)


if __name__ == "__main__":
    main()

"""The inversion curve: how much of a sentence a T5 can write from the sentence's vector alone.

    python benchmarks/inversion.py RUNS                                       # everything that the page shows
    python benchmarks/inversion.py RUNS --variants linear mlp --tokens 1 16   # a part of it
    python benchmarks/inversion.py RUNS --text book.txt                       # with the sentences of a text file

The vector of a sentence (all-MiniLM-L6-v2) becomes k tokens, and a row has no text beside them. The sentences are those
of the interpreter's docstrings, which `tiny_t5_v2` was not pretrained on. Beside our projectors stands the transform of
vec2text (Morris et al., 2023, "Text Embeddings Reveal (Almost) As Much As Text", section 3.3), in the same model,
trained on the same rows with the same steps. Finished runs stay in RUNS and are not repeated.
"""

import argparse
import hashlib
import json
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from sacrebleu.metrics import BLEU
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from t5fusion import DataCollatorWithFusion, T5FusionProcessor, T5WithFusion, VectorKind
from t5fusion.demo.harvest import harvest, standard_library
from t5fusion.finetune.evaluation import losses
from t5fusion.finetune.metrics import text_scores
from t5fusion.hooks.trainer_hook import FusionCallback
from t5fusion.naming_t5fusion import NEWEST_EMBEDDED

BASE = NEWEST_EMBEDDED
TOKENS = (1, 2, 4, 8, 16)
BATCH, EPOCHS, RANK = 32, 3, 16
TRAINING_ROWS, HELD_OUT_ROWS = 8000, 500
FEWEST_WORDS, MOST_WORDS = 4, 16  # of a sentence
LEARNING_RATES = {"lora": 3e-3, "full": 1e-3}
VARIANTS = ("linear", "mlp", "vec2text", "linear-random", "mlp-random")


def docstring_sentences() -> Iterator[str]:
    """Yield the sentences of the docstrings of the interpreter's standard library."""
    for row in harvest(standard_library(), max_body=0):
        yield from sentences_of(row.docstring)


def sentences_of(text: str) -> Iterator[str]:
    """Yield the sentences of a text that are prose and neither very short nor very long."""
    for paragraph in text.split("\n\n"):
        for sentence in re.split(r"(?<=[.!?:;])\s+", " ".join(paragraph.split())):
            words = sentence.split()
            if FEWEST_WORDS <= len(words) <= MOST_WORDS and re.fullmatch(r"[A-Z][\w ,;:'()-]*[.!?:;]", sentence):
                yield sentence


def split(sentences: Iterator[str], training_rows: int) -> tuple[list[str], list[str]]:
    """Return sentences to train on and sentences to test on, in an order that depends on the sentences only."""
    ordered = sorted(set(sentences), key=lambda sentence: hashlib.sha256(sentence.encode()).digest())
    return ordered[HELD_OUT_ROWS : HELD_OUT_ROWS + training_rows], ordered[:HELD_OUT_ROWS]


def vec2text_transform(dim: int, tokens: int, d_model: int) -> nn.Sequential:
    """Return the transform of vec2text: linear, dropout, GELU, linear, with PyTorch's initial weights and no norm."""
    return nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0), nn.GELU(), nn.Linear(dim, tokens * d_model))


def fused_model(variant: str, tokens: int, dim: int) -> T5WithFusion:
    """Return an untrained model of a variant."""
    projector = "mlp" if variant.startswith("mlp") else "linear"
    kinds = {"sentence": VectorKind(dim, tokens=tokens, projector=projector, scale=None)}
    model = T5WithFusion(BASE, vectors=kinds, dtype=torch.float32)
    if variant == "vec2text":
        fusion = model.encoder.fusion
        d_model = model.config.d_model
        fusion.projection, fusion.norm = vec2text_transform(dim, tokens, d_model), NoNorm(d_model)
    return model


@dataclass
class Data:
    """The sentences of both parts, and their vectors, float32 (sentences, dim)."""

    training: list[str]
    held_out: list[str]
    training_vectors: np.ndarray
    held_out_vectors: np.ndarray


def encode(sentences: Iterator[str], training_rows: int) -> Data:
    """Split the sentences, and encode them with all-MiniLM-L6-v2."""
    parts = split(sentences, training_rows)
    processor = T5FusionProcessor(BASE)
    return Data(*parts, *(processor.encode(part) for part in parts))


class NoNorm(nn.Identity):
    """No norm. Its weight is only what the projector reads the dtype and the width of a token embedding from."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(d_model))


def run(variant: str, tokens: int, method: str, seed: int, data: Data, args: argparse.Namespace) -> None:
    """Train one variant by a method ("lora" or "full") with one seed, and measure it, unless its result is there."""
    file = args.folder / f"{variant}-{tokens}-{method}-{seed}.json"
    if file.exists():
        return
    start = time.monotonic()
    set_seed(seed)
    model = fused_model(variant, tokens, data.training_vectors.shape[1])
    processor = T5FusionProcessor(
        BASE, vectors=model.config.kinds, lexical_encoder=None, lexical_source="given", template=""
    )
    rows = processor.rows(text_target=data.training, lexical_embeds=data.training_vectors)
    if variant in ("linear", "mlp"):
        model.fit_fusion(rows)
    if method == "lora":
        model = get_peft_model(model, model.lora_config(r=RANK, lora_alpha=RANK))
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    arguments = TrainingArguments(
        str(args.folder / "trainer"), num_train_epochs=args.epochs, per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATES[method], warmup_steps=50, lr_scheduler_type="cosine", seed=seed, use_cpu=True,
        bf16=args.bf16, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, DataCollatorWithFusion(processor), rows)
    trainer.remove_callback(FusionCallback)  # It would start the variants that begin at random.
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    held_out = processor.rows(text_target=data.held_out, lexical_embeds=data.held_out_vectors)
    parts = {"held out": held_out, "training": rows[: len(held_out)]}
    part_losses = {name: losses(model, part, processor).mean for name, part in parts.items()}
    texts = write_sentences(model, processor, data.held_out_vectors)
    scores = text_scores(texts, data.held_out)
    seconds = time.monotonic() - start
    result = {
        "losses": part_losses,
        "scores": scores,
        "trained": trained,
        "seconds": seconds,
        "texts": texts,
        "references": data.held_out,
    }
    file.write_text(json.dumps(result, indent=1))
    print(f"{file.stem}: losses {part_losses}, BLEU {100 * scores['bleu']:.2f} in {seconds:.0f} s", flush=True)


def write_sentences(model: Any, processor: T5FusionProcessor, vectors: np.ndarray) -> list[str]:
    """Return the sentence that the model writes for each vector, by greedy search."""
    model.eval()
    texts: list[str] = []
    for part in np.array_split(vectors, range(BATCH, len(vectors), BATCH)):
        ids = model.generate(**processor(lexical_embeds=part), max_new_tokens=40, do_sample=False, num_beams=1)
        texts += processor.batch_decode(ids, skip_special_tokens=True)
    return texts


def bleu_interval(results: list[dict]) -> tuple[float, float, float]:
    """Return corpus BLEU (0 to 100), as the mean over the seeds, and its 95 % interval: a bootstrap over sentences."""
    metric = BLEU()
    sums = np.array([[metric._extract_corpus_statistics([text], [[reference]])[0]
                      for text, reference in zip(result["texts"], result["references"], strict=True)]
                     for result in results])  # (seeds, sentences, counts)  # fmt: skip
    random = np.random.default_rng(0)
    draws = [random.integers(0, sums.shape[1], sums.shape[1]) for _ in range(1000)]

    def score(rows: Any) -> float:
        return statistics.mean(metric._compute_score_from_stats(seed[rows].sum(0).tolist()).score for seed in sums)

    low, high = np.quantile([score(rows) for rows in draws], [0.025, 0.975])
    return score(slice(None)), low, high


def report(folder: Path) -> None:
    """Print a row for each variant, number of tokens and way of training, over all finished seeds."""
    groups: dict[tuple[str, int, str], list[dict]] = {}
    for file in folder.glob("*.json"):
        *variant, tokens, method, _ = file.stem.split("-")
        groups.setdefault(("-".join(variant), int(tokens), method), []).append(json.loads(file.read_text()))
    print("| projector | tokens | trained | weights trained | seeds | loss | BLEU (95 %) | token F1 | exact match |")
    print("|---" * 9 + "|")
    for (variant, tokens, method), results in sorted(groups.items(), key=lambda item: (item[0][2], *item[0][:2])):
        bleu, low, high = bleu_interval(results)
        f1, exact = (statistics.mean(r["scores"][name] for r in results) for name in ("token_f1", "exact_match"))
        loss = statistics.mean(result["losses"]["held out"] for result in results)
        print(
            f"| {variant} | {tokens} | {method} | {results[0]['trained'] / 1e6:.2f} M | {len(results)} | "
            f"{loss:.3f} | {bleu:.2f} ({low:.2f} to {high:.2f}) | {f1:.3f} | {exact:.3f} |"
        )


def main() -> None:
    """Train and measure what is not in the folder yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RUNS", help="folder of the finished runs")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=["linear", "mlp", "vec2text"])
    parser.add_argument("--tokens", nargs="*", type=int, default=list(TOKENS))
    parser.add_argument("--train", nargs="*", choices=list(LEARNING_RATES), default=["lora"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--bf16", action="store_true", help="train in bf16, which is faster on some processors")
    parser.add_argument("--rows", type=int, default=TRAINING_ROWS, help="number of sentences to train on")
    parser.add_argument("--text", type=Path, help="text file to take the sentences from")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    args.folder.mkdir(parents=True, exist_ok=True)
    text = None if args.text is None else args.text.read_text(encoding="utf-8", errors="replace")
    data = encode(docstring_sentences() if text is None else sentences_of(text), args.rows)
    print(f"{len(data.training):,} sentences to train on, {len(data.held_out)} to test on", flush=True)
    # Seed by seed, so that an interrupted run has all variants.
    for seed in args.seeds:
        for method in args.train:
            for variant in args.variants:
                for tokens in args.tokens:
                    run(variant, tokens, method, seed, data, args)
    report(args.folder)


if __name__ == "__main__":
    main()

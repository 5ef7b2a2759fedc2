"""Generation: seconds per batch, compared with other ways to generate, and how much an engine changes the texts.

The model of the speed measurement is random and has flan-t5-small's shape. Rows have 36 tokens, one vector, and 24 new
tokens. CTranslate2 reads no vectors: it runs the base model.

The texts are those of the demo's model for the names that its training held out.
"""

import copy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer

from t5fusion.common.losses import Losses, paired_bootstrap
from t5fusion.common.run_folder import load_trained
from t5fusion.demo.demo import DECODING, demo, demo_inputs, demo_rows
from t5fusion.engines import choose_engine, load_engine
from t5fusion.finetune import generate_texts

from .measure import Result, in_turn, peak_megabytes
from .shape import flan_t5_small

ROWS, LENGTH, NEW_TOKENS, BEAMS = 8, 36, 24, 4
MEMORY_GOAL = 2
ENGINES = ("fp32", "bf16", "int8")
WORDS = 32000  # ids of flan-t5-small's vocabulary that stand for words
TEXT_ROWS = 200  # held-out names whose texts are compared
RUN = Path("build/bench/demo")  # where the demo's model is, or will be
REFERENCE, PEER = "transformers fp32", "CTranslate2 int8"


def measure() -> list[Result]:
    """Return the measurements of this module."""
    return [*measure_speed(), measure_memory(), measure_texts()]


def measure_speed() -> list[Result]:
    """Measure greedy decoding of a batch, beams, and greedy decoding of one row."""
    model = flan_t5_small().eval()
    batch = random_batch(model)
    one_row = {name: value[:1] for name, value in batch.items()}
    ways = contenders(model)
    return [
        compare(f"generate, batch {ROWS} x {NEW_TOKENS} tokens, greedy", ways, batch, 1, goal=5, goal_of_peer=1.0),
        compare(f"generate, batch {ROWS} x {NEW_TOKENS} tokens, beam {BEAMS}", ways, batch, BEAMS, 4, 0.8),
        compare(f"generate, one row x {NEW_TOKENS} tokens, greedy (latency)", ways, one_row, 1, 4, None),
    ]


Way = Callable[[dict[str, torch.Tensor], int], Any]  # takes a batch and a number of beams


def random_batch(model: Any) -> dict[str, torch.Tensor]:
    """Return rows of random tokens, with one random vector each."""
    numbers = torch.Generator().manual_seed(0)
    ids = torch.randint(3, WORDS, (ROWS, LENGTH), generator=numbers)
    ids[:, 0] = model.config.lexical_token_id
    vectors = torch.nn.functional.normalize(torch.randn(ROWS, 1, model.config.lexical_dim, generator=numbers), dim=-1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "lexical_embeds": vectors}


def measure_memory() -> Result:
    """Measure the peak memory of a process that generates one batch."""
    command = [sys.executable, "-c", f"from {__package__}.generation import print_peak; print_peak()"]
    peaks = {
        name: float(subprocess.run([*command, name], stdout=subprocess.PIPE, text=True, check=True).stdout)
        for name in (REFERENCE, *ENGINES)
    }
    peer, ours = peaks.pop(REFERENCE), {f"engine {name}": peak for name, peak in peaks.items()}
    return Result(
        work=f"generate, peak memory of a process, batch {ROWS} x {NEW_TOKENS} tokens, greedy",
        unit="MB",
        goal=f"at most {MEMORY_GOAL} x {REFERENCE}",
        peers={REFERENCE: peer},
        ours=ours,
        ratios={f"{name}: of {REFERENCE}": peak / peer for name, peak in ours.items()},
        met=max(ours.values()) <= MEMORY_GOAL * peer,
        notes="An engine is a copy of the model with packed weights, and the model stays in memory.",
    )


def print_peak() -> None:
    """Generate one batch in the way that the command line names, and print the peak memory of this process."""
    model: Any = flan_t5_small().eval()
    name = sys.argv[1]
    generator = model if name == REFERENCE else load_engine(model, name)
    generator.generate(**random_batch(model), max_new_tokens=NEW_TOKENS, eos_token_id=None, do_sample=False)
    print(peak_megabytes())


def contenders(model: Any) -> dict[str, Way]:
    """Return the ways to generate, by name."""
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    models = {REFERENCE: model, "transformers bf16": copy.deepcopy(model).bfloat16(), "torch dynamic int8": quantised}
    models |= {name: load_engine(model, name) for name in ENGINES if choose_engine(model, name).name == name}

    def way_of(each: Any) -> Way:
        def generate(batch: dict[str, torch.Tensor], beams: int) -> Any:
            vectors = batch["lexical_embeds"].to(each.dtype)
            return each.generate(
                **batch | {"lexical_embeds": vectors}, num_beams=beams, do_sample=False,
                max_new_tokens=NEW_TOKENS, eos_token_id=None,
            )  # fmt: skip

        return generate

    return {name: way_of(each) for name, each in models.items()} | ctranslate2_ways(model)


def ctranslate2_ways(model: Any) -> dict[str, Way]:
    """Return CTranslate2 in fp32 and int8; nothing if it is not installed. It runs the plain T5, without vectors."""
    try:
        import ctranslate2
        from ctranslate2.converters.converter import Converter
        from ctranslate2.converters.transformers import T5Loader
    except ImportError:
        return {}

    class Vocabulary:
        """What the converter asks of a tokenizer, for ids without words."""

        pad_token, eos_token, unk_token = "<pad>", "</s>", "<unk>"

        def get_vocab(self) -> dict[str, int]:
            return {self.convert_ids_to_tokens(number): number for number in range(model.config.vocab_size)}

        def convert_ids_to_tokens(self, number: int) -> str:
            return ("<pad>", "</s>", "<unk>")[number] if number < 3 else f"t{number}"

    class PlainT5(Converter):
        def _load(self) -> Any:
            plain = copy.deepcopy(model)
            plain.config.tie_word_embeddings = plain.config.scale_decoder_outputs
            with torch.no_grad():
                return T5Loader()(plain, Vocabulary())

    folder = tempfile.mkdtemp()
    PlainT5().convert(folder, force=True)
    words = Vocabulary()

    def way_of(numbers: str) -> Way:
        translator = ctranslate2.Translator(
            folder, device="cpu", compute_type=numbers, inter_threads=1, intra_threads=torch.get_num_threads()
        )

        def generate(batch: dict[str, torch.Tensor], beams: int) -> Any:
            # The placeholder's id lies above all ids of words. The plain T5 reads some word in its place.
            rows = [
                [words.convert_ids_to_tokens(token % WORDS) for token in row] for row in batch["input_ids"].tolist()
            ]
            return translator.translate_batch(
                rows, beam_size=beams, max_decoding_length=NEW_TOKENS, min_decoding_length=NEW_TOKENS
            )

        return generate

    return {"CTranslate2 fp32": way_of("float32"), PEER: way_of("int8")}


def compare(
    work: str, ways: dict[str, Way], batch: dict[str, torch.Tensor], beams: int, goal: float, goal_of_peer: float | None
) -> Result:
    """Measure all ways in turn.

    Args:
        work: What is measured.
        ways: The ways to generate.
        batch: The rows.
        beams: Number of beams.
        goal: How many times faster than transformers in fp32 the fastest engine should be.
        goal_of_peer: How many times as fast as CTranslate2 in int8 it should be; None for no goal.
    """
    times = in_turn({name: (lambda way=way: way(batch, beams)) for name, way in ways.items()})  # type: ignore[misc]
    seconds = {name: each.median for name, each in times.items()}
    ours = {f"engine {name}": seconds[name] for name in ENGINES if name in seconds}
    peers = {name: value for name, value in seconds.items() if name not in ENGINES}
    fastest = min(ours.values())
    ratios = {f"{name}: faster than {REFERENCE}": peers[REFERENCE] / value for name, value in ours.items()}
    met = peers[REFERENCE] / fastest >= goal
    words = f"{goal} x {REFERENCE}"
    if PEER in peers:
        ratios[f"fastest: faster than {PEER}"] = peers[PEER] / fastest
        if goal_of_peer is not None:
            met = met and peers[PEER] / fastest >= goal_of_peer
            words += f", {goal_of_peer:g} x {PEER}"
    return Result(
        work=work,
        unit="s",
        goal=words,
        peers=peers,
        ours=ours,
        ratios=ratios,
        met=met,
        notes="" if met else NOTES[beams],
    )


NOTES = {
    1: "Two thirds of the time goes into the products with the weights, which are read once per token. The rest is "
    "attention, activations, norms, and torch's overhead for some 300 operations per token. Tried: bf16 for all "
    "matrices but the head (closer to fp32, slower), int8 for all (faster, farther from fp32), oneDNN's int8 (slower "
    "for 8 rows).",
    BEAMS: "Half of the time goes into the products with the weights, an eighth into the attention, and a sixth into "
    "transformers' beam search over all logits (log-softmax, the best of 128,512 per row). Tried: torch's fused "
    "attention (slower for four queries).",
}


def measure_texts() -> Result:
    """Measure how much the engines change the demo's texts: tokens, whole texts, and ROUGE-L with its interval."""
    if not (RUN / "training.json").exists():
        demo(RUN)
    model, processor = load_trained(RUN)
    names = demo_rows()[1][:TEXT_ROWS]
    rows = demo_inputs(names, processor)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def scores_of(texts: list[str]) -> Losses:
        pairs = zip(names, texts, strict=True)
        scores = [scorer.score(row.description, text)["rougeL"].fmeasure for row, text in pairs]
        return Losses(np.array(scores), np.ones(len(scores)))

    texts = {"torch": generate_texts(model, rows, processor, **DECODING)}
    ours, ratios, notes = {}, {}, []
    for name in ENGINES:
        texts[name] = generate_texts(load_engine(model, name), rows, processor, **DECODING)
        interval = paired_bootstrap(scores_of(texts[name]), scores_of(texts["torch"]))
        ours[f"engine {name}, ROUGE-L"] = scores_of(texts[name]).mean
        ratios[f"{name}: tokens as in the reference"] = tokens_alike(texts[name], texts["torch"], processor)
        same = sum(a == b for a, b in zip(texts[name], texts["torch"], strict=True)) / len(rows)
        ratios[f"{name}: texts as in the reference"] = same
        notes.append(
            f"{name}: ROUGE-L {interval.difference:+.4f} (95 % between {interval.low:+.4f} and {interval.high:+.4f})"
        )
    return Result(
        work=f"texts of the demo's model for {len(rows)} held-out names",
        unit="ROUGE-L",
        goal="fp32: all texts as in the reference",
        peers={"torch, ROUGE-L": scores_of(texts["torch"]).mean},
        ours=ours,
        ratios=ratios,
        met=ratios["fp32: texts as in the reference"] == 1,
        notes="; ".join(notes),
    )


def tokens_alike(texts: list[str], references: list[str], processor: Any) -> float:
    """Return the part of the references' tokens that the texts have at the same place."""
    alike = total = 0
    for ids, expected in zip(
        processor.tokenizer(texts)["input_ids"], processor.tokenizer(references)["input_ids"], strict=True
    ):
        alike += sum(a == b for a, b in zip(ids, expected, strict=False))
        total += len(expected)
    return alike / total


if __name__ == "__main__":
    for result in measure():
        print(result)

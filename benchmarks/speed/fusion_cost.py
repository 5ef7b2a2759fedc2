"""What fusion costs: a training step and generation of the fused model with a vector per row, against the plain T5.

The plain T5 reads one token more per row, so that both read inputs of one length. Fast training steps are switched off,
since the plain T5 has none.
"""

from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

from t5fusion import T5WithFusion

from .measure import Result, Times, in_turn
from .shape import flan_t5_small

ROWS, LENGTH, TARGET, NEW_TOKENS = 8, 36, 18, 24
REPEATS, GOAL = 9, 1.02


def measure() -> list[Result]:
    """Measure a training step, greedy decoding and four beams."""
    fused = flan_t5_small()
    fused.fast_training = False
    plain = plain_t5(fused)
    numbers = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 32000, (ROWS, LENGTH + 1), generator=numbers)
    labels = torch.randint(5, 32000, (ROWS, TARGET), generator=numbers)
    vectors = torch.nn.functional.normalize(torch.randn(ROWS, 384, generator=numbers), dim=-1)
    with_place = ids.clone()
    with_place[:, 0] = fused.config.lexical_token_id
    plain_inputs = {"input_ids": ids}
    fused_inputs = {"input_ids": with_place, "lexical_embeds": vectors}
    results = []
    for model in (plain, fused):
        model.train()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
    results.append(
        compare(
            "a training step, all weights, fp32",
            in_turn(
                {
                    "T5": lambda: step(plain, plain_inputs, labels),
                    "T5WithFusion": lambda: step(fused, fused_inputs, labels),
                },
                repeats=REPEATS,
            ),
        )
    )
    for name, beams in (("greedy", 1), ("4 beams", 4)):
        times = in_turn(
            {
                "T5": lambda beams=beams: generate(plain, plain_inputs, beams),
                "T5WithFusion": lambda beams=beams: generate(fused, fused_inputs, beams),
            },
            repeats=REPEATS,
        )
        results.append(compare(f"generate {NEW_TOKENS} tokens for {ROWS} rows, {name}, fp32", times))
    return results


def plain_t5(fused: T5WithFusion) -> T5ForConditionalGeneration:
    """Return the plain T5 with the weights of a fused model, its untied head included."""
    config = T5Config.from_dict(fused.config.to_dict() | {"model_type": "t5"})
    config.tie_word_embeddings = config.scale_decoder_outputs = False  # transformers sets both to true.
    plain = T5ForConditionalGeneration(config)
    plain.set_input_embeddings(plain.shared)  # one table for encoder and decoder
    missing = plain.load_state_dict(fused.state_dict(), strict=False).missing_keys
    assert not missing and plain.lm_head.weight is not plain.shared.weight, missing
    return plain


def step(model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> None:
    """Compute the loss and its gradients."""
    model.zero_grad()
    model(**inputs, labels=labels).loss.backward()


@torch.no_grad()
def generate(model: Any, inputs: dict[str, torch.Tensor], beams: int) -> None:
    """Generate `NEW_TOKENS` tokens for each row."""
    model.eval().generate(**inputs, num_beams=beams, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)


def compare(work: str, times: dict[str, Times]) -> Result:
    """Return the result for one kind of work. The ratio is that of the fastest repeats, which noise touches least."""
    plain, fused = times["T5"], times["T5WithFusion"]
    ratio = fused.min / plain.min
    return Result(
        work=work,
        unit="seconds",
        goal=f"below {GOAL} x T5",
        peers={"T5": plain.median},
        ours={"T5WithFusion": fused.median},
        ratios={"of the medians": fused.median / plain.median, "of the fastest repeats": ratio},
        met=ratio < GOAL,
        notes="" if ratio < GOAL else "The difference is the checks of a batch and the projection of the vectors.",
    )

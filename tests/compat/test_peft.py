"""Checks of docs/compatibility.md on PEFT's tuners: targets of all tuners, other checks of the most used ones."""

import pytest
import torch
from compat.peft_tuners import (
    generates,
    hotswaps,
    merges,
    mixed_batch,
    same_targets,
    saves_and_reloads,
    switches,
    trains,
    trains_fusion_too,
    tuners,
    weighs,
)
from compat.table import attempt

TUNERS = dict(tuners())
MOST_USED = (
    "LORA", "LORA, use_dora", "ADALORA", "IA3", "OFT", "LN_TUNING", "PROMPT_TUNING", "PREFIX_TUNING", "TRAINABLE_TOKENS"
)  # fmt: skip


def test_the_list_is_read_from_peft():
    assert len(TUNERS) > 50
    assert {"LORA", "LORA, use_rslora", "LORA, start pissa", "SHIRA", "P_TUNING", "OSF"} <= TUNERS.keys()


@pytest.mark.parametrize("row", TUNERS)
def test_the_targets_are_those_of_t5(row):
    assert attempt(same_targets, "T5WithFusion", TUNERS[row]).status == attempt(same_targets, "T5", TUNERS[row]).status


@pytest.mark.parametrize("row", [*MOST_USED, "OSF", "MULTITASK_PROMPT_TUNING"])
def test_it_trains_and_the_vectors_count(row):
    trains("T5WithFusion", TUNERS[row])


@pytest.mark.parametrize("row", MOST_USED)
def test_it_generates(row):
    generates("T5WithFusion", TUNERS[row])


@pytest.mark.parametrize(
    "check", [hotswaps, merges, mixed_batch, saves_and_reloads, switches, trains_fusion_too, weighs]
)
def test_lora(check):
    check("T5WithFusion", TUNERS["LORA"])


def test_virtual_tokens_stand_before_the_vectors():
    """PEFT puts virtual tokens before the inputs that the processor and the collator make."""
    peft_model, batch = TUNERS["PROMPT_TUNING"].wrap("T5WithFusion")
    seen = []
    encoder = peft_model.eval().get_base_model().encoder
    encoder.block[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        peft_model(**batch)
        prompts = peft_model.get_prompt(batch_size=2)[:, : peft_model.active_peft_config.num_virtual_tokens]
        vectors = encoder.fusion(batch["lexical_embeds"])
    tokens = prompts.shape[1]
    assert torch.equal(seen[0][:, :tokens], prompts)
    assert torch.equal(seen[0][0, tokens], vectors[0, 0])
    assert torch.equal(seen[0][1, tokens : tokens + 2], vectors[1])

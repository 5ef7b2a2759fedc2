"""Some of transformers' own common tests, which must pass on the fused model as on the plain T5."""

import subprocess

import pytest
from compat import transformers_suite

CHOSEN = (
    "test_attention_outputs",
    "test_correct_missing_keys",
    "test_enable_input_require_grads",
    "test_hidden_states_output",
    "test_init_weights_can_init_buffers",
    "test_inputs_embeds",
    "test_keep_in_fp32_modules",
    "test_model_outputs_equivalence",
    "test_problem_types",
    "test_resize_embeddings_untied",
    "test_resize_tokens_embeddings",
    "test_retain_grad_hidden_states_attentions",
    "test_save_load",
    "test_tied_weights_keys",
    "test_training_gradient_checkpointing",
)


def test_some_of_transformers_own():
    try:
        transformers_suite.source_of("transformers")
    except subprocess.CalledProcessError:
        pytest.skip("no package index at hand, from which to fetch the tests")
    outcomes = transformers_suite.run("-k", f"({' or '.join(CHOSEN)}) and not deepspeed")
    assert {test for _, test in outcomes} >= {*CHOSEN}
    for (kind, test), outcome in outcomes.items():
        assert outcome.status == outcomes["TestT5", test].status, f"{kind}.{test}: {outcome}"

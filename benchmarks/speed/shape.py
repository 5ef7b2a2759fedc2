"""The published shape of google/flan-t5-small, with random weights, for measurements of speed."""

from typing import Any

import torch

from t5fusion import T5FusionConfig, T5WithFusion

LARGE = {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16}  # google/flan-t5-large


def flan_t5_small(**changes: Any) -> T5WithFusion:
    """Return a fused model of flan-t5-small's shape with random weights, the same at every call.

    Args:
        **changes: Fields of the config.
    """
    sizes = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "vocab_size": 32128}
    config = T5FusionConfig(
        **sizes | changes, feed_forward_proj="gated-gelu", decoder_start_token_id=0, tie_word_embeddings=False
    )
    config.scale_decoder_outputs = False  # Its head is untied.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5WithFusion(config)
    # A trained head gives logits of a few units. Random logits of some tens give subnormal gradients, which are slow.
    with torch.no_grad():
        model.lm_head.weight.mul_(config.d_model**-0.5)
    return model

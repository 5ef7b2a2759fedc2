"""How texts are decoded: the fields of transformers' GenerationConfig that `generate` takes as settings."""

import hashlib
from collections.abc import Mapping
from typing import Any

from ..common.errors import did_you_mean
from .setting_values import fit_setting, set_by_option

SETTINGS: dict[str, type] = {  # the fields, and the type of their values
    **dict.fromkeys(("do_sample", "early_stopping", "renormalize_logits", "remove_invalid_values", "use_cache"), bool),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), int),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty"), float),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), list),
    "exponential_decay_length_penalty": list,
}
SAMPLING: dict[str, type] = {  # fields that have an effect only with do_sample=true
    **dict.fromkeys(("temperature", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"), float),
    "top_k": int,
}
OPTION_FOR = {  # fields that an option of ours sets, and the option's name in Python and on the command line
    "num_beams": ("num_beams", "--beams"),
    **dict.fromkeys(("max_length", "max_new_tokens"), ("max_new_tokens", "--max-new-tokens")),
}


def check_decoding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of decoding, checked by name and type.

    Raises:
        ValueError: A name is unknown, is that of an option, or has no effect without `do_sample`; or a value has
            another type.
    """
    known, checked = SETTINGS | SAMPLING, {}
    for name, value in settings.items():
        if name in OPTION_FOR:
            raise set_by_option(name, *OPTION_FOR[name])
        if name not in known:
            hint = did_you_mean(name, known, f"expected one of {', '.join(known)}.")
            raise ValueError(f"`generate` takes no setting `{name}`; {hint}")
        checked[name] = fit_setting(name, value, known[name])
    idle = [f"`{name}`" for name in settings if name in SAMPLING]
    if idle and not settings.get("do_sample"):
        raise ValueError(f"{' and '.join(idle)} {'have' if len(idle) > 1 else 'has'} no effect without do_sample=true.")
    return checked


def seed_of_chunk(seed: int, first: int) -> int:
    """Return the seed for a chunk of rows. It depends on nothing else, so a resumed run draws the same texts.

    Args:
        seed: The seed of the whole run.
        first: Number of the chunk's first row.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {first}".encode()).digest()[:4])

"""How texts are decoded: the fields of transformers' GenerationConfig that `generate` takes as settings."""

import hashlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

SETTINGS: dict[str, type] = {  # the fields, and the type of their values
    **dict.fromkeys(("do_sample", "early_stopping", "renormalize_logits", "remove_invalid_values", "use_cache"), bool),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), int),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty"), float),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), list),
    "exponential_decay_length_penalty": list,
}
SAMPLING: dict[str, type] = {  # those that change only how texts are drawn
    **dict.fromkeys(("temperature", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"), float),
    "top_k": int,
}
OPTION_FOR = {"num_beams": "num_beams (--beams)", "max_length": "max_new_tokens (--max-new-tokens)"}
OPTION_FOR["max_new_tokens"] = OPTION_FOR["max_length"]
WORDS = {bool: "true or false", int: "a whole number", float: "a number", list: "a list"}


def check_decoding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of decoding, checked by name and type.

    Raises:
        ValueError: a name is unknown, is that of an option, or has no effect without `do_sample`; or a value has
            another type.
    """
    known = SETTINGS | SAMPLING
    for name, value in settings.items():
        if name in OPTION_FOR:
            raise ValueError(f"`{name}` is no setting: the option {OPTION_FOR[name]} sets it. Give that.")
        if name not in known:
            nearest = get_close_matches(name, known, 1)
            hint = f"Did you mean `{nearest[0]}`?" if nearest else f"Expected one of {', '.join(known)}."
            raise ValueError(f"`generate` takes no setting `{name}`. {hint}")
        kind = known[name]
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"the setting `{name}` is {value!r}; expected {WORDS[kind]}.")
    idle = [f"`{name}`" for name in settings if name in SAMPLING]
    if idle and not settings.get("do_sample"):
        raise ValueError(f"{' and '.join(idle)} {'have' if len(idle) > 1 else 'has'} no effect without do_sample=true.")
    return dict(settings)


def seed_of_chunk(seed: int, first: int) -> int:
    """Return the seed for the chunk of rows that begins with this one, so that a resumed run draws the same texts."""
    return int.from_bytes(hashlib.sha256(f"{seed} {first}".encode()).digest()[:4])

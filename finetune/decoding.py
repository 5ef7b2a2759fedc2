"""How texts are decoded: beams, lengths, batches, and the fields of transformers' GenerationConfig that can be set."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..common.errors import did_you_mean
from ..engines.names import REFERENCE, check_engine
from .setting_values import fit_setting, set_by_option

SETTINGS: dict[str, type] = {  # fields that can be set, and the types of their values
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
OPTION_FOR = {  # fields that an option sets, and the option's name in Python and on the command line
    "num_beams": ("num_beams", "--beams"),
    **dict.fromkeys(("max_length", "max_new_tokens"), ("max_new_tokens", "--max-new-tokens")),
}


@dataclass(frozen=True)
class Decoding:
    """How the texts of a run are decoded.

    Args:
        num_beams, max_new_tokens: Arguments of `model.generate`.
        batch_size: Rows in a batch.
        settings: Fields of transformers' GenerationConfig; None for none.
        seed: Seed of the random numbers, if `do_sample` is among the settings.
        engine: What generates, a name in `t5fusion.engines.ENGINES`.
    """

    num_beams: int = 1
    max_new_tokens: int = 64
    batch_size: int = 64
    settings: Mapping[str, Any] | None = None
    seed: int = 42
    engine: str = REFERENCE

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `model.generate`.

        Raises:
            ValueError: A setting cannot be used (see `check_decoding`), or there is no such engine.
        """
        check_engine(self.engine)
        beams_and_length = {"num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens}
        return beams_and_length | check_decoding(self.settings or {})


def check_decoding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names and the types of settings, and return them with values of the types that the fields have.

    Raises:
        ValueError: A name is unknown, belongs to an option, or has no effect without `do_sample`; or a value has the
            wrong type.
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
    """Return the seed for a chunk of rows. It depends on the arguments alone, so a resumed run draws the same texts.

    Args:
        seed: The seed of the whole run.
        first: Number of the chunk's first row.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {first}".encode()).digest()[:4], "big")

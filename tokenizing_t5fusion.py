"""Tokenizing that leaves the tokenizer unchanged, so that no setting of a call is saved with it."""

from typing import Any

# If a tokenizer's file has truncation or padding, loading copies these values to its settings. Nothing reads them.
CALL_SETTINGS = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of")


def tokenize(
    tokenizer: Any,
    texts: list[str],
    max_length: int | None = None,
    name: str = "`max_length`",
    as_targets: bool = False,
) -> list[list[int]]:
    """Return the ids of each text, as `tokenizer(texts, truncation=True, max_length=max_length)` gives them.

    A fast tokenizer remembers the length of its last call with truncation. Other threads would read that length, and
    it would be saved. So this function calls the tokenizer without truncation, and cuts long rows itself.

    Args:
        tokenizer: A tokenizer of transformers, fast or not.
        texts: One or more texts.
        max_length: Largest number of ids per text, with the special tokens around it; None for whole texts.
        name: What the message calls `max_length`.
        as_targets: Whether the texts are targets, which the model should generate.

    Raises:
        ValueError: `max_length` leaves no room for the special tokens around a text.
    """
    argument = "text_target" if as_targets else "text"
    if not tokenizer.is_fast:  # A tokenizer in Python remembers nothing.
        truncation = {"truncation": max_length is not None, "max_length": max_length}
        cut: list[list[int]] = tokenizer(**{argument: texts}, verbose=False, **truncation)["input_ids"]
        return cut
    all_ids: list[list[int]] = tokenizer(**{argument: texts}, verbose=False)["input_ids"]
    if max_length is None:
        return all_ids
    too_long = [row for row, ids in enumerate(all_ids) if len(ids) > max_length]
    if too_long:
        long_texts = {argument: [texts[row] for row in too_long]}
        without_special = tokenizer(**long_texts, add_special_tokens=False, verbose=False)["input_ids"]
        for row, text_ids in zip(too_long, without_special, strict=True):
            all_ids[row] = _cut(all_ids[row], text_ids, max_length, name, tokenizer.truncation_side)
    return all_ids


def _cut(ids: list[int], text_ids: list[int], max_length: int, name: str, side: str) -> list[int]:
    """Return `ids`, which are `text_ids` with special tokens around them, cut to `max_length`. Only text is cut.

    Args:
        ids: The ids with special tokens.
        text_ids: The ids of the text alone.
        max_length: Largest number of ids.
        name: What the message calls `max_length`.
        side: The end that is cut, "right" or "left".

    Raises:
        ValueError: `max_length` leaves no room for the special tokens.
    """
    special_count = len(ids) - len(text_ids)
    room = max_length - special_count
    if room < 0:
        raise ValueError(
            f"{name} is {max_length}, which leaves no room for the {special_count} special tokens around a text; "
            f"expected at least {special_count}."
        )
    front = next(start for start in range(special_count + 1) if ids[start : start + len(text_ids)] == text_ids)
    kept_ids = text_ids[:room] if side == "right" else text_ids[len(text_ids) - room :]
    return ids[:front] + kept_ids + ids[front + len(text_ids) :]


def forget_last_call(tokenizer: Any) -> None:
    """Remove the truncation and padding of earlier calls from a tokenizer, in place, so that they are not saved."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    for name in CALL_SETTINGS:
        tokenizer.init_kwargs.pop(name, None)

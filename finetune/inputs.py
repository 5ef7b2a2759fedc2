"""From rows to the inputs of the model: token ids, labels and vectors."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import BatchFeature

from ..collating_t5fusion import DataCollatorWithFusion
from ..common.console import say
from ..common.run_folder import MAX_SOURCE, MAX_TARGET
from ..configuration_t5fusion import LEXICAL_TOKEN
from ..processing_t5fusion import T5FusionProcessor
from .data import Columns, given_vectors
from .vector_cache import encode_cached, encode_distinct


def make_inputs(
    rows: Dataset,
    columns: Columns,
    processor: T5FusionProcessor,
    limits: tuple[int, int],
    vectors: bool = True,
    keep: bool = True,
    numbers: Sequence[int] | None = None,
    cut: Counter | None = None,
) -> list[dict]:
    """The inputs of rows that have text in all columns, with the vectors that the processor's recipe asks for.

    Args:
        limits: most tokens of a text and of a target.
        vectors: whether to give the model vectors.
        keep: whether to keep the vectors that the encoder makes on disk.
        numbers: the rows' numbers in their file, to name a row by in an error; None to name it by its text.
        cut: counts rows, as in `prepare`.

    Raises:
        ValueError: the vectors are missing, or of another width than the processor's.
    """
    encode = encode_cached if keep else encode_distinct
    made: Any = None

    def name_row(index: int) -> str:
        return f"row {numbers[index]}" if numbers is not None else f"the row of {rows[index][columns.text]!r}"

    if vectors and columns.vector:
        made = given_vectors(rows, columns.vector, name_row)
        width = next((len(each) for each in made if each is not None), processor.lexical_dim)
        if width != processor.lexical_dim:
            expected = f"expected {processor.lexical_dim}, as in training"
            raise ValueError(f"column {columns.vector!r} holds vectors of {width} numbers; {expected}.")
    elif vectors and columns.lexical:
        made = encode(rows[columns.lexical], processor)
    elif vectors and processor.lexical_source == "text":
        made = encode(rows[columns.text], processor)
    elif vectors and processor.lexical_source == "given":
        raise ValueError(
            "this model's vectors are not made of the text itself. Give rows of a file with --lexical-column or "
            "--vector-column, as in training, or --no-vectors."
        )
    targets = rows[columns.target] if columns.target else None
    return prepare(rows[columns.text], targets, made, processor, limits[0], limits[1], cut)


def prepare(
    texts: Sequence[str],
    targets: Sequence[str] | None,
    vectors: torch.Tensor | Sequence[torch.Tensor | None] | None,
    processor: T5FusionProcessor,
    max_source: int = MAX_SOURCE,
    max_target: int = MAX_TARGET,
    cut: Counter | None = None,
) -> list[dict]:
    """Rows for `DataCollatorWithFusion`, which places `<lexical>`.

    A row trains on what the processor makes of its text at inference: the text reaches the tokenizer (and the lexical
    encoder) as it is, and what becomes of newlines and other white space is the tokenizer's choice.

    Args:
        texts, targets: one each per row.
        vectors: float32 (rows, dim), or (rows, vectors, dim), or one tensor a row, None for a row without; None where
            no row has one.
        max_source, max_target: most tokens of a text (its template included) and of a target.
        cut: counts the rows, those that are cut and those without a vector, for `say_counted`, where the rows are a
            part of a set; None to say it at once.

    Returns:
        A dict per row: `input_ids`, `attention_mask`, `labels`, lists of int; `lexical_embeds`, a tensor, in the rows
        that have a vector.
    """
    prompts = [processor.template.replace("{text}", text) for text in texts]
    # the collator places each row's placeholders, where the text does not hold them itself
    placed = vectors is not None and any(LEXICAL_TOKEN in prompt for prompt in prompts)
    made = processor(
        texts, lexical_embeds=vectors if placed else False, text_target=targets, return_tensors=None,
        max_length=max_source, max_target_length=max_target,
    )  # fmt: skip
    counted = Counter() if cut is None else cut
    counted.update(inputs=len(prompts), **{"targets": len(targets)} if targets else {})
    counted["cut inputs"] += _cut(prompts, made["input_ids"], max_source, processor.tokenizer)
    counted["cut targets"] += _cut(targets or [], made.get("labels", []), max_target, processor.tokenizer)
    counted["without vectors"] += 0 if vectors is None else sum(vector is None for vector in vectors)
    if cut is None:
        say_counted(counted, max_source, max_target)
    fields = {name: values for name, values in made.items() if name != "lexical_embeds"}
    rows = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
    for row, vector in zip(rows, vectors if vectors is not None else [None] * len(rows), strict=True):
        if vector is not None:
            row["lexical_embeds"] = vector
    return rows


def _cut(texts: Sequence[str], ids: Sequence[list[int]], most: int, tokenizer) -> int:
    whole = [text for text, row in zip(texts, ids, strict=True) if len(row) == most]  # those that may have been cut
    return sum(len(row) > most for row in tokenizer(whole)["input_ids"]) if whole else 0


def say_counted(counted: Counter, max_source: int, max_target: int) -> None:
    """Says how many of the rows that `prepare` counted are cut, and how many have no vector where others have one."""
    for what, most in (("inputs", max_source), ("targets", max_target)):
        if counted[f"cut {what}"]:
            say(f"{counted[f'cut {what}']} of {counted[what]} {what} are longer than {most} tokens, and cut.")
    if counted["without vectors"]:
        say(f"{counted['without vectors']} of {counted['inputs']} rows have no vector; they are read by text alone.")


def batches(
    rows: list[dict], processor: T5FusionProcessor, batch_size: int, length: str, progress: str | None = None
) -> Iterator[tuple[list[int], BatchFeature]]:
    """Indices and collated batches of rows whose field `length` is of like length, so that there is little padding."""
    collate = DataCollatorWithFusion(processor.tokenizer)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][length]))
    for start in tqdm(range(0, len(order), batch_size), desc=progress, disable=None if progress else True, leave=False):
        indices = order[start : start + batch_size]
        yield indices, collate([rows[index] for index in indices])

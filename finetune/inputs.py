"""Make the model's inputs from rows: token ids, labels and vectors."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from datasets import Dataset
from transformers import BatchFeature

from ..collating_t5fusion import DataCollatorWithFusion
from ..common.console import say
from ..common.limits import MAX_SOURCE, MAX_TARGET
from ..kinds_t5fusion import LEXICAL_TOKEN
from ..processing_t5fusion import T5FusionProcessor
from .data import BLOCK, Columns, read_vectors, texts_of
from .vector_cache import encode_cached, encode_distinct

VectorsOfRows = torch.Tensor | Sequence[torch.Tensor | None]


def make_inputs(
    rows: Dataset,
    columns: Columns,
    processor: T5FusionProcessor,
    limits: tuple[int, int],
    vectors: bool = True,
    keep: bool = True,
    numbers: Sequence[int] | None = None,
    counts: Counter | None = None,
    progress: bool = True,
) -> list[dict]:
    """Return the model's inputs for rows of a data set, with the vectors that the processor's recipe asks for.

    Args:
        rows: Rows that have text in each column of texts.
        columns: The columns to read.
        processor: The tokenizer and the recipe.
        limits: Longest text and longest target, in tokens.
        vectors: Whether to give the model vectors.
        keep: Whether to keep on disk the vectors that the encoder makes.
        numbers: Number of each row in its file, for errors; if None, errors quote the row's text.
        counts: As for `prepare`.
        progress: Whether to show how far the encoder has come; see `encode_cached`.

    Raises:
        ValueError: The vectors are missing, or their width is not the processor's; or the model reads several kinds of
            vectors, which a file cannot give yet.
    """
    updated = Counter() if counts is None else counts
    parts = input_parts(rows, columns, processor, limits, updated, vectors, keep, numbers, progress)
    inputs = [row for part in parts for row in part]
    if counts is None:
        report_counts(updated, *limits)
    return inputs


def input_parts(
    rows: Dataset,
    columns: Columns,
    processor: T5FusionProcessor,
    limits: tuple[int, int],
    counts: Counter,
    vectors: bool = True,
    keep: bool = True,
    numbers: Sequence[int] | None = None,
    progress: bool = True,
) -> Iterator[list[dict]]:
    """Yield what `make_inputs` returns, at most `BLOCK` rows at a time, so that a large set is never whole in memory.

    Args, Raises:
        As for `make_inputs`.
    """
    if vectors and len(processor.kinds) > 1:
        raise ValueError(
            f"this model reads several kinds of vectors ({', '.join(processor.kinds)}), and the command line reads one "
            "kind. Call the model from Python, with `lexical_embeds={KIND: VECTORS, ...}`; or give --no-vectors."
        )
    row_vectors = _vectors_of(rows, columns, processor, keep, numbers, progress) if vectors else None
    vector_of_row = None if row_vectors is None else iter(row_vectors)
    texts, targets = texts_of(rows, columns.text), texts_of(rows, columns.target) if columns.target else None
    placed = vector_of_row is not None and _has_placeholders(processor, texts_of(rows, columns.text))
    while part := list(islice(texts, BLOCK)):
        part_targets = None if targets is None else list(islice(targets, len(part)))
        part_vectors = None if vector_of_row is None else list(islice(vector_of_row, len(part)))
        yield prepare(part, part_targets, part_vectors, processor, *limits, counts, placed)


def _has_placeholders(processor: T5FusionProcessor, texts: Iterable[str]) -> bool:
    """Return whether a text, or the template, contains a placeholder.

    If so, the processor inserts the placeholders of all rows. Otherwise the collator does.
    """
    return any(LEXICAL_TOKEN in processor.template.replace("{text}", text) for text in texts)


def _vectors_of(
    rows: Dataset,
    columns: Columns,
    processor: T5FusionProcessor,
    keep: bool,
    numbers: Sequence[int] | None,
    progress: bool,
) -> Iterable[torch.Tensor | None] | None:
    """Return the vectors of rows, as the columns and the recipe say; None if the recipe has none."""

    def encode(texts: Sequence[str]) -> torch.Tensor:
        return encode_cached(texts, processor, progress) if keep else encode_distinct(texts, processor)

    if columns.vector:
        return _vectors_in_column(rows, columns, processor.lexical_dim, numbers)
    if columns.lexical:
        return encode(rows[columns.lexical][:])
    if processor.lexical_source == "text":
        return encode(rows[columns.text][:])
    if processor.lexical_source == "given":
        raise ValueError(
            "this model's vectors are not made from the text itself. Give rows of a file with --lexical-column or "
            "--vector-column, as in training, or --no-vectors."
        )
    return None


def _vectors_in_column(
    rows: Dataset, columns: Columns, lexical_dim: int, numbers: Sequence[int] | None
) -> Iterator[torch.Tensor | None]:
    """Yield the vectors in the vector column; raise ValueError if their width is not `lexical_dim`."""

    def name_row(index: int) -> str:
        return f"row {numbers[index]}" if numbers is not None else f"the row of {rows[index][columns.text]!r}"

    for vector in read_vectors(rows, str(columns.vector), name_row):
        if vector is not None and len(vector) != lexical_dim:
            raise ValueError(
                f"column {columns.vector!r} holds vectors of {len(vector)} numbers; expected {lexical_dim}, as in "
                "training."
            )
        yield vector


def prepare(
    texts: Sequence[str],
    targets: Sequence[str] | None,
    vectors: VectorsOfRows | None,
    processor: T5FusionProcessor,
    max_source: int = MAX_SOURCE,
    max_target: int = MAX_TARGET,
    counts: Counter | None = None,
    has_placeholders: bool | None = None,
) -> list[dict]:
    """Return the model's inputs for texts, as `DataCollatorWithFusion` reads them. The collator inserts `<lexical>`.

    In training, a row has the same inputs that the processor makes from its text at inference. The text stays
    unchanged, with its newlines and other white space.

    Args:
        texts: The text of each row.
        targets: The target of each row; None for no labels.
        vectors: float32 (rows, dim) or (rows, vectors, dim); or one tensor per row, None for a row without a vector.
            None if no row has a vector.
        processor: The tokenizer and the template.
        max_source, max_target: Longest text (with its template) and longest target, in tokens.
        counts: A counter that gets the numbers for `report_counts`, so that they can be reported once for a set that is
            prepared in parts. If None, they are reported here.
        has_placeholders: Whether any text of the whole set, or the template, contains a placeholder. Give it if `texts`
            are a part of a set. With None, `texts` are the whole set, and are searched.

    Returns:
        A dict per row: `input_ids`, `attention_mask` and `labels`, lists of int; and `lexical_embeds`, a tensor, in the
        rows that have a vector.
    """
    prompts = [processor.template.replace("{text}", text) for text in texts]
    # The collator adds the placeholders. But if a text contains some of its own, the processor adds all of them.
    if has_placeholders is None:
        has_placeholders = vectors is not None and _has_placeholders(processor, texts)
    encoded = processor(
        texts, lexical_embeds=vectors if has_placeholders else False, text_target=targets, return_tensors=None,
        max_length=max_source, max_target_length=max_target,
    )  # fmt: skip
    updated = Counter() if counts is None else counts
    updated.update(inputs=len(prompts), **{"targets": len(targets)} if targets else {})
    updated["cut inputs"] += _count_cut(prompts, encoded["input_ids"], max_source, processor.tokenizer)
    updated["cut targets"] += _count_cut(targets or [], encoded.get("labels", []), max_target, processor.tokenizer)
    updated["without vectors"] += 0 if vectors is None else sum(vector is None for vector in vectors)
    if counts is None:
        report_counts(updated, max_source, max_target)
    fields = {name: values for name, values in encoded.items() if name != "lexical_embeds"}
    rows = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
    for row, vector in zip(rows, vectors if vectors is not None else [None] * len(rows), strict=True):
        if vector is not None:
            row["lexical_embeds"] = vector
    return rows


def _count_cut(texts: Sequence[str], ids: Sequence[list[int]], limit: int, tokenizer) -> int:
    """Return how many texts have more than `limit` tokens. `ids` are their token ids after cutting."""
    # Only texts of this length can have been cut.
    at_limit = [text for text, row in zip(texts, ids, strict=True) if len(row) == limit]
    return sum(len(row) > limit for row in tokenizer(at_limit)["input_ids"]) if at_limit else 0


def report_counts(counts: Counter, max_source: int, max_target: int) -> None:
    """Print how many of the rows that `prepare` counted were cut, and how many lack a vector."""
    for kind, limit in (("inputs", max_source), ("targets", max_target)):
        if counts[f"cut {kind}"]:
            say(f"{counts[f'cut {kind}']} of {counts[kind]} {kind} are longer than {limit} tokens, and cut.")
    if counts["without vectors"]:
        say(f"{counts['without vectors']} of {counts['inputs']} rows have no vector; the model reads only their text.")


def batches(
    rows: list[dict], processor: T5FusionProcessor, batch_size: int, length: str
) -> Iterator[tuple[list[int], BatchFeature]]:
    """Yield batches of rows of similar length, which need little padding: the rows' indices, and the collated batch.

    Args:
        rows: Rows of `prepare`.
        processor: The processor of the rows.
        batch_size: Rows in a batch.
        length: The field whose length sorts the rows, such as "labels".
    """
    collate = DataCollatorWithFusion(processor)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][length]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, collate([rows[index] for index in indices])

"""Make the model's inputs from rows: token ids, labels and vectors."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from datasets import Dataset
from transformers import BatchFeature

from ..collating_t5fusion import DataCollatorWithFusion
from ..common.console import say
from ..common.limits import MAX_SOURCE, MAX_TARGET
from ..kinds_t5fusion import VectorKind, counted, token_of
from ..processing_t5fusion import T5FusionProcessor
from .column_vectors import NameRow, read_vectors
from .data import Columns, input_texts, numbered, row_names
from .row_blocks import BLOCK, texts_of
from .vector_cache import encode_cached, encode_distinct

WITHOUT_VECTORS = "without vectors"  # counts the rows without any vector
WITHOUT_KIND = "without vectors of kind "  # followed by the name of a kind: counts the rows that lack it
MOST_NUMBERS = 2**25  # A block of rows ends early if their vectors have this many numbers, which are 128 MB.
# The vectors of a row: (dim,) or (vectors, dim); with several kinds, a dict of these by kind; None for no vector.
VectorsOfRow = torch.Tensor | Mapping[str, torch.Tensor] | None
VectorsOfRows = torch.Tensor | Sequence[VectorsOfRow]


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
        columns: The columns to read. Without a column of the input text, each row has an empty one.
        processor: The tokenizer and the recipe.
        limits: Longest text and longest target, in tokens.
        vectors: Whether to give the model vectors.
        keep: Whether to keep on disk the vectors that the encoder makes.
        numbers: Number of each row in its file, for errors; if None, errors quote the row's text.
        counts: As for `prepare`.
        progress: Whether to show how far the encoder has come; see `encode_cached`.

    Raises:
        ValueError: The vectors are missing, or their width is not the processor's; a column has a kind that the model
            does not read; or there is a column of texts, and the model reads none, or the reverse.
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
    check_text_column(columns, processor)
    vectors_by_row = _vectors_by_row(rows, columns, processor, keep, numbers, progress) if vectors else None
    texts, targets = input_texts(rows, columns.text), texts_of(rows, columns.target) if columns.target else None
    placed = vectors_by_row is not None and _has_placeholders(processor, input_texts(rows, columns.text))
    first = 0
    while first < len(rows):
        part_vectors = None if vectors_by_row is None else _next_block(vectors_by_row)
        part = list(islice(texts, BLOCK if part_vectors is None else len(part_vectors)))
        part_targets = None if targets is None else list(islice(targets, len(part)))
        yield prepare(part, part_targets, part_vectors, processor, *limits, counts, placed)
        first += len(part)


def check_text_column(columns: Columns, processor: T5FusionProcessor) -> None:
    """Check that there is a column of the input text if the model reads one, and no column if nothing reads it.

    Raises:
        ValueError: A column is missing, or would have no effect.
    """
    prompt = f"its prompt is {processor.template!r}"
    if columns.text is None and processor.reads_text:
        raise ValueError(f"the model reads a text ({prompt}), and no column of texts is named. Pass --text-column.")
    encodes_text = processor.lexical_source == "text" and columns.lexical is None
    if columns.text is not None and not processor.reads_text and not encodes_text:
        raise ValueError(
            f"the model reads no text, only vectors ({prompt}, without {{text}}). Pass a file with a column of vectors "
            "(--vector-column COLUMN), and neither texts nor --text-column."
        )


def check_vector_columns(columns: Columns, processor: T5FusionProcessor, trained: Columns | None = None) -> None:
    """Check that a column of vectors, or of the texts that they are made from, is named if the recipe needs one.

    Args:
        columns: The columns to read.
        processor: The tokenizer and the recipe.
        trained: The columns of the training, for the error; None if they are not known.

    Raises:
        ValueError: The recipe needs a column, and none is named.
    """
    has_vectors = bool(_columns_of_kinds(columns, processor.kinds)) or uses_encoder(columns, processor)
    if has_vectors or processor.lexical_source != "given":
        return
    needed = "--vector-column COLUMN, or --lexical-column COLUMN if an encoder makes the vectors"
    if len(processor.kinds) > 1 and not processor.lexical_encoder:
        needed = " ".join(f"--vector-column {kind}=COLUMN" for kind in processor.kinds)
    if trained is not None:
        needed = f"the columns of the training: {trained._replace(target=None).in_words}"
    raise ValueError(
        f"this model's vectors are not made from the input text. Pass a file with {needed}. Or pass --no-vectors "
        "(`evaluate`: --vectors none)."
    )


def _next_block(vectors_by_row: Iterator[VectorsOfRow]) -> list[VectorsOfRow]:
    """Return the vectors of the next rows: `BLOCK` rows, or fewer if their vectors are many or wide."""
    block: list[VectorsOfRow] = []
    numbers = 0
    while len(block) < BLOCK and numbers < MOST_NUMBERS:
        try:
            of_row = next(vectors_by_row)
        except StopIteration:
            break
        block.append(of_row)
        of_kinds = of_row.values() if isinstance(of_row, Mapping) else [of_row]
        numbers += sum(vectors.numel() for vectors in of_kinds if vectors is not None)
    return block


def _has_placeholders(processor: T5FusionProcessor, texts: Iterable[str]) -> bool:
    """Return whether a text, or the template, contains a placeholder of any kind.

    If so, the processor inserts the placeholders of all rows. Otherwise the collator does.
    """
    tokens = [token_of(name, position) for position, name in enumerate(processor.kinds)]
    prompts = (processor.template.replace("{text}", text) for text in texts)
    return any(token in prompt for prompt in prompts for token in tokens)


def _vectors_by_row(
    rows: Dataset,
    columns: Columns,
    processor: T5FusionProcessor,
    keep: bool,
    numbers: Sequence[int] | None,
    progress: bool,
) -> Iterator[VectorsOfRow] | None:
    """Return the vectors of rows, as the columns and the recipe say; None if the recipe has none."""
    kinds, given = processor.kinds, _columns_of_kinds(columns, processor.kinds)
    of_kinds: dict[str, Iterable[torch.Tensor | None]] = {}
    if uses_encoder(columns, processor):
        if (column := columns.lexical or columns.text) is None:
            raise ValueError(
                "the encoder makes vectors from texts, and no column of texts is named. Pass --text-column or "
                "--lexical-column."
            )
        texts = rows[column][:]
        encoded = encode_cached(texts, processor, progress) if keep else encode_distinct(texts, processor)
        of_kinds[next(iter(kinds))] = encoded
    else:
        check_vector_columns(columns, processor)
    for kind, column in given.items():
        name_row = row_names(rows, columns) if numbers is None else numbered(numbers)
        of_kinds[kind] = _vectors_in_column(rows, column, kinds[kind], name_row)
    if not of_kinds:
        return None
    if len(kinds) == 1:
        return iter(next(iter(of_kinds.values())))
    return (_present(of_kinds, of_row) for of_row in zip(*of_kinds.values(), strict=True))


def uses_encoder(columns: Columns, processor: T5FusionProcessor) -> bool:
    """Return whether an encoder makes the vectors of the first kind, because no column holds them."""
    if next(iter(processor.kinds)) in _columns_of_kinds(columns, processor.kinds):
        return False
    return columns.lexical is not None or processor.lexical_source == "text"


def _columns_of_kinds(columns: Columns, kinds: Mapping[str, VectorKind]) -> dict[str, str]:
    """Return the columns of vectors by the model's kinds. A column without a kind belongs to the model's only kind.

    Raises:
        ValueError: The model does not have the kind of a column; or it has several kinds, and a column names none.
    """
    if isinstance(columns.vector, str) and len(kinds) == 1:
        return dict.fromkeys(kinds, columns.vector)
    if isinstance(columns.vector, str):
        problem = f"column {columns.vector!r} was given for vectors without a kind"
    elif unknown := [kind for kind in columns.by_kind if kind not in kinds]:
        problem = f"a column was given for {', '.join(unknown)} vectors"
    else:
        return columns.by_kind
    raise ValueError(f"{problem}; expected the model's kinds, {', '.join(kinds)}. Pass --vector-column KIND=COLUMN.")


def _present(kinds: Iterable[str], of_row: Sequence[torch.Tensor | None]) -> dict[str, torch.Tensor] | None:
    """Return the vectors of a row by kind, without the kinds that it lacks; None if it lacks all."""
    pairs = zip(kinds, of_row, strict=True)
    return {kind: vectors for kind, vectors in pairs if vectors is not None} or None


def _vectors_in_column(
    rows: Dataset, column: str, kind: VectorKind, name_row: NameRow
) -> Iterator[torch.Tensor | None]:
    """Yield the vectors in a column; raise ValueError if they do not have the width of their kind.

    Args:
        rows: The rows.
        column: The column of the vectors.
        kind: Their kind.
        name_row: Returns the name of a row for errors, by its index.
    """
    for vectors in read_vectors(rows, column, name_row, is_scaled=kind.scale is not None):
        if vectors is not None and vectors.shape[-1] != kind.dim:
            raise ValueError(
                f"column {column!r} holds vectors of {vectors.shape[-1]} numbers; expected {kind.dim}, as in training."
            )
        yield vectors


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
        vectors: float32 (rows, dim) or (rows, vectors, dim); or one tensor per row, (dim,) or (vectors, dim), None for
            a row without a vector. With several kinds, one dict of tensors by kind per row. None if no row has a
            vector.
        processor: The tokenizer and the template.
        max_source, max_target: Longest text (with its template) and longest target, in tokens.
        counts: A counter that gets the numbers for `report_counts`, so that they can be reported once for a set that is
            prepared in parts. If None, they are reported here.
        has_placeholders: Whether any text of the whole set, or the template, contains a placeholder. Pass it if `texts`
            are a part of a set. With None, `texts` are the whole set, and are searched.

    Returns:
        A dict per row: `input_ids`, `attention_mask` and `labels`, lists of int; and `lexical_embeds`, a tensor or a
        dict of tensors, in the rows that have a vector.
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
    _count_missing(vectors, processor, updated)
    if counts is None:
        report_counts(updated, max_source, max_target)
    fields = {name: values for name, values in encoded.items() if name != "lexical_embeds"}
    rows = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
    for row, vector in zip(rows, vectors if vectors is not None else [None] * len(rows), strict=True):
        if vector is not None:
            row["lexical_embeds"] = vector
    return rows


def _count_missing(vectors: VectorsOfRows | None, processor: T5FusionProcessor, counts: Counter) -> None:
    """Count the rows without a vector, and with several kinds, those without a vector of each kind."""
    given = [] if vectors is None else vectors
    counts[WITHOUT_VECTORS] += sum(of_row is None for of_row in given)
    for kind in processor.kinds if len(processor.kinds) > 1 else ():
        counts[WITHOUT_KIND + kind] += sum(of_row is None or kind not in of_row for of_row in given)


def _count_cut(texts: Sequence[str], ids: Sequence[list[int]], limit: int, tokenizer) -> int:
    """Return how many texts have more than `limit` tokens. `ids` are their token ids after cutting."""
    # Only texts of this length can have been cut.
    at_limit = [text for text, row in zip(texts, ids, strict=True) if len(row) == limit]
    return sum(len(row) > limit for row in tokenizer(at_limit)["input_ids"]) if at_limit else 0


def report_counts(counts: Counter, max_source: int, max_target: int) -> None:
    """Print how many of the rows that `prepare` counted were cut, and how many lack a vector."""
    for texts, limit in (("inputs", max_source), ("targets", max_target)):
        if counts[f"cut {texts}"]:
            are = "is" if counts[f"cut {texts}"] == 1 else "are"
            say(f"{counts[f'cut {texts}']} of {counts[texts]} {texts} {are} longer than {limit} tokens, and {are} cut.")
    of_rows = f"of {counted(counts['inputs'], 'row')}"
    for name, count in counts.items():
        if name.startswith(WITHOUT_KIND) and count:
            kind = name.removeprefix(WITHOUT_KIND)
            say(f"{count} {of_rows} {'has' if count == 1 else 'have'} no {kind} vector.")
    if count := counts[WITHOUT_VECTORS]:
        say(f"{count} {of_rows} {'has' if count == 1 else 'have'} no vector; the model reads only their text.")


def batches(
    rows: list[dict], processor: T5FusionProcessor, batch_size: int, sort_field: str
) -> Iterator[tuple[list[int], BatchFeature]]:
    """Yield batches of rows of similar length, which need little padding: the rows' indices, and the collated batch.

    Args:
        rows: Rows of `prepare`.
        processor: The processor of the rows.
        batch_size: Rows in a batch.
        sort_field: The field whose length sorts the rows, such as "labels".
    """
    collate = DataCollatorWithFusion(processor)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][sort_field]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, collate([rows[index] for index in indices])

"""From a file or a data set of the Hub to the rows that train: token ids, labels and lexical vectors."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import BatchFeature

from ..configuration_t5fusion import LEXICAL_TOKEN
from ..processing_t5fusion import DataCollatorWithFusion, T5FusionProcessor
from .harvest import is_held_out
from .kept_vectors import encode_kept

HELD_OUT_ONE_IN = 10
MAX_SOURCE, MAX_TARGET = 128, 64  # tokens


def is_first_process() -> bool:
    """Whether this process is the only one, or the first of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """A line for the user, on standard error, where progress is; of several processes, the first speaks."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)


def check_columns(rows: Dataset, columns: Sequence[str | None]) -> None:
    """ValueError, with the columns there are, unless all of `columns` (None aside) are among them."""
    for column in columns:
        if column is not None and column not in rows.column_names:
            raise ValueError(f"there is no column {column!r}; the columns are {', '.join(rows.column_names)}.")


def check_texts(rows: Dataset, columns: Sequence[str]) -> None:
    """ValueError if one of `columns` holds something else than text, numbers say."""
    for column in columns:
        kind = getattr(rows.features[column], "dtype", "list")
        if kind not in ("string", "large_string", "string_view", "null"):
            raise ValueError(f"column {column!r} holds values of type {kind}; expected text.")


def rows_with_text(rows: Dataset, columns: Sequence[str]) -> list[int]:
    """The numbers of the rows whose `columns` all hold text, which is not white space alone.

    Raises:
        ValueError: as `check_texts` says.
    """
    check_texts(rows, columns)
    held = zip(*(rows[column] for column in columns), strict=True)
    return [row for row, texts in enumerate(held) if all(text and text.strip() for text in texts)]


def without_empty(rows: Dataset, columns: Sequence[str]) -> tuple[Dataset, int]:
    """The rows whose `columns` all hold text, and the number of those left out; raises as `rows_with_text` does."""
    kept = rows_with_text(rows, columns)
    return rows.select(kept), len(rows) - len(kept)


def vector_columns(rows: Dataset) -> list[str]:
    """The columns that hold lists of floating point numbers, by their type; lists of integers may be anything."""

    def is_vector(kind: pa.DataType) -> bool:
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            return False
        return pa.types.is_floating(kind.value_type) or is_vector(kind.value_type)

    return [field.name for field in rows.features.arrow_schema if is_vector(field.type)]


def hold_out(
    rows: Dataset, text_column: str, lexical_column: str | None = None, vector_column: str | None = None
) -> tuple[Dataset, Dataset]:
    """About nine tenths to train on and one to validate with; all rows of one text are on the same side.

    Where vectors come from a column of their own, texts may be prompts that many rows share. If there are more than
    twice as many pairs of a text and a vector (or the text that it is made of) as there are texts, a pair takes the
    place of the text: all rows of one pair are on the same side, and it is said. In all other cases the split depends
    on the texts alone, so that it is the same with and without vectors.

    Raises:
        ValueError: there are too few different texts or pairs; or a vector is none, as `given_vectors` says.
    """
    texts = [str(text).strip() for text in rows[text_column]]
    keys, told_by = texts, "text"
    # where there are fewer rows than that, the pairs, for which all vectors are read, cannot be that many
    if (lexical_column or vector_column) and (len(rows) > 2 * _distinct(texts) or _distinct(texts) == 1):
        others = _vector_keys(rows, vector_column) if vector_column else rows[lexical_column]
        pairs = [f"{text}\n{other}" for text, other in zip(texts, others, strict=True)]
        if _distinct(pairs) > 2 * _distinct(texts) or _distinct(pairs) == 1:
            keys, told_by = pairs, f"text and {repr(lexical_column) if lexical_column else 'vector'}"
    sides = {key: is_held_out(key, HELD_OUT_ONE_IN) for key in keys}
    if len(set(sides.values())) < 2 or _distinct(keys) < min(HELD_OUT_ONE_IN, len(rows) / 2):
        raise ValueError(f"{_why_not_split(keys, told_by)}. Name a file with --validation.")
    if keys is not texts:
        kinds, word = _distinct(texts), "text" if _distinct(texts) == 1 else "texts"
        say(f"{len(rows)} rows have {kinds} different {word}; those to validate with are chosen by {told_by}.")
    held_out = np.array([sides[key] for key in keys], dtype=bool)
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


def _vector_keys(rows: Dataset, column: str) -> list[str]:
    """For each row what is the same where its vector is the same."""
    vectors = read_vectors(rows, column)
    return ["" if vector is None else hashlib.md5(vector.numpy().tobytes()).hexdigest() for vector in vectors]


def _distinct(keys: Sequence[str]) -> int:
    return len({key.lower() for key in keys})  # `is_held_out` does not see case


def _why_not_split(keys: Sequence[str], told_by: str) -> str:
    if (kinds := _distinct(keys)) == len(keys):
        return f"{kinds} rows are too few to hold some out for validation"
    if kinds == 1:
        return f"all {len(keys)} rows have the same {told_by}: none can be held out to validate with"
    kind = "texts" if told_by == "text" else f"pairs of {told_by}"
    return f"{len(keys)} rows have {kinds} different {kind}, too few to hold some out for validation"


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


def encode_distinct(texts: Sequence[str], processor: T5FusionProcessor) -> torch.Tensor:
    """`processor.encode`, float32 (texts, dim): each distinct text once."""
    return _each_once(texts, processor.encode)


def encode_cached(texts: Sequence[str], processor: T5FusionProcessor) -> torch.Tensor:
    """`encode_distinct`, and kept on disk for the next run, as `kept_vectors.encode_kept` says."""
    return _each_once(texts, lambda distinct: encode_kept(distinct, processor, say))


def _each_once(texts: Sequence[str], encode: Callable[[list[str]], torch.Tensor]) -> torch.Tensor:
    distinct = list(dict.fromkeys(texts))
    vectors = encode(distinct)
    place = {text: index for index, text in enumerate(distinct)}
    return vectors[[place[text] for text in texts]]


def given_vectors(
    rows: Dataset, column: str, called: Callable[[int], str] = "row {}".format
) -> list[torch.Tensor | None]:
    """The vector of each row in a column, float32 (dim,); None where it is null, missing or empty.

    Args:
        called: what the message calls a row, of its index in `rows`.

    Raises:
        ValueError: naming the first row that holds no vector of the width of those before it.
    """
    return list(read_vectors(rows, column, called))


def read_vectors(
    rows: Dataset, column: str, called: Callable[[int], str] = "row {}".format
) -> Iterator[torch.Tensor | None]:
    """`given_vectors` row by row; some hundreds are in memory at a time."""
    width = None
    values = (value for part in rows.select_columns([column]).iter(batch_size=512) for value in part[column])
    for index, value in enumerate(values):
        vector = _vector(value)
        if vector is None and value is not None and value != []:
            raise _no_vector(called(index), column, value, width)
        if vector is not None and vector.size != (width := width or vector.size):
            raise _no_vector(called(index), column, value, width)
        yield None if vector is None else torch.from_numpy(vector)


def _vector(value) -> np.ndarray | None:
    """`value` as finite numbers, float32 (dim,); None if it is not that."""
    if not isinstance(value, list) or not value or any(isinstance(item, Sequence) for item in value):
        return None
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        return None
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        array = array.astype(np.float32)
    return array if np.isfinite(array).all() else None


def _no_vector(row: str, column: str, value, width: int | None) -> ValueError:
    expected = f"{width} finite numbers, as in the first row with one" if width else "finite numbers"
    return ValueError(f"{row}, column {column!r}: {_found(value)}; expected one vector of {expected}.")


def _found(value) -> str:
    """What stands in the place of a vector."""
    kinds = {str: "a text", bytes: "binary data", bool: "a single truth value", int: "a single number"}
    if not isinstance(value, list):
        return {**kinds, float: "a single number"}.get(type(value), f"a {type(value).__name__}")
    if any(isinstance(item, list) for item in value):
        return f"{len(value)} vectors (several in a row go through the Python interface)"
    if not all(isinstance(item, (int, float)) for item in value):
        return f"{len(value)} values, not all of them numbers"
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(value, dtype=np.float64).astype(np.float32)).all()
    return f"{len(value)} numbers" + ("" if finite else ", not all of them finite in float32")


def batches(
    rows: list[dict], processor: T5FusionProcessor, batch_size: int, length: str, progress: str | None = None
) -> Iterator[tuple[list[int], BatchFeature]]:
    """Indices and collated batches of rows whose field `length` is of like length, so that there is little padding."""
    collate = DataCollatorWithFusion(processor.tokenizer)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][length]))
    for start in tqdm(range(0, len(order), batch_size), desc=progress, disable=None if progress else True, leave=False):
        indices = order[start : start + batch_size]
        yield indices, collate([rows[index] for index in indices])

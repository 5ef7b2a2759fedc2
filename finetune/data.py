"""From a file or a data set of the Hub to the rows that train: token ids, labels and lexical vectors."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, load_dataset
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm
from transformers import BatchFeature

from ..processing_t5fusion import DataCollatorWithFusion, T5FusionProcessor
from .harvest import is_held_out

FILE_KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
HELD_OUT_ONE_IN = 10
MAX_SOURCE, MAX_TARGET = 128, 64  # tokens


def is_first_process() -> bool:
    """Whether this process is the only one, or the first of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """A line for the user, on standard error, where progress is; of several processes, the first speaks."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)


def load_rows(data: str, split: str = "train") -> Dataset:
    """The rows of a JSONL, JSON, CSV or Parquet file, or of a data set of the Hub.

    Raises:
        ValueError: the file is of another kind.
        OSError: there is neither such a file nor such a data set.
    """
    path = Path(data)
    if path.is_file():
        if path.suffix not in FILE_KINDS:
            raise ValueError(f"{data} is a {path.suffix or 'nameless'} file; expected one of {', '.join(FILE_KINDS)}.")
        try:
            if path.suffix == ".csv":  # all of it text: else a name such as "None", "NA" or "007" is another, or lost
                return Dataset.from_pandas(pd.read_csv(path, dtype=str, keep_default_na=False), preserve_index=False)
            return load_dataset(FILE_KINDS[path.suffix], data_files=str(path), split="train")
        except Exception as error:  # of many kinds: of pyarrow, pandas, json
            raise ValueError(f"{data} cannot be read as {FILE_KINDS[path.suffix]}: {_cause(error)}.") from error
    if path.suffix in FILE_KINDS:
        raise OSError(f"there is no file {data}.")
    try:
        return load_dataset(data, split=split)
    except Exception as error:  # of many kinds: of the network, the Hub, the loading script
        raise OSError(f"{data} is no file, and no data set that could be fetched: {_cause(error)}.") from error


def _cause(error: BaseException) -> str:
    return (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def check_columns(rows: Dataset, columns: Sequence[str | None]) -> None:
    """ValueError, with the columns there are, unless all of `columns` (None aside) are among them."""
    for column in columns:
        if column is not None and column not in rows.column_names:
            raise ValueError(f"there is no column {column!r}; the columns are {', '.join(rows.column_names)}.")


def without_empty(rows: Dataset, columns: Sequence[str]) -> tuple[Dataset, int]:
    """The rows whose `columns` all hold text, and the number of those left out.

    Raises:
        ValueError: a column holds something else than text, numbers say.
    """
    for column in columns:
        kind = getattr(rows.features[column], "dtype", "list")
        if kind not in ("string", "large_string", "null"):
            raise ValueError(f"column {column!r} holds values of type {kind}; expected text.")
    kept = rows.filter(lambda row: all(isinstance(row[c], str) and row[c].strip() for c in columns), desc="Reading")
    return kept, len(rows) - len(kept)


def hold_out(rows: Dataset, text_column: str) -> tuple[Dataset, Dataset]:
    """About nine tenths to train on and one to validate with; all rows of one text are on the same side."""
    held_out = np.array([is_held_out(str(text).strip(), HELD_OUT_ONE_IN) for text in rows[text_column]], dtype=bool)
    if held_out.all() or not held_out.any():
        raise ValueError(
            f"{len(rows)} rows are too few to hold some out for validation. Name a file with --validation."
        )
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


def prepare(
    texts: Sequence[str],
    targets: Sequence[str] | None,
    vectors: torch.Tensor | None,
    processor: T5FusionProcessor,
    max_source: int = MAX_SOURCE,
    max_target: int = MAX_TARGET,
) -> list[dict]:
    """Rows for `DataCollatorWithFusion`, which places `<lexical>`.

    Args:
        texts, targets: one each per row; white space at their ends and doubled within is dropped.
        vectors: float32 (rows, dim), or (rows, vectors, dim), or None.
        max_source, max_target: most tokens of a text (its template included) and of a target; says how many are cut.

    Returns:
        A dict per row: `input_ids`, `attention_mask`, `labels`, lists of int; `lexical_embeds`, a tensor.
    """
    texts = [" ".join(text.split()) for text in texts]
    targets = None if targets is None else [" ".join(target.split()) for target in targets]
    made = processor(
        texts, lexical_embeds=False, text_target=targets, return_tensors=None, max_length=max_source,
        max_target_length=max_target,
    )  # fmt: skip
    prompts = [processor.template.replace("{text}", text) for text in texts]
    _say_cut("inputs", prompts, made["input_ids"], max_source, processor.tokenizer)
    _say_cut("targets", targets or [], made.get("labels", []), max_target, processor.tokenizer)
    rows = [dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True)]
    if vectors is not None:
        for row, vector in zip(rows, vectors, strict=True):
            row["lexical_embeds"] = vector
    return rows


def _say_cut(what: str, texts: Sequence[str], ids: Sequence[list[int]], most: int, tokenizer) -> None:
    whole = [text for text, row in zip(texts, ids, strict=True) if len(row) == most]  # those that may have been cut
    cut = sum(len(row) > most for row in tokenizer(whole)["input_ids"]) if whole else 0
    if cut:
        say(f"{cut} of {len(texts)} {what} are longer than {most} tokens, and cut.")


def encode_cached(texts: Sequence[str], processor: T5FusionProcessor) -> torch.Tensor:
    """`processor.encode`, float32 (texts, dim): each distinct text once, and kept on disk for the next run."""
    distinct = list(dict.fromkeys(texts))
    recipe = [processor.lexical_encoder, processor.lexical_encoder_revision, processor.normalize]
    recipe += [processor.lexical_dtype, processor.lexical_max_tokens, processor.lexical_dim]
    folder = Path(processor.lexical_encoder or "")
    if processor.lexical_encoder and folder.is_dir():  # it may hold another encoder tomorrow
        stats = [(file, file.stat()) for file in sorted(folder.rglob("*"))]
        recipe += [[str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
    key = hashlib.sha256(json.dumps([recipe, distinct]).encode()).hexdigest()[:32]
    file = cache_folder() / f"{key}.safetensors"
    if file.exists():
        vectors = torch.from_numpy(load_file(file)["vectors"])
    else:
        vectors = processor.encode(distinct, show_progress_bar=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        save_file({"vectors": vectors.numpy()}, unfinished)
        unfinished.replace(file)
    place = {text: index for index, text in enumerate(distinct)}
    return vectors[[place[text] for text in texts]]


def cache_folder() -> Path:
    """Where vectors are kept between runs: `$T5FUSION_CACHE`, else `t5fusion` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(os.environ.get("T5FUSION_CACHE", Path(base) / "t5fusion")) / "vectors"


def _is_finite(value) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def given_vectors(rows: Dataset, column: str) -> torch.Tensor:
    """The vectors of a column, float32 (rows, dim); ValueError names the first row that holds none of that width."""
    values = rows[column]
    width = len(values[0]) if isinstance(values[0], Sequence) else 0
    for index, value in enumerate(values):
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not is_list or len(value) != width or width == 0 or not all(map(_is_finite, value)):
            raise ValueError(f"row {index}, column {column!r}: not a vector of {width or 'some'} numbers.")
    return torch.tensor(np.asarray(values, dtype=np.float32))


def batches(
    rows: list[dict], processor: T5FusionProcessor, batch_size: int, length: str, progress: str | None = None
) -> Iterator[tuple[list[int], BatchFeature]]:
    """Indices and collated batches of rows whose field `length` is of like length, so that there is little padding."""
    collate = DataCollatorWithFusion(processor.tokenizer)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][length]))
    for start in tqdm(range(0, len(order), batch_size), desc=progress, disable=progress is None, leave=False):
        indices = order[start : start + batch_size]
        yield indices, collate([rows[index] for index in indices])

"""Evaluate on the rows of a file, or on the rows that a training held out, as `t5fusion evaluate` does."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from datasets import Dataset

from ..common.console import say
from ..common.next_commands import command
from ..common.progress import Progress
from ..common.run_files import RunFiles
from ..common.run_folder import find_trained
from ..engines.choosing import load_engine
from ..engines.names import REFERENCE, check_engine
from ..processing_t5fusion import T5FusionProcessor
from .data import (
    Columns,
    advising_skip_nan,
    check_trained_columns,
    first_rows,
    hub_data_set,
    input_texts,
    load_split,
    report_no_text,
    require_vectors,
    usable_rows,
)
from .evaluation import Evaluation, VectorCondition, evaluate_large, save_evaluation, summarize, vector_conditions
from .files import load_rows
from .inputs import make_inputs, report_counts, uses_encoder
from .parallel import processes
from .record import rows_digest, trained_columns, trained_options
from .trained_model import columns_for, load_on_device
from .training import held_out_loss


@advising_skip_nan()
def evaluate_file(
    name: str | Path,
    data: str | Path | None = None,
    columns: Columns | None = None,
    *,
    vectors: VectorCondition | Literal["all"] = "true",
    seed: int = 0,
    split: str = "validation",
    revision: str | None = None,
    limit: int | None = None,
    encoding: str | None = None,
    skip_nan: bool = False,
    engine: str = REFERENCE,
) -> Evaluation:
    """Measure the loss and the scores of a model on the rows of a file, or on the rows that its training held out.

    If `name` is a folder, the result is saved there in evaluation.json, for the model card, unless that file covers
    more rows or more conditions ("true", "shuffled", "none").

    Without `data`, the rows that the training held out (or took from its validation file) are read again. They must be
    the same. `Evaluation.eval_loss` is then measured too, as the Trainer measures it. On the same machine, with the
    same number of processes, it equals, bit for bit, the loss that training measured for the saved model.

    Args:
        name: Folder that training saved, bundle, or id of a repository on the Hub.
        data: JSONL, CSV, Parquet or Arrow file, or id of a data set on the Hub; None for the rows that the training
            held out.
        columns: The columns to read, with a target column; None for the columns of the training.
        vectors: The rows' own vectors ("true"), other rows' ("shuffled"), "none", or "all" three, compared.
        seed: Seed that shuffles the vectors.
        split: Split of the data set on the Hub.
        revision: Branch, tag or commit of the repository.
        limit: Use at most this many rows, the first ones.
        encoding: Encoding of a CSV file; None for UTF-8.
        skip_nan: Leave out rows of the file whose vectors hold NaN or infinity. By default, they are an error. (Without
            `data`, this is as in the training.)
        engine: What generates the texts, a name in `t5fusion.engines.ENGINES`. By default, the model itself. The losses
            are always the model's own.

    Returns:
        The measures, in all processes.

    Raises:
        ValueError: An argument or the rows cannot be used; the rows that the training held out are not known, or have
            changed; or a file of the model is damaged.
        OSError: A file, a data set, the model or its base model cannot be read.
    """
    check_engine(engine)
    conditions = vector_conditions(vectors)
    uses_vectors = conditions != ["none"]
    folder = find_trained(str(name), revision)
    if data is None:
        rows, columns = held_out_rows(folder), _columns_of_training(folder, columns)
    else:
        columns = columns or columns_for(name, revision=revision, vectors=uses_vectors, data=data)
        rows = _rows_of_file(str(data), columns, trained_columns(folder), split, limit, encoding, skip_nan)
    report_no_text(columns, rows.column_names)
    model, processor, limits = load_on_device(folder)
    generator = load_engine(model, engine)
    chosen = getattr(generator, "engine", REFERENCE)
    eval_loss = None
    if data is None:
        all_inputs = make_inputs(rows, columns, processor, limits, counts=Counter())
        eval_loss = _held_out_loss(folder, model, processor, all_inputs)
        rows = first_rows(rows, limit)

    def inputs_of(part: np.ndarray, counts: Counter) -> list[dict]:
        return make_inputs(rows.select(part), columns, processor, limits, uses_vectors, counts=counts, progress=False)

    may_lack_vectors = bool(columns.vector) and uses_vectors and not uses_encoder(columns, processor)
    rows_with_vector = require_vectors(rows, columns) if may_lack_vectors else None
    with Progress("Evaluating", len(rows) * len(conditions)) as progress:
        results, counts = evaluate_large(
            model, processor, len(rows), inputs_of, conditions, progress, rows_with_vector, seed, generator
        )
    report_counts(counts, *limits)
    # The scores ignore white space, but the model card shows each sample on one line.
    references = [" ".join(target.split()) for target in rows[columns.target]]
    texts = list(input_texts(rows, columns.text))
    evaluation = replace(summarize(results, texts, references), eval_loss=eval_loss, engine=chosen)
    if not processes().is_main_process or not Path(name).is_dir():
        return evaluation
    source = {"data": str(data), "split": split} if data is not None and hub_data_set(str(data)) else {}
    return replace(evaluation, is_saved=save_evaluation(folder, evaluation.record(**source)))


def _columns_of_training(folder: Path, columns: Columns | None) -> Columns:
    """Return the columns that the training recorded; raise ValueError if `columns` are others."""
    trained = trained_columns(folder)
    assert trained is not None  # Otherwise `held_out_rows` would have raised an error.
    if columns not in (None, trained):
        raise ValueError(
            f"columns were given without a file, and they differ from those of the training ({trained.in_words}). Name "
            "the file, or leave the columns out."
        )
    return trained


def _rows_of_file(
    data: str,
    columns: Columns,
    trained: Columns | None,
    split: str,
    limit: int | None,
    encoding: str | None,
    skip_nan: bool,
) -> Dataset:
    """Return the first `limit` rows of a file that are usable (see `usable_rows`) and have a target."""
    if columns.target is None:
        raise ValueError("an evaluation needs a target column. Name one: --target-column, or Columns(text, target).")
    rows = load_rows(data, split, encoding, columns.vector_files)
    check_trained_columns(rows, columns, trained)
    return first_rows(usable_rows(rows, columns, skip_nan), limit)


def held_out_rows(folder: str | Path) -> Dataset:
    """Return the rows that the training of a run folder held out, or took from its validation file, read again.

    Raises:
        ValueError: The folder does not record where they come from, or their number has changed.
        OSError: The file or data set no longer exists.
    """
    record, columns = RunFiles(folder).record, trained_columns(Path(folder))
    source = record.get("source")
    if not source or columns is None:
        raise ValueError(
            f"{folder} does not record which rows its training held out. Name a file: "
            f"{command('evaluate', folder, 'FILE')}."
        )
    # An encoder is named only so that unread columns of vectors are allowed, as they were in training.
    _, rows = load_split(
        source["data"], columns, source["validation"], encoder="any", encoding=source["encoding"],
        skip_nan=source.get("skip_nan", False), streaming=record["options"].get("streaming", False),
    )  # fmt: skip
    rows = first_rows(rows, source["limit"])
    if len(rows) != record["held_out_rows"]:
        raise ValueError(
            f"the training held out {record['held_out_rows']} rows of {source['validation'] or source['data']}, and "
            f"now it would hold out {len(rows)}: the rows have changed. Name a file with the rows to evaluate on."
        )
    return rows


def _held_out_loss(folder: Path, model: torch.nn.Module, processor: T5FusionProcessor, inputs: list[dict]) -> float:
    """Return the loss as the Trainer measures it, and print whether it equals the loss that the training measured.

    Raises:
        ValueError: The rows are not those that the training held out.
    """
    record = RunFiles(folder).record
    if rows_digest(inputs) != record["held_out_digest"]:
        source = record["source"]
        raise ValueError(
            f"the texts of the held-out rows of {source['validation'] or source['data']} differ from those in "
            "training: the rows have changed. Name a file with the rows to evaluate on."
        )
    loss = held_out_loss(model, inputs, processor, trained_options(folder))
    # The last evaluation measured the saved model, unless the best model was saved.
    last_loss = next((entry["eval_loss"] for entry in reversed(record["history"]) if "eval_loss" in entry), None)
    loss_in_training = (record.get("best") or {}).get("eval_loss", last_loss)
    if loss_in_training is None:  # with the setting eval_strategy=no
        say(f"eval_loss is {loss:.6f}. The training measured none.")
    elif RunFiles(folder).is_shrunk:
        say(f"eval_loss is {loss:.6f}, and was {loss_in_training:.6f} in training, with the larger adapter.")
    elif loss == loss_in_training:
        say("eval_loss is exactly as in training.")
    else:
        say(
            f"eval_loss is {loss:.6f}: {loss - loss_in_training:+.1e} from that of the training. Machines, precisions "
            "and numbers of processes round differently."
        )
    return loss

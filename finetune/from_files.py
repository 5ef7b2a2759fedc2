"""Train, evaluate and generate from files: what the commands of the same names do, as functions."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from ..common.base_models import make_processor
from ..common.console import is_first_process, say
from ..common.run_folder import find_trained, load_trained, trained_digest, trained_limits
from ..processing_t5fusion import T5FusionProcessor
from .data import Columns, first_rows, has_vector, hub_data_set, load_split, vector_width, with_all_texts
from .evaluation import Evaluation, Vectors, evaluate_large, kinds_of_vectors, save_evaluation, summarize
from .files import load_rows
from .generation import generate_lines, generate_texts
from .inputs import make_inputs, report_counts
from .options import Recipe, TrainingOptions
from .output_file import OutputFile, StandardOutput, check_output_name
from .output_folder import check_output
from .parallel import processes
from .streaming import Chunk, first_of, read_chunks
from .trainer import check_launch
from .training import train


def train_file(
    data: str | Path,
    columns: Columns,
    output: str | Path,
    options: TrainingOptions | None = None,
    recipe: Recipe | None = None,
    *,
    validation: str | Path | None = None,
    limit: int | None = None,
    encoding: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> torch.nn.Module:
    """Train on the rows of a file, and save the adapter (or all weights), the processor and a record of the training.

    The vectors come from `columns.vector`. Without it, an encoder makes them from `columns.lexical`, or else from the
    text.

    Args:
        data: JSONL, CSV or Parquet file, or id of a data set on the Hub.
        columns: the columns to read. `columns.target` is required.
        output: folder to save in. It must be empty or not exist, unless `resume` or `overwrite`.
        options: how to train; None for the defaults.
        recipe: how vectors and prompts are made; None for the defaults.
        validation: file or data set to validate with after each epoch; if None, a tenth of the rows is held out.
        limit: use only so many rows to train on, and so many to validate with.
        encoding: encoding of CSV files; None for UTF-8.
        resume: resume from the last checkpoint in `output`. All other arguments must be as before.
        overwrite: replace what an earlier training saved in `output`.

    Returns:
        The trained model, as `train` returns it.

    Raises:
        Interrupted: Ctrl-C was pressed or SIGTERM received; a checkpoint is saved.
        ValueError: an argument, the rows or their vectors cannot be used; or `output` may not be written.
        OSError: a file, a data set or the base model cannot be read.
    """
    options, recipe = options or TrainingOptions(), recipe or Recipe()
    data, output = str(data), Path(output)
    check_launch()
    _check_columns_for_training(columns, recipe)
    rows, held_out = load_split(
        data, columns, None if validation is None else str(validation), recipe.encoder, encoding
    )
    rows, held_out = first_rows(rows, limit), first_rows(held_out, limit)
    if is_first_process():  # before the vectors are made, which can take hours
        check_output(output, resume, overwrite)
    processor = _new_processor(rows, columns, options.base_model, recipe)
    limits = (options.max_source, options.max_target)
    counts: Counter = Counter()
    inputs = make_inputs(rows, columns, processor, limits, counts=counts)
    held_out_inputs = make_inputs(held_out, columns, processor, limits, counts=counts)
    report_counts(counts, *limits)
    model = train(
        inputs, held_out_inputs, processor, options, output, resume, hub_data_set(data), columns, overwrite
    )  # fmt: skip
    say(f"Saved in {output}. Next: {_next_command(data, columns, output, rows)}")
    return model


def _check_columns_for_training(columns: Columns, recipe: Recipe) -> None:
    if columns.target is None:
        raise ValueError("training needs a target column. Name one: Columns(text, target).")
    if columns.lexical and columns.vector:
        raise ValueError("a lexical column and a vector column were both given; give one of them.")
    if columns.vector and recipe.encoder:
        raise ValueError("an encoder has no effect with a vector column. Leave one out.")


def _new_processor(rows: Dataset, columns: Columns, base_model: str, recipe: Recipe) -> T5FusionProcessor:
    """Return the base model's tokenizer with the recipe for these columns."""
    settings: dict = {"template": recipe.template, "lexical_dim": recipe.lexical_dim, "lexical_source": "text"}
    if recipe.encoder:
        settings["lexical_encoder"] = recipe.encoder
    if columns.lexical or columns.vector:
        settings["lexical_source"] = "given"
    if columns.vector:
        settings |= {"lexical_encoder": None, "lexical_dim": vector_width(rows, columns)}
    return make_processor(base_model, **settings)


def _next_command(data: str, columns: Columns, output: Path, rows: Dataset) -> str:
    """Return a command that generates with the model that was trained."""
    if columns.lexical or columns.vector:
        source = ("--lexical-column", columns.lexical) if columns.lexical else ("--vector-column", columns.vector)
        words = ["--file", data, "--text-column", columns.text, *map(str, source)]
    else:
        text = rows[0][columns.text]
        words = [text if len(text) < 80 and text.isprintable() else "TEXT"]
    return shlex.join(["t5fusion", "generate", str(output), *words])


def evaluate_file(
    name: str | Path,
    data: str | Path,
    columns: Columns,
    *,
    vectors: Vectors | Literal["all"] = "true",
    split: str = "validation",
    revision: str | None = None,
    limit: int | None = None,
    encoding: str | None = None,
) -> Evaluation:
    """Measure loss, ROUGE and chrF of a model on the rows of a file.

    If `name` is a folder, the result is saved there in evaluation.json, for the model card, unless that file covers
    more rows or more kinds of vectors.

    Args:
        name: folder that training saved, bundle, or id of a repository on the Hub.
        data: JSONL, CSV or Parquet file, or id of a data set on the Hub.
        columns: the columns to read. `columns.target` is required.
        vectors: the rows' own vectors ("true"), other rows' ("shuffled"), "none", or "all" three, compared.
        split: split of the data set on the Hub.
        revision: branch, tag or commit of the repository.
        limit: use only the first rows.
        encoding: encoding of a CSV file; None for UTF-8.

    Raises:
        ValueError: an argument or the rows cannot be used, or a file of the model is damaged.
        OSError: a file, a data set, the model or its base model cannot be read.
    """
    kinds, data = kinds_of_vectors(vectors), str(data)
    if columns.target is None:
        raise ValueError("an evaluation needs a target column. Name one: Columns(text, target).")
    state = processes()
    rows = first_rows(with_all_texts(load_rows(data, split, encoding), columns), limit)
    folder, model, processor, limits = _load(name, revision)

    def inputs(part, counts):
        return make_inputs(rows.select(part), columns, processor, limits, kinds != ["none"], counts=counts)

    rows_with_vector = has_vector(rows, columns) if columns.vector and kinds != ["none"] else None
    results, counts = evaluate_large(
        model, processor, len(rows), inputs, kinds, state.is_main_process, rows_with_vector
    )  # fmt: skip
    report_counts(counts, *limits)
    # The scores ignore white space, but the model card shows each sample on one line.
    references = [" ".join(target.split()) for target in rows[columns.target]]
    evaluation = summarize(results, rows[columns.text], references)
    if not state.is_main_process or not Path(name).is_dir():
        return evaluation
    source = {"data": data, "split": split} if hub_data_set(data) else {}
    return replace(evaluation, is_saved=save_evaluation(folder, evaluation.record(**source)))


class Generated(NamedTuple):
    """How many rows an output holds."""

    rows: int  # all rows
    earlier: int  # those of them that an earlier run wrote


class GenerationStopped(KeyboardInterrupt):
    """Ctrl-C was pressed; the texts of `rows` rows are kept (None in all processes but the first)."""

    def __init__(self, rows: int | None):
        super().__init__()
        self.rows = rows


def generate_file(
    name: str | Path,
    data: str | Path,
    columns: Columns,
    output: str | Path | None,
    *,
    vectors: bool = True,
    num_beams: int = 1,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    limit: int | None = None,
    split: str = "train",
    revision: str | None = None,
    encoding: str | None = None,
    overwrite: bool = False,
) -> Generated:
    """Generate a text for each row of a file, and write the rows with their texts, in their order.

    The output has all columns of the input and, as the last one, "output": the generated text, or null if the row lacks
    a text. If the input has a column "output" itself, the texts are in "output_2". Columns of vectors are kept in
    .jsonl and .parquet; a .csv file and standard output do not hold them. Values that are no text become JSON in .jsonl
    and .csv, with times by ISO 8601 and binary data in base64.

    While texts are generated, they are kept in a file beside the output, OUTPUT.partial. The output itself is written
    when all rows have their text, so it is whole as soon as it exists. A run that was interrupted or killed resumes
    from OUTPUT.partial if it is started again; so does a .jsonl output that earlier code began under its final name. If
    the output is whole and the input has more rows by now, only these are generated. OUTPUT.made-with records what the
    texts were made with.

    Args:
        name: folder that training saved, bundle, or id of a repository on the Hub.
        data: JSONL, CSV or Parquet file, or id of a data set on the Hub; or a .txt file with one text per line.
        columns: the columns to read. `columns.target` is ignored.
        output: file to write, which ends in .jsonl, .csv, .parquet, .jsonl.gz or .csv.gz; None to print JSON lines on
            standard output.
        vectors: whether to give the model vectors.
        num_beams, max_new_tokens: arguments of `model.generate`.
        batch_size: rows in a batch.
        limit: use only the first rows.
        split: split of the data set on the Hub.
        revision: branch, tag or commit of the repository.
        encoding: encoding of a .txt or CSV file; None for UTF-8. Outputs are always UTF-8.
        overwrite: replace what is in `output`.

    Raises:
        GenerationStopped: Ctrl-C was pressed.
        ValueError: an argument or the rows cannot be used, `output` has another ending or holds other rows, or the
            model is damaged.
        OSError: a file, a data set, the model or its base model cannot be read, or `output` cannot be written.
    """

    def chunks() -> Iterable[Chunk]:
        return first_of(read_chunks(str(data), split, columns.text, encoding), limit)

    return generate_chunks(
        name, chunks(), columns, output, chunks, vectors=vectors, num_beams=num_beams, max_new_tokens=max_new_tokens,
        batch_size=batch_size, revision=revision, overwrite=overwrite,
    )  # fmt: skip


def generate_chunks(
    name: str | Path,
    chunks: Iterable[Chunk],
    columns: Columns,
    output: str | Path | None,
    reread: Callable[[], Iterable[Chunk]] | None = None,
    *,
    vectors: bool = True,
    num_beams: int = 1,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    revision: str | None = None,
    overwrite: bool = False,
) -> Generated:
    """Do as `generate_file` does, for rows that come in chunks, such as those of `streaming.chunks_of_texts`.

    Args:
        reread: returns the chunks once more; None if the rows have no other column than their text.
    """
    columns = columns._replace(target=None)
    if output is not None:  # before the model is loaded
        check_output_name(Path(output))
    folder, model, processor, limits = _load(name, revision)
    options: dict = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
    texts_depend_on = {
        "model": trained_digest(folder), "columns": list(columns), "no_vectors": not vectors, "batch_size": batch_size,
    } | options  # fmt: skip
    is_first, lines = processes().is_main_process, None
    if is_first:
        path = None if output is None else Path(output)
        lines = OutputFile(path, columns, texts_depend_on, overwrite) if path else StandardOutput(columns)

    def inputs(rows, numbers, counts):
        return make_inputs(rows, columns, processor, limits, vectors, keep=False, numbers=numbers, counts=counts)

    def write(rows, progress):
        return generate_texts(model, rows, processor, batch_size, progress if is_first else None, **options)

    try:
        counts = generate_lines(chunks, columns, inputs, write, lines, reread)
    except KeyboardInterrupt:
        raise GenerationStopped(lines.old + lines.new if lines else None) from None
    finally:
        if lines:
            lines.close()
    numbers = [lines.old, lines.new] if lines else [0, 0]
    broadcast_object_list(numbers)
    generated = Generated(rows=sum(numbers), earlier=numbers[0])
    _report(generated, counts, limits)
    if columns.vector and vectors and 0 < counts["inputs"] == counts["without vectors"] and not generated.earlier:
        raise ValueError(
            f"column {columns.vector!r} holds no vector in any row; all {generated.rows} texts are generated from "
            "the rows' text alone."
        )
    return generated


def _report(generated: Generated, counts: Counter, limits: tuple[int, int]) -> None:
    if generated.rows == 0:
        raise ValueError("there are no texts; give them as arguments, with --file, or on standard input.")
    report_counts(counts, *limits)
    if counts["empty"]:
        say(f"{counts['empty']} rows have an empty text; their output is null.")


def _load(name: str | Path, revision: str | None) -> tuple[Path, torch.nn.Module, T5FusionProcessor, tuple[int, int]]:
    """Return the folder of a trained model, the model on this process's device, its processor and its limits."""
    folder = find_trained(str(name), revision)
    model, processor = load_trained(folder)
    return folder, model.to(processes().device), processor, trained_limits(folder)

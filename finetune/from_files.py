"""Train, evaluate and generate from files: what the commands of the same names do, as functions."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from ..common.base_models import make_processor
from ..common.console import is_first_process, say
from ..common.progress import Progress
from ..common.run_files import RunFiles
from ..common.run_folder import find_trained, load_trained, trained_digest, trained_limits
from ..processing_t5fusion import T5FusionProcessor
from .data import Columns, check_columns, first_rows, has_vector, hub_data_set, load_split, vector_width, with_all_texts
from .decoding import check_decoding, seed_of_chunk
from .evaluation import Evaluation, Vectors, evaluate_large, kinds_of_vectors, save_evaluation, summarize
from .files import load_rows
from .generation import generate_lines, generate_texts
from .inputs import make_inputs, report_counts
from .options import Recipe, TrainingOptions
from .output_file import OutputFile, StandardOutput, check_output_name
from .output_folder import CHECKPOINTS, check_output
from .parallel import processes
from .record import rows_digest, trained_columns, trained_options
from .run_config import run_yaml
from .streaming import Chunk, count_rows, first_of, read_chunks
from .trainer import check_launch, training_arguments
from .training import held_out_loss, train


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
    text. All arguments are written into `output/run.yaml`: `train_file(**read_run("runs/mine/run.yaml") | {"output":
    "runs/again"})` trains the same again, as `t5fusion train --config` does.

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
    data, output, validation = str(data), Path(output), None if validation is None else str(validation)
    check_launch()
    _check_columns_for_training(columns, recipe)
    if options.settings:  # before the vectors are made, which can take hours
        training_arguments(options, output / CHECKPOINTS)
    rows, held_out = load_split(data, columns, validation, recipe.encoder, encoding)
    rows, held_out = first_rows(rows, limit), first_rows(held_out, limit)
    if is_first_process():  # before the vectors are made
        check_output(output, resume, overwrite)
    processor = _new_processor(rows, columns, options.base_model, recipe)
    limits = (options.max_source, options.max_target)
    counts: Counter = Counter()
    inputs = make_inputs(rows, columns, processor, limits, counts=counts)
    held_out_inputs = make_inputs(held_out, columns, processor, limits, counts=counts)
    report_counts(counts, *limits)
    run = run_yaml(
        columns, options, recipe, data=data, validation=validation, limit=limit, encoding=encoding, output=output
    )  # fmt: skip
    model = train(
        inputs, held_out_inputs, processor, options, output, resume, hub_data_set(data), columns, overwrite,
        source={"data": _absolute(data), "validation": _absolute(validation), "limit": limit, "encoding": encoding},
        run=run,
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
        words = ["--file", data]  # `generate` reads it by the columns of the training
    else:
        text = rows[0][columns.text]
        words = [text if len(text) < 80 and text.isprintable() else "TEXT"]
    return shlex.join(["t5fusion", "generate", str(output), *words])


def _absolute(data: str | Path | None) -> str | None:
    """Return the absolute path of a file; the id of a data set and None as they are."""
    if data is None:
        return None
    return str(Path(data).absolute() if Path(data).exists() else data)


def columns_for(
    name: str | Path,
    text: str | None = None,
    target: str | None = None,
    lexical: str | None = None,
    vector: str | None = None,
    *,
    revision: str | None = None,
    vectors: bool = True,
) -> Columns:
    """Return the columns to evaluate or generate with: those that are given, and else those of the training.

    Args:
        name: folder that training saved, bundle, or id of a repository on the Hub.
        text, target, lexical, vector: names of columns, as for `Columns`. If `lexical` or `vector` is given, the
            training decides on neither of them.
        revision: branch, tag or commit of the repository.
        vectors: whether the model is given vectors. If not, the training decides on neither `lexical` nor `vector`.

    Raises:
        ValueError: no text column is given, and the training did not record its columns.
    """
    trained = trained_columns(find_trained(str(name), revision))
    if trained is None and text is None:
        raise ValueError(
            f"{name} does not record the columns that it was trained with. Name them: --text-column, --target-column, "
            "and --lexical-column or --vector-column if there was one."
        )
    if trained is None:
        return Columns(str(text), target, lexical, vector)
    if vectors and lexical is None and vector is None:
        lexical, vector = trained.lexical, trained.vector
    return Columns(text or trained.text, target or trained.target, lexical, vector)


def evaluate_file(
    name: str | Path,
    data: str | Path | None = None,
    columns: Columns | None = None,
    *,
    vectors: Vectors | Literal["all"] = "true",
    seed: int = 0,
    split: str = "validation",
    revision: str | None = None,
    limit: int | None = None,
    encoding: str | None = None,
) -> Evaluation:
    """Measure loss, ROUGE and chrF of a model on the rows of a file, or on those that its training held out.

    If `name` is a folder, the result is saved there in evaluation.json, for the model card, unless that file covers
    more rows or more kinds of vectors.

    Without `data`, the rows are those that the training held out, or took from its validation file. They are read
    again, and must be the same. Then `Evaluation.eval_loss` is also measured, as the Trainer does. On the same machine
    and with as many processes it equals that of the training's last evaluation to the bit.

    Args:
        name: folder that training saved, bundle, or id of a repository on the Hub.
        data: JSONL, CSV or Parquet file, or id of a data set on the Hub; None for the rows that the training held out.
        columns: the columns to read, a target column among them; None for those of the training.
        vectors: the rows' own vectors ("true"), other rows' ("shuffled"), "none", or "all" three, compared.
        seed: decides which row's vector a row gets, if they are shuffled.
        split: split of the data set on the Hub.
        revision: branch, tag or commit of the repository.
        limit: use only the first rows.
        encoding: encoding of a CSV file; None for UTF-8.

    Raises:
        ValueError: an argument or the rows cannot be used, the rows that the training held out are not known or have
            changed, or a file of the model is damaged.
        OSError: a file, a data set, the model or its base model cannot be read.
    """
    kinds, data = kinds_of_vectors(vectors), None if data is None else str(data)
    folder = find_trained(str(name), revision)
    if data is None:
        rows = held_out_rows(folder)
    if columns is None:
        columns = columns_for(name, revision=revision, vectors=kinds != ["none"] or data is None)
    if columns.target is None:
        raise ValueError("an evaluation needs a target column. Name one: --target-column, or Columns(text, target).")
    if data is None:
        if columns != trained_columns(folder):
            raise ValueError("columns were named, and no file. Name the file, or leave the columns out.")
    else:
        rows = load_rows(data, split, encoding)
        check_columns(rows, columns, trained_columns(folder))
        rows = first_rows(with_all_texts(rows, columns), limit)
    state = processes()
    folder, model, processor, limits = _load(name, revision)

    def inputs(part, counts):
        return make_inputs(
            rows.select(part), columns, processor, limits, kinds != ["none"], counts=counts, progress=False
        )

    eval_loss = None
    if data is None:
        all_inputs = make_inputs(rows, columns, processor, limits, counts=Counter())
        eval_loss = _held_out_loss(folder, model, processor, all_inputs)
        rows = first_rows(rows, limit)
    rows_with_vector = has_vector(rows, columns) if columns.vector and kinds != ["none"] else None
    with Progress("Evaluating", len(rows) * len(kinds)) as progress:
        results, counts = evaluate_large(model, processor, len(rows), inputs, kinds, progress, rows_with_vector, seed)
    report_counts(counts, *limits)
    # The scores ignore white space, but the model card shows each sample on one line.
    references = [" ".join(target.split()) for target in rows[columns.target]]
    evaluation = replace(summarize(results, rows[columns.text], references), eval_loss=eval_loss)
    if not state.is_main_process or not Path(name).is_dir():
        return evaluation
    source = {"data": data, "split": split} if data is not None and hub_data_set(data) else {}
    return replace(evaluation, is_saved=save_evaluation(folder, evaluation.record(**source)))


def held_out_rows(folder: str | Path) -> Dataset:
    """Return the rows that the training of a run folder held out, or took from its validation file, read again.

    Raises:
        ValueError: the folder does not record where they come from, or their number has changed.
        OSError: the file or data set is not there any more.
    """
    record, columns = RunFiles(folder).record, trained_columns(Path(folder))
    source = record.get("source")
    if not source or columns is None:
        raise ValueError(
            f"{folder} does not record which rows its training held out. Name a file: t5fusion evaluate {folder} FILE."
        )
    # Which columns hold vectors was settled when it was trained, so any encoder will do.
    _, rows = load_split(source["data"], columns, source["validation"], record["options"]["base"], source["encoding"])
    rows = first_rows(rows, source["limit"])
    if len(rows) != record["held_out_rows"]:
        raise ValueError(
            f"{len(rows)} rows of {source['validation'] or source['data']} would be held out now, and the training "
            f"held out {record['held_out_rows']}: the file has changed. Name a file with the rows to evaluate on."
        )
    return rows


def _held_out_loss(folder: Path, model: torch.nn.Module, processor: T5FusionProcessor, inputs: list[dict]) -> float:
    """Return the loss as the Trainer measures it; ValueError if the rows are not those that the training held out."""
    record = RunFiles(folder).record
    if rows_digest(inputs) != record["held_out_digest"]:
        source = record["source"]
        raise ValueError(
            f"the texts that are held out in {source['validation'] or source['data']} are not those of the training: "
            "the file has changed. Name a file with the rows to evaluate on."
        )
    loss = held_out_loss(model, inputs, processor, trained_options(folder))
    before = next((entry["eval_loss"] for entry in reversed(record["history"]) if "eval_loss" in entry), None)
    before = (record.get("best") or {}).get("eval_loss", before)
    if loss == before:
        say(f"eval_loss is {loss:.4f}, exactly as in training.")
    else:
        say(
            f"eval_loss is {loss!r}, and was {before!r} in training. The last digits depend on the machine, the "
            "precision and the number of processes."
        )
    return loss


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
    columns: Columns | None = None,
    output: str | Path | None = None,
    *,
    vectors: bool = True,
    num_beams: int = 1,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    settings: Mapping[str, Any] | None = None,
    seed: int = 42,
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
        columns: the columns to read; None for those of the training. `columns.target` is ignored.
        output: file to write, which ends in .jsonl, .csv, .parquet, .jsonl.gz or .csv.gz; None to print JSON lines on
            standard output.
        vectors: whether to give the model vectors.
        num_beams, max_new_tokens: arguments of `model.generate`.
        batch_size: rows in a batch.
        settings: fields of transformers' GenerationConfig, such as {"do_sample": True, "temperature": 0.7}.
        seed: seed of the random numbers, if `do_sample`. The same seed gives the same texts, also if the run was
            interrupted, and for any number of processes.
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

    given = columns or columns_for(name, revision=revision, vectors=vectors)

    def chunks() -> Iterable[Chunk]:
        return first_of(read_chunks(str(data), split, given.text, encoding), limit)

    return generate_chunks(
        name, chunks(), given, output, chunks, vectors=vectors, num_beams=num_beams, max_new_tokens=max_new_tokens,
        batch_size=batch_size, settings=settings, seed=seed, revision=revision, overwrite=overwrite,
        total=lambda: count_rows(str(data), split, encoding, limit),
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
    settings: Mapping[str, Any] | None = None,
    seed: int = 42,
    revision: str | None = None,
    overwrite: bool = False,
    total: Callable[[], int | None] = lambda: None,
) -> Generated:
    """Do as `generate_file` does, for rows that come in chunks, such as those of `streaming.chunks_of_texts`.

    Args:
        reread: returns the chunks once more; None if the rows have no other column than their text.
        total: returns the number of rows, for the progress bar; None if it is not known.
    """
    decoding = check_decoding(settings or {})
    columns = columns._replace(target=None)
    if output is not None:  # before the model is loaded
        check_output_name(Path(output))
    folder, model, processor, limits = _load(name, revision)
    options: dict = {"num_beams": num_beams, "max_new_tokens": max_new_tokens} | decoding
    texts_depend_on = {
        "model": trained_digest(folder), "columns": list(columns), "no_vectors": not vectors, "batch_size": batch_size,
    } | options | ({"seed": seed} if decoding.get("do_sample") else {})  # fmt: skip
    is_first, lines = processes().is_main_process, None
    if is_first:
        path = None if output is None else Path(output)
        lines = OutputFile(path, columns, texts_depend_on, overwrite) if path else StandardOutput(columns)

    def inputs(rows, numbers, counts):
        return make_inputs(rows, columns, processor, limits, vectors, keep=False, numbers=numbers, counts=counts)

    def checked() -> Iterable[Chunk]:
        trained = trained_columns(folder)
        for chunk in chunks:
            check_columns(chunk.rows, columns, trained and trained._replace(target=None))
            yield chunk

    def write(rows, first, advance):
        with torch.random.fork_rng([] if model.device.type == "cpu" else [model.device]):
            torch.manual_seed(seed_of_chunk(seed, first))
            return generate_texts(model, rows, processor, batch_size, advance, **options)

    try:
        with Progress("Generating", total() if is_first else None) as progress:
            counts = generate_lines(checked(), columns, inputs, write, lines, reread, progress)
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

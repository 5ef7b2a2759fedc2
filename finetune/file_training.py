"""Train on the rows of a file, as `t5fusion train` does."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset

from ..common.base_models import make_processor
from ..common.console import is_first_process, say
from ..common.next_commands import command
from ..hooks.trainer_hook import FEW_REPORT_ROWS
from ..kinds_t5fusion import DEFAULT_KIND, VectorKind, counted, plain_kind
from ..processing_t5fusion import T5FusionProcessor
from .checkpoints import recorded_commit
from .data import Columns, advising_skip_nan, first_rows, hub_data_set, load_split, report_no_text, vector_widths
from .inputs import input_parts, make_inputs, report_counts
from .options import Recipe, TrainingOptions
from .output_folder import CHECKPOINTS, check_output
from .prepared_rows import keep_rows, rows_folder
from .record import absolute_vector_files
from .row_stream import Block, RowReader, RowStream
from .run_config import run_yaml
from .trainer import check_launch, training_arguments
from .training import train


@advising_skip_nan()
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
    skip_nan: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> torch.nn.Module:
    """Train on the rows of a file, and save the adapter (or all weights), the processor and a record of the training.

    The vectors come from the column or columns `columns.vector`. Without one, an encoder makes them from
    `columns.lexical`, or else from the text. A column NAME.npy is a NumPy file: its row i holds the vector or vectors
    of row i of `data`. If there is an encoder (`recipe.encoder`, or `columns.lexical`) as
    well as columns of vectors, its vectors are the first kind, "lexical". All arguments are written into
    `output/run.yaml`. To train with them again, call
    `train_file(**read_run("runs/mine/run.yaml") | {"output": "runs/again"})`.

    Args:
        data: JSONL, CSV, Parquet or Arrow file, or id of a data set on the Hub.
        columns: The columns to read. `columns.target` is required.
        output: Folder to save in. Unless `resume` or `overwrite`, it must be empty or not exist.
        options: How to train; None for the defaults.
        recipe: How vectors and prompts are made; None for the defaults.
        validation: File or data set to validate with after each epoch; if None, a tenth of the rows is held out.
        limit: Use at most this many rows to train on, and this many to validate with.
        encoding: Encoding of CSV files; None for UTF-8.
        skip_nan: Leave out rows whose vectors hold NaN or infinity. By default, they are an error.
        resume: Resume from the last checkpoint in `output`. All other arguments must be as before.
        overwrite: Replace what an earlier training saved in `output`.

    Returns:
        The trained model, as `train` returns it.

    Raises:
        Interrupted: Ctrl-C was pressed or SIGTERM received; a checkpoint is saved.
        ValueError: An argument, the rows or their vectors cannot be used; or `output` must not be replaced.
        OSError: A file, a data set or the base model cannot be read, or `output` cannot be written.
    """
    options, recipe = options or TrainingOptions(), recipe or Recipe()
    data, output, validation = str(data), Path(output), None if validation is None else str(validation)
    check_launch()
    _check_columns_for_training(columns, recipe)
    recipe = _recipe_for(columns, recipe)
    if options.settings:  # They are checked before the vectors are made, which can take hours.
        training_arguments(options, output / CHECKPOINTS)
    rows, held_out = load_split(data, columns, validation, recipe.encoder, encoding, skip_nan, options.streaming)
    report_no_text(columns, rows.column_names)
    reader = None
    if options.streaming:
        reader = RowReader(data, columns, rows, held_out if validation is None else None, encoding, skip_nan, limit)
    rows, held_out = first_rows(rows, limit), first_rows(held_out, limit)
    if is_first_process():  # The folder, too, is checked before the vectors are made.
        check_output(output, resume, overwrite)
    # The tokenizer of a resumed training stays at its commit too, even if the base model's main branch has moved.
    commit = recorded_commit(output / CHECKPOINTS) if resume else None
    processor = _new_processor(rows, columns, options.base_model, commit, recipe)
    limits = (options.max_source, options.max_target)
    counts: Counter = Counter()
    recorded = absolute_vector_files(columns)
    run = run_yaml(
        recorded, options, recipe, data=data, validation=validation, limit=limit, encoding=encoding,
        skip_nan=skip_nan or None, output=output,
    )  # fmt: skip
    source = {"data": _absolute(data), "validation": _absolute(validation), "limit": limit, "encoding": encoding}
    source |= {"skip_nan": True} if skip_nan else {}
    with rows_folder() as folder:
        inputs, held_out_inputs = (
            keep_rows(folder / name, input_parts(part, columns, processor, limits, counts), tuple(processor.kinds))
            for name, part in {"rows.arrow": rows, "held_out.arrow": held_out}.items()
        )
        report_counts(counts, *limits)
        to_train = inputs if reader is None else _streamed(reader, columns, processor, options, output)
        model = train(
            to_train, held_out_inputs, processor, options, output, resume, hub_data_set(data), recorded, overwrite,
            source=source, run=run, first=inputs,
        )  # fmt: skip
    if reader is not None:
        reader.report()
    if (columns.vector or columns.lexical) and len(held_out) < FEW_REPORT_ROWS:
        compare = command("evaluate", output, "FILE", "--vectors", "all")
        few = counted(len(held_out), "held-out row")
        say(f"With only {few}, it is uncertain what the vectors add; compare on more rows: {compare}")
    say(f"Saved in {output}. Next: {_next_command(data, columns, output, rows)}")
    return model


def _streamed(
    reader: RowReader, columns: Columns, processor: T5FusionProcessor, options: TrainingOptions, output: Path
) -> RowStream:
    """Return the rows to train on, which are read while the model trains. Their vectors are not kept on disk."""
    limits = (options.max_source, options.max_target)

    def inputs_of(block: Block) -> list[dict]:
        rows, numbers = Dataset(block.rows), block.numbers.tolist()
        # An encoder may draw random numbers when it is loaded. Those of the training must not depend on this.
        with torch.random.fork_rng([]):
            return make_inputs(
                rows, columns, processor, limits, keep=False, numbers=numbers, counts=Counter(), progress=False
            )

    arguments = training_arguments(options, output / CHECKPOINTS)
    rows_of_step = arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    row_count = arguments.max_steps * rows_of_step
    return RowStream(reader.read, inputs_of, row_count, options.shuffle_buffer, options.seed)


def _check_columns_for_training(columns: Columns, recipe: Recipe) -> None:
    """Raise ValueError if there is no target column, or if a column or the encoder would have no effect."""
    if columns.target is None:
        raise ValueError("training needs a target column. Name one: --target-column, or Columns(text, target).")
    if columns.text is None and not (columns.vector or columns.lexical):
        raise ValueError(
            "training needs a column of texts or of vectors. Name one, or both: --text-column and --vector-column, or "
            "Columns(text, vector=...)."
        )
    has_encoder = columns.lexical or recipe.encoder
    if has_encoder and isinstance(columns.vector, str):
        raise ValueError(
            f"column {columns.vector!r} holds a second kind of vectors beside the encoder's. Name the kind: "
            f"Columns(..., vector={{'NAME': {columns.vector!r}}})."
        )
    if has_encoder and DEFAULT_KIND in columns.by_kind:
        raise ValueError(
            f"the encoder makes the vectors of the kind {DEFAULT_KIND!r}, and a column has it too. Rename that kind."
        )
    if unknown := [kind for kind in recipe.kinds or {} if kind not in columns.by_kind]:
        raise ValueError(
            f"`kinds` has options for {', '.join(map(repr, unknown))}, but no column holds vectors of that kind."
        )


def _recipe_for(columns: Columns, recipe: Recipe) -> Recipe:
    """Return the recipe, without a place for the text in its template if the rows have no text.

    Raises:
        ValueError: The template has a place for the text, and there is no column of texts, or the reverse.
    """
    if columns.text is None and recipe.template == Recipe.template:
        return replace(recipe, template="")
    if columns.text is None and "{text}" in recipe.template:
        raise ValueError(
            f"the template {recipe.template!r} has a place for a text, and no column of texts is named. Pass "
            "--text-column, or leave {text} out of --template."
        )
    encodes_text = not (columns.vector or columns.lexical) or (recipe.encoder and not columns.lexical)
    if columns.text is not None and "{text}" not in recipe.template and not encodes_text:
        raise ValueError(
            f"the template {recipe.template!r} has no {{text}}, so nothing reads the column {columns.text!r}. Put "
            "{text} into --template, or leave --text-column out."
        )
    return recipe


def _new_processor(
    rows: Dataset, columns: Columns, base_model: str, commit: str | None, recipe: Recipe
) -> T5FusionProcessor:
    """Return the base model's tokenizer, at this commit if one is given, with the recipe for these columns."""
    options = recipe.kinds or {}
    kinds = {kind: VectorKind(width, **options.get(kind, {})) for kind, width in vector_widths(rows, columns).items()}
    settings: dict = {"template": recipe.template}
    if kinds and not (columns.lexical or recipe.encoder):
        settings |= {"lexical_encoder": None, "lexical_source": "given", "vectors": kinds}
    else:
        settings["lexical_source"] = "given" if columns.lexical else "text"
        settings |= (
            {"vectors": plain_kind(recipe.lexical_dim) | kinds} if kinds else {"lexical_dim": recipe.lexical_dim}
        )
        settings |= {"lexical_encoder": recipe.encoder} if recipe.encoder else {}
    return make_processor(base_model, commit, **settings)


def _next_command(data: str, columns: Columns, output: Path, rows: Dataset) -> str:
    """Return a command that generates with the trained model."""
    if columns.lexical or columns.vector:
        words = ["--file", data]  # No columns are named, because `generate` knows the columns of the training.
    else:
        text = rows[0][columns.text]
        words = [text if len(text) < 80 and text.isprintable() else "TEXT"]
    return command("generate", output, *words)


def _absolute(data: str | Path | None) -> str | None:
    """Return the absolute path of a file; the id of a data set and None as they are."""
    if data is None:
        return None
    return str(Path(data).absolute() if Path(data).exists() else data)

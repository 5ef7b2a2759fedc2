"""`t5fusion evaluate`."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..common.console import is_first_process, say
from ..common.measures import SCORE_NAMES
from ..common.panels import OUTPUT, VECTORS
from ..engines.names import REFERENCE
from ..finetune.file_names import check_readable, check_vector_files
from ..finetune.vector_options import parse_vector_columns, vector_names
from .arguments import (
    Encoding,
    Engine,
    EngineName,
    Limit,
    Revision,
    SkipNan,
    Split,
    Trained,
    TrainedLexicalColumn,
    TrainedTargetColumn,
    TrainedTextColumn,
    TrainedVectorColumn,
)
from .info import MEASURED_WITH
from .libraries import load_libraries


class VectorChoice(str, Enum):
    """The vectors to evaluate with."""

    true = "true"
    shuffled = "shuffled"
    none = "none"
    all = "all"


def evaluate(
    name: Trained,
    data: Annotated[
        str | None,
        typer.Argument(
            help="JSONL, CSV, Parquet or Arrow file, or id of a data set on the Hub. Default: the rows that training "
            "held out."
        ),
    ] = None,
    text_column: TrainedTextColumn = None,
    target_column: TrainedTargetColumn = None,
    lexical_column: TrainedLexicalColumn = None,
    vector_column: TrainedVectorColumn = None,
    split: Split = "validation",
    vectors: Annotated[
        VectorChoice,
        typer.Option(
            rich_help_panel=VECTORS,
            help="The rows' own vectors (true), other rows' vectors (shuffled), none, or all three, compared.",
        ),
    ] = VectorChoice.true,
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=VECTORS, help="Seed that shuffles the vectors.")] = 0,
    revision: Revision = None,
    limit: Limit = None,
    encoding: Encoding = None,
    skip_nan: SkipNan = False,
    engine: Engine = EngineName[REFERENCE],
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print JSON instead of a table.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(rich_help_panel=OUTPUT, help="JSON file for the results and the generated texts of some rows."),
    ] = None,
):
    """Measure the loss on rows that have a target, and score generated texts.

    The scores are ROUGE, chrF, BLEU, token F1 and exact match.

    The result is saved in FOLDER/evaluation.json, for the model card, unless that file covers more rows or more values
    of --vectors. If FOLDER is a bundle, its card is updated too. If FOLDER is the id of a repository, nothing is saved.

    Without DATA, the rows that the training held out are read again. They must be unchanged. On the same machine,
    eval_loss equals, bit for bit, the loss that the training measured for the saved model.

    Example: [bold]t5fusion evaluate runs/files[/bold]

    Example: [bold]t5fusion evaluate runs/files test.jsonl --vectors all[/bold]
    """
    vector, _ = parse_vector_columns(vector_column, has_encoder=bool(lexical_column), takes_options=False)
    from ..common.folder_names import check_reachable  # It imports the Hub's client, which --help does not need.

    check_reachable(name, revision)
    if data is not None:
        check_readable(data, encoding)
        check_vector_files(vector_names(vector), data)
    elif any((text_column, target_column, lexical_column, vector_column, encoding)):
        raise ValueError(
            "columns or an encoding were given without a file. Name the file, or leave them out to evaluate on the "
            "rows that the training held out."
        )
    elif skip_nan:
        raise ValueError("--skip-nan was given without a file. Leave it out: the held-out rows are as in the training.")
    load_libraries()
    from ..finetune import columns_for, evaluate_file  # It is slow to import, and --help does not need it.

    columns = None if data is None else columns_for(
        name, text_column, target_column, lexical_column, vector,
        revision=revision, vectors=vectors != VectorChoice.none, data=data,
    )  # fmt: skip
    evaluation = evaluate_file(
        name, data, columns,
        vectors=vectors.value, seed=seed, split=split, revision=revision, limit=limit, encoding=encoding,
        skip_nan=skip_nan, engine=engine.value,
    )  # fmt: skip
    if not is_first_process():
        return
    worth, eval_loss = evaluation.worth_of_vectors, evaluation.eval_loss
    held_out = {} if eval_loss is None else {"eval_loss": eval_loss}
    if as_json:
        measures = {**evaluation.measures, "worth_of_vectors": worth} if worth else evaluation.measures[vectors.value]
        print(json.dumps(measures | held_out))
    else:
        _print_measures(evaluation.measures, worth, eval_loss)
    if output:
        _write_json(output, evaluation.record() | held_out)
    _update_card(name, evaluation.is_saved)


def _write_json(file: Path, results: dict) -> None:
    """Write the results to a file, and tell the user where they are."""
    from ..common.writing import writing  # It is slow to import, and --help does not need it.

    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    say(f"The results are in {file}.")


def _update_card(name: str, is_saved: bool) -> None:
    """Update the card if `name` is a bundle, and tell the user where the evaluation is."""
    from ..common.run_files import EVALUATION, RunFiles  # It is slow to import, and --help does not need it.
    from ..hub_export.evaluation import keep_evaluation
    from ..hub_export.manifest import MANIFEST

    folder = Path(name)
    if not folder.is_dir():
        say(f"Not saved: {name} is a repository. For its model card, evaluate the folder that was pushed.")
    elif is_saved and (folder / MANIFEST).exists():
        keep_evaluation(folder)
        say(f"Saved in {folder / EVALUATION}, and in the bundle's card, which `t5fusion push` sends.")
    elif is_saved:
        say(f"Saved in {folder / EVALUATION}, for the model card. Next: {RunFiles(folder).export_command}")


def _print_measures(
    measures: dict[str, dict[str, float]], worth: dict[str, dict[str, float]], eval_loss: float | None
) -> None:
    """Print a column for each condition of the vectors, and below it what the rows' own vectors are worth.

    Args:
        measures: The measures by condition, and by name.
        worth: What the rows' own vectors are worth, by the condition that they are compared with.
        eval_loss: The loss with the rows' own vectors, as the training measured it; None for other rows.
    """
    from rich.console import Console  # It is slow to import, and --json does not need it.
    from rich.table import Table

    columns = {condition: dict(values) for condition, values in measures.items()}
    if eval_loss is not None:
        columns.setdefault("true", {})["eval_loss"] = eval_loss
    table = Table("measure", *(MEASURED_WITH[condition] for condition in columns))
    labels = SCORE_NAMES | {"eval_loss": "eval_loss, by batches as in training"}
    for name in dict.fromkeys(name for values in columns.values() for name in values):
        cells = (values.get(name, "") for values in columns.values())
        texts = (f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells)
        table.add_row(labels.get(name, name), *texts)
    console = Console()
    console.print(table)
    for condition, interval in worth.items():
        low, high = interval["low"], interval["high"]
        cost = f"{interval['difference']:+.4f} nats per token (95 % between {low:+.4f} and {high:+.4f})"
        console.print(f"{MEASURED_WITH[condition]} instead of the rows' own vectors: {cost}", highlight=False)

"""`t5fusion evaluate`."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..common.console import say, silence_libraries
from .arguments import Encoding, LexicalColumn, Limit, Revision, TargetColumn, TextColumn, Trained, VectorColumn


class VectorKind(str, Enum):
    true = "true"
    shuffled = "shuffled"
    none = "none"
    all = "all"


def evaluate(
    name: Trained,
    data: Annotated[str, typer.Argument(help="JSONL, CSV or Parquet file, or id of a data set on the Hub.")],
    text_column: TextColumn,
    target_column: TargetColumn,
    lexical_column: LexicalColumn = None,
    vector_column: VectorColumn = None,
    split: Annotated[str, typer.Option(help="Of a data set on the Hub.")] = "validation",
    vectors: Annotated[
        VectorKind, typer.Option(help="The rows' own, other rows', none; or all, compared.")
    ] = VectorKind.true,
    revision: Revision = None,
    limit: Limit = None,
    encoding: Encoding = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
):
    """Measure loss, ROUGE and chrF on rows that have a target.

    It is kept for the model card, in FOLDER/evaluation.json, unless that is of more rows or more kinds of vectors; a
    bundle's card is filled in with it at once. Nothing is kept where FOLDER is the id of a repository.

    Example: [bold]t5fusion evaluate runs/files test.jsonl --text-column filename --target-column file_desc[/bold]
    """
    silence_libraries()
    from ..common.losses import paired_bootstrap
    from ..common.run_folder import find_trained, load_trained, trained_limits
    from ..finetune.data import Columns, hub_data_set, rows_having_vector, with_all_texts
    from ..finetune.evaluation import (
        EVALUATION,
        SAMPLES,
        Vectors,
        evaluate_large,
        evaluation_record,
        save_evaluation,
    )
    from ..finetune.files import load_rows
    from ..finetune.inputs import make_inputs, say_counted
    from ..finetune.metrics import measures_of
    from ..finetune.parallel import processes
    from ..hub_export.evaluation import keep_evaluation
    from ..hub_export.manifest import MANIFEST

    state = processes()
    columns = Columns(text_column, target_column, lexical_column, vector_column)
    rows = with_all_texts(load_rows(data, split, encoding), columns)
    rows = rows.select(range(min(limit or len(rows), len(rows))))
    folder = find_trained(name, revision)
    model, processor = load_trained(folder)
    model, limits = model.to(state.device), trained_limits(folder)

    def inputs(part, counted):
        chosen = rows.select(part)
        return make_inputs(chosen, columns, processor, limits, vectors != VectorKind.none, cut=counted)

    every: tuple[Vectors, ...] = ("true", "shuffled", "none")
    kinds = [kind for kind in every if vectors.value in (kind, "all")]
    having = rows_having_vector(rows, columns) if vector_column and kinds != ["none"] else None
    made, counted = evaluate_large(model, processor, len(rows), inputs, kinds, state.is_main_process, having)
    if not state.is_main_process:
        return
    say_counted(counted, *limits)
    # the scores do not see white space, but the samples of the model card are shown on one line
    references = [" ".join(target.split()) for target in rows[target_column]]
    found: dict[str, dict] = {kind: measures_of(*made[kind], references) for kind in kinds}
    worth: dict[str, dict] = {
        kind: paired_bootstrap(losses, made["true"][0])._asdict()
        for kind, (losses, _) in made.items()
        if len(kinds) > 1 and kind != "true"
    }
    if as_json:
        print(json.dumps(found | {"worth_of_vectors": worth} if worth else found[vectors.value]))
    else:
        _print_measures(found, worth)
    shown = made["true"][1][:SAMPLES] if "true" in kinds else []
    written = zip(rows[text_column], references, shown, strict=False)
    record = evaluation_record(
        rows=len(rows),
        scored_rows=len(rows),
        measures={
            kind: {name: measures[name] for name in measures if name != "rows"} for kind, measures in found.items()
        },
        worth=worth,
        samples=[dict(zip(("text", "reference", "output"), row, strict=True)) for row in written],
        **({"data": data, "split": split} if hub_data_set(data) else {}),
    )
    if not Path(name).is_dir():
        say(f"Not kept: {name} is a repository. To have it in a card, evaluate the folder that was pushed from.")
    elif not save_evaluation(folder, record):
        say(f"Not kept: {folder / EVALUATION} is of more rows or kinds of vectors. To replace it, delete it first.")
    elif (folder / MANIFEST).exists():
        keep_evaluation(folder)
        say(f"Kept in {folder / EVALUATION}, and in the bundle's card, which `t5fusion push` sends.")
    else:
        say(f"Kept in {folder / EVALUATION}, for the model card.")


def _print_measures(found: dict[str, dict], worth: dict[str, dict]) -> None:
    """A column for each kind of vectors, and what the rows' own are worth against the others."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", *(f"vectors: {kind}" for kind in found))
    for name in next(iter(found.values())):
        values = [measures[name] for measures in found.values()]
        table.add_row(name, *(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values))
    console = Console()
    console.print(table)
    for kind, interval in worth.items():
        low, high = interval["low"], interval["high"]
        line = f"{kind} instead of the rows' own vectors: {interval['difference']:+.4f} nats per token"
        console.print(f"{line} (95 % between {low:+.4f} and {high:+.4f})", highlight=False)

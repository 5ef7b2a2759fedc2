"""`t5fusion info`."""

import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.console import say
from ..common.measures import SCORE_NAMES
from ..common.panels import OUTPUT
from ..kinds_t5fusion import DEFAULT_KIND, counted
from ..naming_t5fusion import EMBEDDED
from .arguments import Revision

if TYPE_CHECKING:
    from ..common.folder_info import FolderInfo, VectorFacts

WIDTH, INDENT = 80, 14
FOLDER_TYPES = {  # by `FolderInfo.what`
    "run folder": "a run folder, which training saved",
    "checkpoint": "a checkpoint of a training",
    "adapter": "an adapter on a fused model",
    "fused model": "a saved fused model",
    "T5": "a plain T5, which can be a base model",
}
MEASURED_WITH = {
    "true": "own vectors",
    "shuffled": "other rows' vectors",
    "none": "no vectors",
    "untuned": "untuned model",
}
SHOWN = ("loss", "rouge1", "rougeL", "chrf")  # The lines have no room for more.
SCALES = {"standard": "each dimension scaled", "log": "each dimension scaled logarithmically"}
SOURCES = {"text": "made from the text", "given": "given with each text", "none": "not used"}


def info(
    name: Annotated[str, typer.Argument(help="A folder, the id of a repository on the Hub, or tiny_t5_v2.")],
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.", rich_help_panel=OUTPUT)] = False,
):
    """Describe a folder or repository: base model, vectors, columns, adapter, recipe, measured numbers, versions, size.

    Example: [bold]t5fusion info runs/demo[/bold]
    """
    from huggingface_hub.utils import disable_progress_bars  # It is slow to import, and --help does not need it.

    from ..common.folder_info import folder_info
    from ..common.folder_names import check_reachable
    from ..common.next_commands import after_info

    disable_progress_bars()
    if name not in EMBEDDED:
        check_reachable(name, revision)
    facts = folder_info(name, revision)
    if as_json:
        print(facts.to_json())
        return
    print("\n".join(_report_lines(facts)))
    say(f"Next: {after_info(facts, revision)}")


def _report_lines(facts: "FolderInfo") -> list[str]:
    """Return the lines of the report: a title, and for each fact that is known its label and its text."""
    title = f"{facts.name}: {FOLDER_TYPES.get(facts.what) or f'a bundle of kind {facts.kind}'}"
    rows: dict[str, Sequence[str | None]] = {
        "commit": [facts.commit],
        "base model": [_base_model(facts)],
        "vectors": [_vectors(kind) for kind in facts.vectors],
        "columns": [_columns(facts)],
        "adapter": _adapter(facts),
        "weights": [_weights(facts)],
        "recipe": _recipe(facts),
        "training": [_training(facts)],
        "measured": _measures(facts),
        "written by": [", ".join(f"{package} {version}" for package, version in facts.versions.items())],
        "size": [_size(facts)],
    }
    lines = _wrapped(title, "")
    for label, texts in rows.items():
        for text in filter(None, texts):
            lines += _wrapped(text, f"  {label}")
            label = ""  # Only the first text of a fact stands beside its label.
    return lines


def _wrapped(text: str, label: str) -> list[str]:
    """Return a text in lines of `WIDTH`, beside its label; a title has none."""
    indent = " " * INDENT if label else "  "
    first = label.ljust(INDENT) if label else ""
    if text.startswith("|"):  # It is a row of a table, in which spaces count.
        return [(first or " " * INDENT) + text[1:]]
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


def _base_model(facts: "FolderInfo") -> str | None:
    if facts.base_model is None:
        if facts.what == "T5":
            return None
        has_base_weights = facts.kind in ("standalone", "merged", "fused")
        return "not named; its weights are in this bundle" if has_base_weights else "not recorded"
    place = " (in this package)" if facts.base_model in EMBEDDED else ""
    return f"{facts.base_model}{place}" + (f" at commit {facts.base_commit}" if facts.base_commit else "")


def _adapter(facts: "FolderInfo") -> list[str]:
    adapter = facts.adapter
    if adapter is None:
        return []
    numbers = [f"{name} {value:g}" for name, value in (("rank", adapter.rank), ("alpha", adapter.alpha)) if value]
    lines = [", ".join([adapter.method, *numbers])]
    if adapter.target_modules:
        lines.append(f"on {', '.join(adapter.target_modules)}")
    if adapter.modules_to_save:
        lines.append(f"trained whole beside it: {', '.join(adapter.modules_to_save)}")
    return lines


def _vectors(kind: "VectorFacts") -> str:
    width = f"{counted(kind.width, 'number')} each" if kind.width else "of a width that no file here records"
    tokens = "" if kind.tokens == 1 else f"{kind.tokens} "
    projector = "" if kind.projector == "linear" else f", by an {kind.projector.upper()}"
    scale = "" if kind.scale is None else f", {SCALES[kind.scale]}"
    name = "" if kind.name == DEFAULT_KIND else f"{kind.name}: "
    return f"{name}{width}{scale}, in the place of {tokens}{kind.placeholder}{projector}"


def _columns(facts: "FolderInfo") -> str:
    """Describe the columns of the training data, by their use: "text 'name', target 'summary'"."""
    labels = {"text": "text", "target": "target", "lexical": "vectors made from", "vector": "vectors"}
    words = [f"{labels[use]} {column!r}" for use, column in facts.columns.items() if isinstance(column, str)]
    by_kind = facts.columns.get("vector")
    words += [f"{kind} vectors {name!r}" for kind, name in by_kind.items()] if isinstance(by_kind, dict) else []
    return ", ".join(words)


def _weights(facts: "FolderInfo") -> str | None:
    if facts.trained_share is not None:
        return f"{facts.trained_weights:,} of {facts.weights:,} trained ({facts.trained_share:.1%})"
    if facts.trained_weights is not None:
        return f"{facts.trained_weights:,} trained"
    return None if facts.weights is None else f"{facts.weights:,}"


def _recipe(facts: "FolderInfo") -> list[str]:
    recipe = facts.recipe
    if not recipe:
        return []
    encoder, revision = recipe.get("lexical_encoder"), recipe.get("lexical_encoder_revision")
    source = recipe.get("lexical_source", "")
    vectors = f"vectors {SOURCES.get(source, source)}"
    if encoder and source != "none":
        vectors += f", by {encoder}" + (f" at commit {revision}" if revision else "")
        vectors += ", scaled to unit length" if recipe.get("normalize") else ", not normalised"
        if recipe.get("lexical_max_tokens"):
            vectors += f", of at most {recipe['lexical_max_tokens']} tokens"
    template = recipe.get("template", "")
    no_text = "" if "{text}" in template else ", and no text"
    return [f"prompt {json.dumps(template, ensure_ascii=False)}{no_text}", vectors]


def _training(facts: "FolderInfo") -> str:
    names = {"epochs": "epochs: {:g}", "max_steps": "{:,} steps", "batch_size": "batches of {}"}
    names |= {"lr": "learning rate {:g}", "seed": "seed {}"}
    training = facts.training
    parts = [f"on {training['data']}"] if "data" in training else []
    parts += [f"{training['rows']:,} rows"] if "rows" in training else []
    parts += [words.format(training[name]) for name, words in names.items() if name in training]
    parts += [f"{training['seconds'] / 60:.1f} minutes"] if "seconds" in training else []
    return ", ".join(parts)


def _measures(facts: "FolderInfo") -> list[str]:
    if not facts.measures:
        return []
    columns = [name for name in SHOWN if any(name in values for values in facts.measures.values())]
    rows = f"on {facts.measured_rows:,} rows" if facts.measured_rows else "held out"
    lines = [f"|{rows:22}" + "".join(f"{SCORE_NAMES[name]:>9}" for name in columns)]
    for condition, values in facts.measures.items():
        cells = (f"{values[name]:9.3f}" if name in values else " " * 9 for name in columns)
        lines.append(f"|{MEASURED_WITH.get(condition, condition):22}" + "".join(cells))
    worth = facts.worth_of_vectors.get("shuffled")
    if worth:
        lines.append(
            f"another row's vector costs {worth['difference']:+.3f} nats per token (95 % between {worth['low']:+.3f} "
            f"and {worth['high']:+.3f})"
        )
    return [line.rstrip() for line in lines]


def _size(facts: "FolderInfo") -> str:
    if facts.size is None:
        return "not known: the Hub cannot be asked"
    size = f"{facts.size / 1e6:,.1f} MB" if facts.size >= 1e5 else f"{facts.size / 1e3:,.1f} kB"
    return f"{size} in {counted(facts.files or 0, 'file')}"

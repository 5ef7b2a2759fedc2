"""run.yaml: all arguments of a training in one file, which each run writes into its folder.

`t5fusion train --config run.yaml` trains with them again, and so does `train_file(**read_run("run.yaml"))`.
"""

import os
from dataclasses import Field, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import did_you_mean
from .options import LORA_ONLY, Recipe, TrainingOptions
from .plain_yaml import read_yaml, write_yaml
from .vector_options import parse_vector_columns, vector_column_values

if TYPE_CHECKING:
    from .data import Columns

COLUMNS = {"text_column": "text", "target_column": "target", "lexical_column": "lexical", "vector_column": "vector"}
# The other arguments of `train_file`.
ARGUMENTS = ("data", "validation", "limit", "encoding", "skip_nan", "output", "resume", "overwrite")
SETTINGS = "set"  # the key of the settings, which --set gives on the command line
VECTOR_COLUMN = "vector_column"  # the key of the columns of vectors, with the options of their kinds


def _name_in_file(field: Field) -> str:
    """Return the name of a field in run.yaml: its name on the command line, with underscores."""
    return field.metadata.get("opposite", (field.name,))[0]


FIELDS = {_name_in_file(field): field for options in (Recipe, TrainingOptions) for field in fields(options)}
FIELDS[SETTINGS] = FIELDS.pop("settings")
del FIELDS["kinds"]  # They stand beside the columns.
KEYS = ("data", *COLUMNS, *ARGUMENTS[1:], *FIELDS)


def read_config(file: str | Path) -> dict[str, Any]:
    """Return the arguments in a YAML file, by their names on the command line, with underscores.

    Paths are relative to the current folder, as on the command line. Arguments whose value is null are left out.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file holds no mapping in YAML, or a name is unknown or given twice.
    """
    if not Path(file).is_file():
        raise OSError(f"there is no file {file}; expected a YAML file of options, such as runs/mine/run.yaml.")
    try:
        content = read_yaml(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no options; expected lines such as `epochs: 2`.")
    arguments: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in KEYS:
            hint = did_you_mean(name, KEYS, "see `t5fusion train --help` for the names.")
            raise ValueError(f"{file} names {key}, which is not an option of `t5fusion train`; {hint}")
        if name in arguments:
            raise ValueError(f"{file} gives {name} twice.")
        arguments[name] = value
    if not isinstance(arguments.get(SETTINGS) or {}, dict):
        raise ValueError(f"{file}: {SETTINGS} is {arguments[SETTINGS]!r}; expected names and values, such as a: 1.")
    if arguments.get(VECTOR_COLUMN) is not None:
        arguments[VECTOR_COLUMN] = _list_of_texts(arguments[VECTOR_COLUMN], file)
    return {name: value for name, value in arguments.items() if value is not None}


def _list_of_texts(given: Any, file: str | Path) -> list[str]:
    """Return the values of --vector-column in a file: one value, or a list of them."""
    values = given if isinstance(given, list) else [given]
    if any(isinstance(value, (dict, list)) or value is None for value in values):
        raise ValueError(
            f"{file}: {VECTOR_COLUMN} is {given!r}; expected a column or a list, such as [user=users, image=images:8]."
        )
    return [str(value) for value in values]


def read_run(file: str | Path) -> dict[str, Any]:
    """Return the arguments in a run.yaml for `train_file`: `train_file(**read_run(file) | {"output": "runs/again"})`.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file, a name or a value in it cannot be used, or it names no data or no columns.
    """
    from .data import Columns  # It is slow to import, and the command line reads a file without it.

    given = read_config(file)
    has_vectors = "vector_column" in given or "lexical_column" in given
    needed = ("data", *(() if has_vectors else ("text_column",)), "target_column")
    missing = [name for name in needed if name not in given]
    if missing:
        raise ValueError(f"{file} does not name {', '.join(missing)}.")
    names = {name: given[key] for key, name in COLUMNS.items() if key in given}
    has_encoder = bool(given.get("lexical_column") or given.get("encoder"))
    names["vector"], kinds = parse_vector_columns(given.get(VECTOR_COLUMN), has_encoder)
    values = {field.name: _field_value(field, given[key]) for key, field in FIELDS.items() if key in given}
    return {
        **{name: given[name] for name in ARGUMENTS if name in given},
        "columns": Columns(**names),
        "options": TrainingOptions(**_fields_of(TrainingOptions, values)),
        "recipe": Recipe(**_fields_of(Recipe, values), kinds=kinds),
    }


def _field_value(field: Field, given: Any) -> Any:
    """Return the value of a field of options, from the value in a file."""
    if "opposite" in field.metadata:
        return not given
    if "parse" in field.metadata:
        return field.metadata["parse"](as_text(given))
    return given


def as_text(given: Any) -> Any:
    """Return a list of names as the command line takes it, separated by commas; anything else as it is."""
    return ",".join(map(str, given)) if isinstance(given, list) else given


def _fields_of(options: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are fields of a class of options."""
    return {field.name: values[field.name] for field in fields(options) if field.name in values}


def run_yaml(columns: "Columns", options: TrainingOptions, recipe: Recipe, **arguments: Any) -> str:
    """Return the content of a run.yaml: every argument that has a value. Paths of existing files become absolute.

    Args:
        columns: The columns.
        options: The options of the training.
        recipe: The recipe of the processor.
        **arguments: The other arguments of `train_file`, without `resume` and `overwrite`.
    """
    from ..common.base_models import base_name  # It is slow to import, and the command line reads a file without it.

    run: dict[str, Any] = {"data": arguments.pop("data"), **dict(zip(COLUMNS, columns, strict=True)), **arguments}
    run[VECTOR_COLUMN] = vector_column_values(columns.vector, recipe.kinds)
    for key, field in FIELDS.items():
        value = getattr(options if hasattr(options, field.name) else recipe, field.name)
        run[key] = not value if "opposite" in field.metadata else list(value) if isinstance(value, tuple) else value
    idle = {  # options without effect, which `t5fusion train` would refuse
        *(LORA_ONLY if options.full else ()),
        *(() if options.train_fusion else ("fusion_start",)),
        *(() if options.max_steps is None else ("epochs",)),
        *(() if options.streaming else ("shuffle_buffer",)),
        *(("lexical_dim",) if columns.vector and not (columns.lexical or recipe.encoder) else ()),
    }
    run["base_model"] = base_name(options.base_model)
    for key in ("data", "validation", "encoder", "output"):
        if run[key] is not None and (key == "output" or os.path.exists(run[key])):
            run[key] = str(Path(run[key]).absolute())
    kept = {key: value for key, value in run.items() if value is not None and key not in idle}
    comment = f"# Written by t5fusion {version('t5fusion')}. To train the same again:\n"
    return f"{comment}# t5fusion train --config THIS_FILE --output ANOTHER_FOLDER\n{write_yaml(kept)}"

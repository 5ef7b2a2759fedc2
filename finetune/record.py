"""The record of a training, training.json, and the conditions that a resumed training must meet."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils.hub import extract_commit_hash

from ..common.base_models import base_name
from ..common.run_files import RunFiles
from ..common.vector_file_names import without_folder
from ..naming_t5fusion import EMBEDDED
from ..processing_t5fusion import T5FusionProcessor
from .data import Columns
from .options import TrainingOptions

RECIPE_FIELDS = ("lexical_encoder", "lexical_source", "normalize", "lexical_dtype", "lexical_max_tokens", "template")
PACKAGES = ("t5fusion", "torch", "transformers", "peft", "datasets")


def saved_options(options: TrainingOptions) -> dict[str, Any]:
    """Return options as they are saved in files, where `base_model` is called "base".

    Earlier releases wrote that name, so earlier and later releases can read each other's files.
    """
    values = asdict(options)
    return {"base": values.pop("base_model"), **values}


def resume_conditions(
    rows: Sequence[dict],
    held_out: Sequence[dict],
    processor: T5FusionProcessor,
    options: TrainingOptions,
    columns: Sequence[str | Mapping[str, str] | None],
    processes: int,
) -> dict[str, Any]:
    """Return the conditions that a resumed training must meet: values by name. Each checkpoint records them.

    Args:
        rows, held_out: Rows of `inputs.prepare`.
        processor: The processor of the rows.
        options: The options of the training.
        columns: The columns that the rows were made from, as `Columns` has them.
        processes: Number of processes that train.
    """
    conditions = saved_options(options) | {
        "base": base_name(options.base_model),
        "rows": len(rows),
        "held_out_rows": len(held_out),
        "digest of the rows": rows_digest(rows),
        "columns": _without_folders(columns),
        "vectors": processor.vectors,
        **{name: getattr(processor, name) for name in RECIPE_FIELDS},
    }
    # The number of processes may change, as long as a step has the same number of rows.
    conditions["batch size of all processes"] = conditions.pop("batch_size") * processes
    del conditions["report_to"]  # It does not change the model.
    return conditions


def _without_folders(columns: Sequence[str | Mapping[str, str] | None]) -> list[str | Mapping[str, str] | None]:
    """Return columns as `Columns` has them. A resumed training may find its NumPy files in a different folder."""
    return list(columns.with_vector_files(without_folder) if isinstance(columns, Columns) else columns)


def rows_digest(rows: Sequence[dict]) -> str:
    """Return a hash of the token ids of texts and targets, in 12 hexadecimal digits. It is the same on every machine.

    The vectors are left out, because their last bits differ between machines.
    """
    digest = hashlib.sha256(b"[")
    for index, row in enumerate(rows):
        ids = [list(map(int, row[name])) for name in ("input_ids", "labels")]
        digest.update(((", " if index else "") + json.dumps(ids)).encode())
    digest.update(b"]")
    return digest.hexdigest()[:12]


def named_columns(
    columns: Sequence[str | Mapping[str, str] | None],
) -> dict[str, str | Mapping[str, str] | None] | None:
    """Return the names of columns by their use, such as "target", for training.json; None if there are none."""
    return dict(zip(Columns._fields, columns, strict=True)) if columns else None


def absolute_vector_files(columns: Columns) -> Columns:
    """Return columns with the absolute paths of their NumPy files, so that they are found from any folder."""
    return columns.with_vector_files(lambda file: str(Path(file).absolute()))


def trained_columns(folder: Path) -> Columns | None:
    """Return the columns that a run was trained with; None if its folder does not record them."""
    recorded = RunFiles(folder).record.get("columns")
    return Columns(**recorded) if recorded else None


def trained_options(folder: Path) -> TrainingOptions:
    """Return the options of the training that saved a folder, except `report_to`, so that nothing is reported again."""
    saved = RunFiles(folder).record["options"]
    saved = saved | {"base_model": saved["base"], "report_to": None}
    if saved.get("target_modules") is not None:
        saved["target_modules"] = tuple(saved["target_modules"])
    return TrainingOptions(**{each.name: saved[each.name] for each in fields(TrainingOptions) if each.name in saved})


def training_record(options: TrainingOptions, **measured: Any) -> dict[str, Any]:
    """Return the content of training.json: the options, the `measured` facts, and the versions of packages."""
    saved = saved_options(options) | {"lr": options.peak_lr}
    if (base := base_name(options.base_model)) in EMBEDDED:  # The user may have named it by its folder.
        saved["base"] = base
    versions = {name: version(name) for name in PACKAGES}
    return {"options": saved, **measured, "versions": versions, "python": platform.python_version()}


def pin_encoder(processor: T5FusionProcessor) -> None:
    """Set `lexical_encoder_revision` to the commit of the encoder in the Hub's cache, if it comes from there."""
    name = processor.lexical_encoder
    if name is None or Path(name).is_dir() or processor.lexical_encoder_revision is not None:
        return
    repository = name if "/" in name else f"sentence-transformers/{name}"  # That package reads a bare name this way.
    file = try_to_load_from_cache(repository, "modules.json")
    processor.lexical_encoder_revision = extract_commit_hash(file if isinstance(file, str) else None, None)

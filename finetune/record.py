"""The record of a training, training.json, and the conditions that a resumed training must meet."""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils.hub import extract_commit_hash

from ..common.base_models import base_name
from ..common.run_files import RunFiles
from ..naming_t5fusion import EMBEDDED
from ..processing_t5fusion import T5FusionProcessor
from .data import Columns
from .options import TrainingOptions

RECIPE = ("lexical_encoder", "lexical_source", "normalize", "lexical_dtype", "lexical_max_tokens", "template")
PACKAGES = ("t5fusion", "torch", "transformers", "peft", "datasets")


def saved_options(options: TrainingOptions) -> dict[str, Any]:
    """Return options as files hold them: with `base_model` by the name "base".

    The files of earlier releases hold that name, and those releases read it in the files of this one.
    """
    fields = asdict(options)
    return {"base": fields.pop("base_model"), **fields}


def resume_conditions(
    rows: list[dict],
    held_out: list[dict],
    processor: T5FusionProcessor,
    options: TrainingOptions,
    columns: Sequence[str | None],
    processes: int,
) -> dict[str, Any]:
    """Return what a resumed training must agree with, by name; each checkpoint holds it."""
    conditions = saved_options(options) | {
        "base": base_name(options.base_model),
        "rows": len(rows),
        "held_out_rows": len(held_out),
        "digest of the rows": rows_digest(rows),
        "columns": list(columns),
        **{name: getattr(processor, name) for name in RECIPE},
    }
    # The number of processes may change, as long as they take as many rows in a step.
    conditions["batch size of all processes"] = conditions.pop("batch_size") * processes
    del conditions["report_to"]  # it changes nothing in the model
    return conditions


def rows_digest(rows: list[dict]) -> str:
    """Return a hash of the ids of texts and targets, which are the same on every machine.

    The vectors are left out, because their last bits differ between machines.
    """
    ids = [[list(map(int, row[name])) for name in ("input_ids", "labels")] for row in rows]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12]


def named_columns(columns: Sequence[str | None]) -> dict[str, str | None] | None:
    """Return columns by what they are for, as training.json holds them; None if there are none."""
    return dict(zip(Columns._fields, columns, strict=True)) if columns else None


def trained_columns(folder: Path) -> Columns | None:
    """Return the columns that a run was trained with; None if its folder does not record them."""
    recorded = RunFiles(folder).record.get("columns")
    return Columns(**recorded) if recorded else None


def trained_options(folder: Path) -> TrainingOptions:
    """Return the options of the training that saved a folder, without `report_to`: nothing is to be reported again."""
    saved = RunFiles(folder).record["options"]
    saved = saved | {"base_model": saved["base"], "report_to": None}
    if saved.get("target_modules") is not None:
        saved["target_modules"] = tuple(saved["target_modules"])
    return TrainingOptions(**{each.name: saved[each.name] for each in fields(TrainingOptions) if each.name in saved})


def training_record(options: TrainingOptions, **measured: Any) -> dict[str, Any]:
    """Return what training.json holds: the options, what was `measured`, and the versions that wrote it."""
    saved = saved_options(options) | {"lr": options.peak_lr}
    if base_name(options.base_model) == EMBEDDED:  # it may have been named by its folder
        saved["base"] = EMBEDDED
    versions = {name: version(name) for name in PACKAGES}
    return {"options": saved, **measured, "versions": versions, "python": platform.python_version()}


def pin_encoder(processor: T5FusionProcessor) -> None:
    """Set `lexical_encoder_revision` to the commit of the encoder in the Hub's cache, if it comes from there."""
    name = processor.lexical_encoder
    if name is None or Path(name).is_dir() or processor.lexical_encoder_revision is not None:
        return
    repository = name if "/" in name else f"sentence-transformers/{name}"  # as that package reads a bare name
    file = try_to_load_from_cache(repository, "modules.json")
    processor.lexical_encoder_revision = extract_commit_hash(file if isinstance(file, str) else None, None)

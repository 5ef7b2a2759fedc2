"""Find out what a folder or a repository is, from its JSON files and the headers of its weights, without torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from ..kinds_t5fusion import DEFAULT_KIND, LEXICAL_TOKEN, read_kinds, token_of
from ..naming_t5fusion import EMBEDDED, NOT_PUSHED, PROJECTION_WEIGHT, embedded_folder
from .errors import cannot_be_loaded
from .run_files import (
    ADAPTER_CONFIG,
    ADAPTER_SAFETENSORS,
    CONFIG,
    EVALUATION,
    MANIFEST,
    PROCESSOR_CONFIG,
    RECORD,
    RunFiles,
    find_folder,
    read_json,
)
from .vector_file_names import without_folder
from .weight_shapes import count_model_weights, count_numbers, shapes_in

FolderType = Literal["bundle", "run folder", "checkpoint", "adapter", "fused model", "T5"]
FUSED_MODEL_TYPE = "t5_fusion"  # written out here, because configuration_t5fusion.py, which defines it, imports torch
T5_MODEL_TYPES = ("t5", "mt5", "umt5")
SMALL_FILES = [ADAPTER_CONFIG, CONFIG, PROCESSOR_CONFIG, RECORD, EVALUATION, MANIFEST, "*.index.json"]
METHODS = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "LOHA": "LoHa", "LOKR": "LoKr", "PREFIX_TUNING": "prefix tuning"}


@dataclass(frozen=True)
class VectorFacts:
    """What the files say about a kind of vectors that the model reads beside the text."""

    name: str  # of the kind
    placeholder: str  # the token that a vector replaces
    width: int | None  # numbers in a vector
    tokens: int = 1  # placeholders per vector
    projector: str = "linear"
    scale: str | None = None  # how the model scales raw numbers


@dataclass(frozen=True)
class Adapter:
    """What adapter_config.json says about an adapter."""

    method: str  # such as "LoRA"
    rank: int | None
    alpha: float | None
    target_modules: list[str]
    modules_to_save: list[str]  # layers that train as a whole, such as the fusion layer


@dataclass(frozen=True)
class FolderInfo:
    """The facts that the files of a folder or a repository record. A fact that no file records is None or empty.

    The fields are the keys of `t5fusion info --json`.
    """

    name: str  # as the user gave it
    commit: str | None  # of the repository; None for a folder
    what: FolderType
    kind: str | None  # of a bundle: "adapter", "standalone", "merged" or "fused"
    base_model: str | None
    base_commit: str | None  # of the base model on the Hub
    vectors: list[VectorFacts]  # one for each kind of vectors; empty for a plain T5
    adapter: Adapter | None
    trained_weights: int | None
    weights: int | None  # of the whole model, with the base model's
    recipe: dict[str, Any]  # the fields of the saved processor
    columns: dict[str, Any]  # of the training data, by use: "text", "target", "lexical", "vector" (by kind, if several)
    training: dict[str, Any]  # rows, epochs, learning rate, and so on, of the training
    # Loss (nats per token) and scores: with "true" or "shuffled" vectors, with "none", and of the "untuned" model.
    measures: dict[str, dict[str, float]]
    # How much larger the loss is with "shuffled" vectors or with "none": difference, low, high (nats per token).
    worth_of_vectors: dict[str, dict[str, float]]
    measured_rows: int | None
    versions: dict[str, str]  # of the packages that wrote the files
    size: int | None  # bytes of all files; None if the Hub cannot be asked
    files: int | None  # number of files; None if the Hub cannot be asked

    @property
    def trained_share(self) -> float | None:
        """The share of all weights that trained, from 0 to 1."""
        return self.trained_weights / self.weights if self.trained_weights and self.weights else None

    def to_json(self) -> str:
        """Return all facts as a JSON object, with `trained_share`."""
        return json.dumps(asdict(self) | {"trained_share": self.trained_share}, indent=1, ensure_ascii=False)


def folder_info(name: str, revision: str | None = None) -> FolderInfo:
    """Return the facts that the files of a folder or of a repository on the Hub record.

    Of a repository only the small JSON files are downloaded, not its weights.

    Args:
        name: A folder, the id of a repository, or "tiny_t5_v2".
        revision: Branch, tag or commit of the repository.

    Raises:
        ValueError: The folder holds nothing that t5fusion works with, or a damaged file.
        OSError: There is neither such a folder nor such a repository.
    """
    embedded = embedded_folder(name) if name in EMBEDDED and not Path(name).exists() else None
    path = find_folder(embedded or name, revision, allow_patterns=SMALL_FILES)
    is_remote = embedded is None and not Path(name).is_dir()
    sizes = _sizes_on_hub(name, path.name) if is_remote else _sizes_in(path)
    try:
        return _collect_facts(name, RunFiles(path), sizes, is_remote)
    except (LookupError, TypeError, AttributeError) as error:
        raise cannot_be_loaded(name, error) from error


def _collect_facts(name: str, files: RunFiles, sizes: Mapping[str, int], is_remote: bool) -> FolderInfo:
    """Return the facts about the folder of `files`.

    Args:
        name: The name of the folder or repository, as the user gave it.
        files: The files of the folder.
        sizes: Bytes of each file.
        is_remote: Whether the folder is the cached snapshot of a repository. Its own name is then the commit.
    """
    if files.adapter_config and not is_remote:  # All weights of a model may be too large to read here.
        files.check_record()
    manifest, record, evaluation = files.manifest, files.record, files.evaluation
    folder_type = _folder_type(name, files)
    base = None if folder_type == "T5" else files.trained_on
    is_base_named = base is not None and not str(base.base_model).startswith(NOT_PUSHED)
    trained, weights = _count_weights(files)
    return FolderInfo(
        name=name,
        commit=files.path.name if is_remote else None,
        what=folder_type,
        kind="fused" if manifest.get("kind") == "base" else manifest.get("kind"),  # earlier exports wrote "base"
        base_model=base.base_model if base and is_base_named else None,
        base_commit=base.commit if base else None,
        vectors=[] if folder_type == "T5" else _vectors(files),
        adapter=_adapter(files),
        trained_weights=trained,
        weights=weights,
        recipe=_recipe(files),
        columns=_columns(record),
        training=_training(record),
        measures=evaluation.get("measures", {}) or ({} if files.is_shrunk else _last_loss(record)),
        worth_of_vectors=evaluation.get("worth_of_vectors", {}),
        measured_rows=evaluation.get("rows", record.get("held_out_rows")),
        versions=_versions(files, manifest),
        size=sum(sizes.values()) if sizes else None,
        files=len(sizes) or None,
    )


def _columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of the training data by use. NumPy files have no folder, because others may read the facts."""
    used = {use: column for use, column in (record.get("columns") or {}).items() if column}
    if isinstance(by_kind := used.get("vector"), dict):
        used["vector"] = {kind: without_folder(column) for kind, column in by_kind.items()}
    elif by_kind:
        used["vector"] = without_folder(by_kind)
    return used


def _folder_type(name: str, files: RunFiles) -> FolderType:
    """Return the type of a folder.

    Raises:
        ValueError: t5fusion does not work with such a folder.
    """
    model_type = files.model_config.get("model_type")
    is_checkpoint = (files.path / "trainer_state.json").exists()
    if files.manifest:
        return "bundle"
    if files.record:
        return "run folder"
    if files.has_adapter and (model_type == FUSED_MODEL_TYPE or _is_on_fused_model(files)):
        return "checkpoint" if is_checkpoint else "adapter"
    if model_type == FUSED_MODEL_TYPE:
        return "checkpoint" if is_checkpoint else "fused model"
    if model_type in T5_MODEL_TYPES and not files.has_adapter:
        return "T5"
    raise ValueError(
        f"{name} holds {_foreign_content(files, model_type)}; expected what t5fusion writes (a run folder, a bundle, "
        "an adapter, a fused model) or a plain T5."
    )


def _is_on_fused_model(files: RunFiles) -> bool:
    """Return whether the adapter was trained on a fused model, by its config or its weights."""
    name = str(files.adapter_config.get("base_model_name_or_path"))
    layers = files.adapter_config.get("modules_to_save") or []
    return name.startswith(("T5WithFusion(", NOT_PUSHED)) or "fusion" in layers or _fusion_width(files) is not None


def _foreign_content(files: RunFiles, model_type: str | None) -> str:
    """Describe what the folder holds that t5fusion does not work with, for the error."""
    if files.has_adapter:
        return f"an adapter on {files.adapter_config.get('base_model_name_or_path')}, which is not a fused model"
    if model_type:
        return f"a model of type {model_type}"
    return "a config.json that names no model" if files.has_config else "no model and no adapter"


def _adapter(files: RunFiles) -> Adapter | None:
    """Return what adapter_config.json says; None if there is no such file."""
    config = files.adapter_config
    if not config:
        return None
    modules = config.get("target_modules") or []
    peft_type = config["peft_type"]
    return Adapter(
        method=METHODS.get(peft_type, peft_type),
        rank=config.get("r"),
        alpha=config.get("lora_alpha", config.get("alpha")),
        target_modules=[modules] if isinstance(modules, str) else sorted(modules),
        modules_to_save=list(config.get("modules_to_save") or []),
    )


def _recipe(files: RunFiles) -> dict[str, Any]:
    """Return the fields of the recipe in the folder or, for a checkpoint, in its run folder; empty if there is none."""
    folder = files.folder_with(PROCESSOR_CONFIG)
    config = {} if folder is None else read_json(folder / PROCESSOR_CONFIG)
    return {name: value for name, value in config.items() if name not in ("auto_map", "processor_class")}


def _training(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts and options of training.json that `info` shows."""
    options = record.get("options", {})
    facts = {name: record.get(name) for name in ("data", "rows", "held_out_rows", "seconds", "processes")}
    length = "max_steps" if options.get("max_steps") else "epochs"
    facts |= {name: options.get(name) for name in ("full", length, "batch_size", "lr", "seed")}
    return {name: value for name, value in facts.items() if value is not None}


def _last_loss(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the loss of the last evaluation during training, in the form of `FolderInfo.measures`."""
    losses = [entry["eval_loss"] for entry in record.get("history", []) if "eval_loss" in entry]
    return {"true": {"loss": losses[-1]}} if losses else {}


def _versions(files: RunFiles, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of the packages that wrote the folder. Recorded versions win over versions in a config."""
    versions = {
        "t5fusion": manifest.get("t5fusion"),
        "transformers": files.model_config.get("transformers_version"),
        "peft": files.adapter_config.get("peft_version"),
    }
    recorded = files.evaluation.get("versions", {}) | files.record.get("versions", {})
    return {name: version for name, version in (versions | recorded).items() if version}


def _vectors(files: RunFiles) -> list[VectorFacts]:
    """Return the kinds of vectors, by the first file that records them."""
    choices = files.adapter_base.choices if files.has_adapter else {}
    sources = (_recipe(files), files.model_config, choices)
    several = next(filter(None, (facts.get("vectors") for facts in sources)), None)
    if several:
        return [
            VectorFacts(name, token_of(name, position), kind.dim, kind.tokens, kind.projector, kind.scale)
            for position, (name, kind) in enumerate(read_kinds(several).items())
        ]
    width = next(filter(None, (facts.get("lexical_dim") for facts in sources)), None)
    return [VectorFacts(DEFAULT_KIND, LEXICAL_TOKEN, width or _fusion_width(files))]


def _fusion_width(files: RunFiles) -> int | None:
    """Return the width of the vectors by the fusion layer in the adapter's weights; None if they do not hold it."""
    shapes = shapes_in(files.path / ADAPTER_SAFETENSORS)
    return next((shape[-1] for name, shape in shapes.items() if name.endswith(PROJECTION_WEIGHT)), None)


def _count_weights(files: RunFiles) -> tuple[int | None, int | None]:
    """Return how many weights trained, and how many the model has; None for a number that no local file holds.

    They are the numbers that `train` prints, which count the fusion layer twice: PEFT keeps the initial layer in memory
    beside the trained one.
    """
    if "weights" in files.record and not files.is_shrunk:
        return files.record["trainable_weights"], files.record["weights"]
    in_folder = count_model_weights(files.path)
    adapter_shapes = shapes_in(files.path / ADAPTER_SAFETENSORS)
    if not adapter_shapes:
        return None, in_folder
    trained = count_numbers(adapter_shapes)
    if in_folder is not None:
        return trained, in_folder + trained
    in_base = _count_base_weights(files)
    initial_fusion = count_numbers({name: shape for name, shape in adapter_shapes.items() if ".fusion." in name})
    return trained, None if in_base is None else in_base + initial_fusion + trained


def _count_base_weights(files: RunFiles) -> int | None:
    """Return how many weights the base model has; None if it is not in a local folder."""
    if files.trained_on is None or not files.trained_on.base_model:
        return None
    base_model = files.trained_on.base_model
    folder = Path(str(embedded_folder(base_model) if base_model in EMBEDDED else base_model))
    return count_model_weights(folder) if folder.is_dir() else None


def _sizes_in(folder: Path) -> dict[str, int]:
    """Return the size of each file below a folder, in bytes."""
    return {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}


def _sizes_on_hub(repo_id: str, commit: str) -> dict[str, int]:
    """Return the size of each file of a repository, in bytes; empty if the Hub cannot be asked (HF_HUB_OFFLINE=1)."""
    try:
        siblings = HfApi().model_info(repo_id, revision=commit, files_metadata=True).siblings or []
    except (HfHubHTTPError, OSError):
        return {}
    return {sibling.rfilename: sibling.size or 0 for sibling in siblings}

"""What a folder or a repository is, by its JSON files and the headers of its weights. torch is not imported."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from ..naming_t5fusion import EMBEDDED, NOT_PUSHED, embedded_folder
from .errors import cannot_be_loaded, first_line
from .run_files import (
    ADAPTER_CONFIG,
    CONFIG,
    EVALUATION,
    MANIFEST,
    PROCESSOR_CONFIG,
    RECORD,
    RunFiles,
    find_folder,
    read_json,
)

What = Literal["bundle", "run folder", "checkpoint", "adapter", "fused model", "T5"]
FUSED_TYPE = "t5_fusion"  # `model_type` of a fused model's config
T5_TYPES = ("t5", "mt5", "umt5")
SMALL_FILES = [ADAPTER_CONFIG, CONFIG, PROCESSOR_CONFIG, RECORD, EVALUATION, MANIFEST, "*.index.json"]
LONGEST_HEADER = 100_000_000  # bytes; safetensors itself allows no longer one
METHODS = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "LOHA": "LoHa", "LOKR": "LoKr", "PREFIX_TUNING": "prefix tuning"}


@dataclass(frozen=True)
class VectorKind:
    """Vectors that the model reads beside its text."""

    placeholder: str  # the token whose place such a vector takes
    width: int | None  # numbers in a vector


@dataclass(frozen=True)
class Adapter:
    """The adapter's config."""

    method: str  # such as "LoRA"
    rank: int | None
    alpha: float | None
    target_modules: list[str]
    modules_to_save: list[str]  # layers that train as a whole, such as the fusion layer


@dataclass(frozen=True)
class FolderInfo:
    """What a folder or a repository on the Hub is. What no file records is None or empty."""

    name: str  # as it was asked for
    commit: str | None  # of the repository; None for a folder
    what: What
    kind: str | None  # of a bundle: "adapter", "standalone", "merged" or "fused"
    base_model: str | None
    base_commit: str | None
    vectors: list[VectorKind]  # the kinds of vectors: one, or none for a plain T5
    adapter: Adapter | None
    trained_weights: int | None
    weights: int | None  # of the whole model, with the base model's
    recipe: dict[str, Any]  # the fields of the saved processor
    training: dict[str, Any]  # rows, epochs, learning rate, and so on, of the training
    measures: dict[str, dict[str, float]]  # loss and scores, by vectors: "true", "shuffled", "none"; or "untuned"
    worth_of_vectors: dict[str, dict[str, float]]  # what is lost with "shuffled" vectors or with "none"
    measured_rows: int | None
    versions: dict[str, str]  # of the packages that wrote it
    size: int | None  # bytes of all files; None if the Hub cannot be asked
    files: int | None  # how many they are

    @property
    def trained_share(self) -> float | None:
        """The share of all weights that trained, from 0 to 1."""
        return self.trained_weights / self.weights if self.trained_weights and self.weights else None

    def to_json(self) -> str:
        """Return all facts as a JSON object, with `trained_share`."""
        return json.dumps(asdict(self) | {"trained_share": self.trained_share}, indent=1, ensure_ascii=False)


def folder_info(name: str, revision: str | None = None) -> FolderInfo:
    """Return what a folder or a repository on the Hub is.

    Of a repository only the small JSON files are downloaded, not its weights.

    Args:
        name: A folder, the id of a repository, or "tiny_t5".
        revision: Branch, tag or commit of the repository.

    Raises:
        ValueError: The folder holds none of the things that t5fusion works with, or a damaged file.
        OSError: There is neither such a folder nor such a repository.
    """
    place = embedded_folder() if name == EMBEDDED and not Path(name).exists() else None
    path = find_folder(place or name, revision, allow_patterns=SMALL_FILES)
    is_remote = place is None and not Path(name).is_dir()
    files = RunFiles(path)
    try:
        return _read(name, files, _sizes_on_hub(name, path.name) if is_remote else _sizes_in(path), is_remote)
    except (LookupError, TypeError, AttributeError) as error:
        raise cannot_be_loaded(name, error) from error


def _read(name: str, files: RunFiles, sizes: Mapping[str, int], is_remote: bool) -> FolderInfo:
    manifest = files.manifest
    what, record, evaluation = _what(name, files), files.record, files.evaluation
    base = None if what == "T5" else files.trained_on
    width = _vector_width(files)
    trained, weights = _weights(files, what)
    return FolderInfo(
        name=name,
        commit=files.path.name if is_remote else None,
        what=what,
        kind={"base": "fused"}.get(manifest.get("kind", ""), manifest.get("kind")),
        base_model=None if base is None or str(base.base_model).startswith(NOT_PUSHED) else base.base_model,
        base_commit=base.commit if base else None,
        vectors=[] if what == "T5" else [VectorKind("<lexical>", width)],
        adapter=_adapter(files),
        trained_weights=trained,
        weights=weights,
        recipe=_recipe(files),
        training=_training(record),
        measures=evaluation.get("measures", {}) or _last_loss(record),
        worth_of_vectors=evaluation.get("worth_of_vectors", {}),
        measured_rows=evaluation.get("rows", record.get("held_out_rows")),
        versions=_versions(files, manifest),
        size=sum(sizes.values()) if sizes else None,
        files=len(sizes) or None,
    )


def _what(name: str, files: RunFiles) -> What:
    """Return what the files are; ValueError if they are nothing that t5fusion works with."""
    model_type = files.model_config.get("model_type")
    if files.manifest:
        return "bundle"
    if files.record:
        return "run folder"
    if files.has_adapter and (model_type == FUSED_TYPE or _is_fused_adapter(files)):
        return "checkpoint" if (files.path / "trainer_state.json").exists() else "adapter"
    if model_type == FUSED_TYPE:
        return "checkpoint" if (files.path / "trainer_state.json").exists() else "fused model"
    if model_type in T5_TYPES and not files.has_adapter:
        return "T5"
    raise ValueError(
        f"{name} holds {_foreign(files, model_type)}; expected what t5fusion writes (a run folder, a bundle, an "
        "adapter, a fused model) or a plain T5."
    )


def _is_fused_adapter(files: RunFiles) -> bool:
    name = str(files.adapter_config.get("base_model_name_or_path"))
    layers = files.adapter_config.get("modules_to_save") or []
    return name.startswith(("T5WithFusion(", NOT_PUSHED)) or "fusion" in layers or _fusion_width(files) is not None


def _foreign(files: RunFiles, model_type: str | None) -> str:
    if files.has_adapter:
        return f"an adapter on {files.adapter_config.get('base_model_name_or_path')}, which is no fused model"
    if model_type:
        return f"a model of type {model_type}"
    return "a config.json that names no model" if files.has_config else "no model and no adapter"


def _adapter(files: RunFiles) -> Adapter | None:
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
    folder = files.folder_with(PROCESSOR_CONFIG)
    config = {} if folder is None else read_json(folder / PROCESSOR_CONFIG)
    return {name: value for name, value in config.items() if name not in ("auto_map", "processor_class")}


def _training(record: Mapping[str, Any]) -> dict[str, Any]:
    options = record.get("options", {})
    facts = {name: record.get(name) for name in ("data", "rows", "held_out_rows", "seconds", "processes")}
    facts |= {name: options.get(name) for name in ("full", "epochs", "batch_size", "lr", "seed")}
    return {name: value for name, value in facts.items() if value is not None}


def _last_loss(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the loss of the last evaluation in training, as `measures` has it."""
    losses = [entry["eval_loss"] for entry in record.get("history", []) if "eval_loss" in entry]
    return {"true": {"loss": losses[-1]}} if losses else {}


def _versions(files: RunFiles, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions that wrote the folder; those of the training, if it is recorded."""
    versions = {
        "t5fusion": manifest.get("t5fusion"),
        "transformers": files.model_config.get("transformers_version"),
        "peft": files.adapter_config.get("peft_version"),
    }
    recorded = files.evaluation.get("versions", {}) | files.record.get("versions", {})
    return {name: version for name, version in (versions | recorded).items() if version}


def _vector_width(files: RunFiles) -> int | None:
    """Return the width of the vectors, by the first file that records it."""
    choices = files.adapter_base.choices if files.has_adapter else {}
    recorded = (facts.get("lexical_dim") for facts in (_recipe(files), files.model_config, choices))
    return next(filter(None, recorded), None) or _fusion_width(files)


def _fusion_width(files: RunFiles) -> int | None:
    shapes = _shapes(files.path / "adapter_model.safetensors")
    return next((shape[-1] for name, shape in shapes.items() if name.endswith("fusion.projection.weight")), None)


def _weights(files: RunFiles, what: What) -> tuple[int | None, int | None]:
    """Return how many weights trained, and how many the model has; None if no file at hand says so.

    They are the numbers that `train` prints. PEFT keeps the initial fusion layer beside the trained one, so it counts
    twice there.
    """
    record = files.record
    if "weights" in record:
        return record["trainable_weights"], record["weights"]
    of_adapter = _shapes(files.path / "adapter_model.safetensors")
    own = _model_weights(files.path)
    if not of_adapter:
        return None, own
    trained = _count(of_adapter)
    if own is None and files.trained_on is not None and files.trained_on.base_model:
        base = files.trained_on.base_model
        base_path = Path(str(embedded_folder() if base == EMBEDDED else base))
        own = _model_weights(base_path) if base_path.is_dir() else None
        fusion = _count({name: shape for name, shape in of_adapter.items() if ".fusion." in name})
        own = None if own is None else own + fusion
    return trained, None if own is None else own + trained


def _model_weights(folder: Path) -> int | None:
    """Return how many weights a folder's model files hold, or None if there are none in safetensors."""
    files = sorted(folder.glob("model*.safetensors"))
    return sum(_count(_shapes(file)) for file in files) if files else None


def _count(shapes: Mapping[str, list[int]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _shapes(file: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor in a safetensors file, by its header; empty if there is no such file.

    Raises:
        ValueError: The file is damaged.
    """
    if not file.exists():
        return {}
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(LONGEST_HEADER, file.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        shapes = {name: entry["shape"] for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(file, first_line(error)) from error
    if file.stat().st_size != 8 + length + end:
        raise _damaged(file, f"it has {file.stat().st_size:,} bytes; expected {8 + length + end:,}")
    return shapes


def _damaged(file: Path, cause: str) -> ValueError:
    return ValueError(f"the weights in {file} cannot be read ({cause}). The file is damaged. Copy or save it again.")


def _sizes_in(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}


def _sizes_on_hub(repo_id: str, commit: str) -> dict[str, int]:
    """Return the size of each file of a repository; empty if the Hub cannot be asked, as with HF_HUB_OFFLINE=1."""
    try:
        siblings = HfApi().model_info(repo_id, revision=commit, files_metadata=True).siblings or []
    except (HfHubHTTPError, OSError):
        return {}
    return {sibling.rfilename: sibling.size or 0 for sibling in siblings}

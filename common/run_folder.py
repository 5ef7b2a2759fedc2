"""A folder that training saved, or a bundle: find it, and load its model, its processor and its record."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import sha_fileobj
from peft import PeftModel
from torch import nn

from ..loading_t5fusion import base_in
from ..modeling_t5fusion import T5WithFusion
from ..naming_t5fusion import EMBEDDED, FusedName, was_embedded
from ..processing_t5fusion import T5FusionProcessor
from .base_models import base_error, base_folder
from .hub_errors import in_one_sentence
from .replace_folder import recover
from .saved_files import check_files, check_numbers, read_json, told, weights_in

RECORD = "training.json"
MAX_SOURCE, MAX_TARGET = 128, 64  # tokens


def find_folder(name: str, revision: str | None = None, **download: Any) -> Path:
    """The folder of this name; or the files of the Hub's repository of this id, in the cache.

    Args:
        revision: branch, tag or commit of the repository.
        **download: arguments of `huggingface_hub.snapshot_download`.

    Raises:
        ValueError: `revision`, and it is a folder. OSError: there is neither a folder nor such a repository.
    """
    folder = Path(name)
    recover(folder)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"--revision is of a repository on the Hub, and {name} is a folder. Leave it out.")
        return folder
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        found = "is a file" if folder.exists() else "is no folder"
        raise OSError(
            f"{name} {found}; expected a folder, or the id of a repository on the Hub, OWNER/NAME."
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, **download))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise OSError(f"there is no folder {name}, and as an id: {in_one_sentence(error, name)}") from error


def find_trained(name: str, revision: str | None = None) -> Path:
    """The folder of this name, or what of a repository it takes to load a model."""
    others = ["*/*", "*.py", "*.md", "*.onnx*", "onnx_*", "reference.safetensors", "training_args.bin"]
    return find_folder(name, revision, ignore_patterns=others)


def load_trained(folder: Path) -> tuple[torch.nn.Module, T5FusionProcessor]:
    """The model, in evaluation mode and fp32, and the processor of a folder that `train` wrote.

    Raises:
        OSError: the folder holds no adapter and no model, or no processor, or its base cannot be found.
        ValueError: a file in it is damaged, or of another kind of model; or a weight is not a number (`check_numbers`).
    """
    has_adapter, has_config = ((folder / name).exists() for name in ("adapter_config.json", "config.json"))
    if not has_adapter and not has_config:
        raise OSError(f"{folder} holds neither an adapter nor a model. Name a folder that `t5fusion train` wrote.")
    if not (folder / "processor_config.json").exists():
        raise OSError(
            f"{folder} holds no processor_config.json. Save one there: T5FusionProcessor(tokenizer, template=...)"
            ".save_pretrained(folder)."
        )
    check_files(folder)
    processor = load_processor(folder)
    if has_config:  # all weights, or a bundle
        with told(f"the model in {folder}"):
            model: torch.nn.Module = T5WithFusion(folder, dtype=torch.float32)
    else:
        base = _base_of(folder)
        options = {"lexical_dim": processor.lexical_dim, "dtype": torch.float32} | base.keywords
        try:
            with told(f"the base {base.base_model}"):
                model = T5WithFusion(base.base_model, **options)
        except OSError as error:
            raise base_error(str(base.base_model), error) from error
        model = load_adapter(model, folder)
    check_numbers(model.state_dict().items(), str(folder))
    return align(model).eval(), processor


def load_processor(folder: Path) -> T5FusionProcessor:
    """The processor that was saved in a folder; ValueError where its files are damaged, or another processor's."""
    config = read_json(folder / "processor_config.json")
    kind = config.get("processor_class", T5FusionProcessor.__name__)
    if kind != T5FusionProcessor.__name__:
        raise ValueError(f"the processor in {folder} is a {kind}; expected a T5FusionProcessor. Save one there.")
    with told(f"the processor in {folder}"):
        return T5FusionProcessor.from_pretrained(folder)


def load_adapter(base: T5WithFusion, folder: Path) -> PeftModel:
    """The adapter in a folder on its base; ValueError where its weights do not fit, or some are missing."""
    with told(f"the adapter in {folder}"), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(base, str(folder))
        except (RuntimeError, KeyError, UserWarning) as error:
            cause = str(error).strip().splitlines()[-1].strip()
            raise ValueError(
                f"the adapter in {folder} does not fit {base.config.backbone or 'its base'} ({cause}). It was trained "
                "on another base, or its files are damaged."
            ) from error


def trained_limits(folder: Path) -> tuple[int, int]:
    """Most tokens of an input and of a target in training; the defaults where no record tells."""
    options = read_record(folder).get("options", {})
    return options.get("max_source", MAX_SOURCE), options.get("max_target", MAX_TARGET)


def _base_of(folder: Path) -> FusedName:
    """The base that the adapter was trained on; the embedded one is known by name, wherever it is."""
    with told(f"the adapter in {folder}"):
        base = base_in(read_json(folder / "adapter_config.json"))
    if read_record(folder).get("options", {}).get("base") == "tiny_t5":
        return base._replace(base_model=base_folder(EMBEDDED), commit=None)
    is_embedded = base.base_model == EMBEDDED or was_embedded(base.base_model, folder)
    return base._replace(base_model=base_folder(EMBEDDED), commit=None) if is_embedded else base


def trained_digest(folder: Path) -> str:
    """Of the weights, and of how their inputs are made: what an output depends on that the folder's model wrote."""
    digest = hashlib.sha256()
    weights = [file for file in weights_in(folder) if file.suffix == ".bin"]
    for file in sorted([*folder.glob("*.safetensors"), *weights, folder / "processor_config.json"]):
        with file.open("rb") as opened:
            digest.update(sha_fileobj(opened))
    return digest.hexdigest()[:12]


def read_record(folder: Path) -> dict:
    """What `train` recorded in the folder; empty where it did not."""
    return read_json(folder / RECORD) if (folder / RECORD).exists() else {}


def align(model: nn.Module) -> nn.Module:
    """Moves each weight to memory that torch itself has laid out, and returns the model.

    Weights read from safetensors lie wherever their file has them, and on a CPU the last bit of a product depends on
    it: aligned alike, a reloaded model gives what the trained one gave.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model

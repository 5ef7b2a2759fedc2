"""Reload what `train` saved."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import sha_fileobj
from peft import PeftModel
from safetensors import safe_open

from ..hub_export.errors import in_one_sentence
from ..hub_export.replace import recover
from ..loading_t5fusion import base_in
from ..modeling_t5fusion import T5WithFusion
from ..naming_t5fusion import EMBEDDED, FusedName, was_embedded
from ..processing_t5fusion import T5FusionProcessor
from .data import MAX_SOURCE, MAX_TARGET
from .train import RECORD, align, base_error, base_folder

CONFIGS = ("adapter_config.json", "config.json", "processor_config.json", "tokenizer_config.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # peft reads the first of these that is there
MODEL_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # so does transformers


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
            with told(f"the base {base.plain}"):
                model = T5WithFusion(base.plain, **options)
        except OSError as error:
            raise base_error(str(base.plain), error) from error
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


@contextmanager
def told(what: str) -> Iterator[None]:
    """Makes one sentence of what libraries raise over files that are damaged, or of another kind.

    Errors that are sentences already, or have another cause, pass as they are.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of many kinds: of tokenizers and safetensors, or a TypeError over a field
        cause = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
        raise ValueError(
            f"{what} cannot be loaded ({type(error).__name__}: {cause}). A file is damaged, or of another kind of "
            "model. Save it again."
        ) from error


def check_files(folder: Path) -> None:
    """Reads every config and all weights in a folder.

    Raises:
        ValueError: a config is no JSON object; or a weights file cannot be read, or holds what `check_numbers` refuses.
    """
    for name in CONFIGS:
        if (folder / name).exists():
            read_json(folder / name)
    if (folder / "model.safetensors.index.json").exists():
        read_json(folder / "model.safetensors.index.json")
    for file in weights_in(folder):
        check_numbers(read_weights(file), str(file), may_be_zero="-of-" in file.name)


def weights_in(folder: Path) -> list[Path]:
    """The files of weights that peft and transformers read in a folder."""
    adapter = [folder / name for name in ADAPTER_WEIGHTS if (folder / name).exists()][:1]
    models = [sorted(folder.glob(pattern)) for pattern in MODEL_WEIGHTS]
    return adapter + next((files for files in models if files), [])


def read_weights(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of each weight in a file, one at a time; ValueError where the file cannot be read."""
    try:
        if file.suffix == ".bin":
            yield from torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()
        else:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118, no dict
                    yield name, opened.get_tensor(name)
    except GeneratorExit:
        raise
    except Exception as error:  # of many kinds: of safetensors, pickle, zipfile, torch
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"the weights in {file} cannot be read ({cause}). The file is damaged, or holds something else: copy or "
            "save it again."
        ) from error


def check_numbers(tensors: Iterable[tuple[str, torch.Tensor]], where: str, may_be_zero: bool = False) -> None:
    """Refuses weights with which a model writes nonsense.

    Args:
        tensors: name and tensor of each weight.
        where: the file or folder, for the message.
        may_be_zero: do not refuse weights that are zero, all of them. (Of a new LoRA, all `lora_B` are.)

    Raises:
        ValueError: a tensor holds NaN or an infinity; it names the first one. Or all tensors are zero.
    """
    count, all_zero = 0, not may_be_zero
    for name, tensor in tensors:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_meta or not tensor.is_floating_point():
            all_zero = False  # quantised, or not here: of classes and types that know no isfinite
            continue
        values = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 knows no isfinite
        wrong = values.numel() - int(torch.isfinite(values).sum())
        if wrong:
            raise ValueError(
                f"{wrong} of the {values.numel()} numbers in {name} of {where} are NaN or infinite: training has "
                "failed. Train again, with a lower learning rate or in fp32, or take an earlier checkpoint."
            )
        all_zero = all_zero and not values.any()
        count += 1
    if all_zero and count:
        raise ValueError(
            f"all {count} tensors in {where} are zero: nothing was trained, or the weights were lost when they were "
            "saved. Train or save again."
        )


def read_json(file: Path) -> dict:
    """The object in a file of JSON; ValueError where it holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of the JSON, or of its encoding
        raise ValueError(f"{file} is damaged: it is no JSON ({error}). Copy or save it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}; expected an object, {{...}}. Save it again.")
    return found


def trained_limits(folder: Path) -> tuple[int, int]:
    """Most tokens of an input and of a target in training; the defaults where no record tells."""
    options = read_record(folder).get("options", {})
    return options.get("max_source", MAX_SOURCE), options.get("max_target", MAX_TARGET)


def _base_of(folder: Path) -> FusedName:
    """The base that the adapter was trained on; the embedded one is known by name, wherever it is."""
    with told(f"the adapter in {folder}"):
        base = base_in(read_json(folder / "adapter_config.json"))
    if read_record(folder).get("options", {}).get("base") == "tiny_t5":
        return base._replace(plain=base_folder(EMBEDDED), commit=None)
    is_embedded = base.plain == EMBEDDED or was_embedded(base.plain, folder)
    return base._replace(plain=base_folder(EMBEDDED), commit=None) if is_embedded else base


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

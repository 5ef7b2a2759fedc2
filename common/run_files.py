"""Find a run folder or a bundle by its name, and read its JSON files, without importing torch."""

import hashlib
import json
import shlex
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils.sha import sha_fileobj

from ..naming_t5fusion import EMBEDDED, FIRST_EMBEDDED, FusedName, name_to_record, recorded_base, was_embedded
from .errors import cannot_be_loaded
from .folder_names import check_folder
from .hub_errors import in_one_sentence

RECORD, EVALUATION, MANIFEST = "training.json", "evaluation.json", "t5fusion.json"
REFERENCE, ADAPTER_SAFETENSORS = "reference.safetensors", "adapter_model.safetensors"
SHRUNK, DIGEST = "shrunk", "weights_digest"  # fields of training.json
ADAPTER_CONFIG, CONFIG, PROCESSOR_CONFIG = "adapter_config.json", "config.json", "processor_config.json"


class RunFiles:
    """The JSON files of a run folder, a checkpoint of the Trainer, or a bundle. Each is read once, when it is needed.

    A file that does not exist reads as an empty dict. Each property raises ValueError if its file is damaged.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def _read(self, name: str) -> dict[str, Any]:
        return read_json(self.path / name) if (self.path / name).exists() else {}

    @cached_property
    def adapter_config(self) -> dict[str, Any]:
        """adapter_config.json, which PEFT writes."""
        return self._read(ADAPTER_CONFIG)

    @cached_property
    def model_config(self) -> dict[str, Any]:
        """config.json. A run folder with an adapter has none."""
        return self._read(CONFIG)

    @cached_property
    def processor_config(self) -> dict[str, Any]:
        """processor_config.json: the recipe."""
        return self._read(PROCESSOR_CONFIG)

    @cached_property
    def record(self) -> dict[str, Any]:
        """training.json, which `train` writes."""
        return self._read(RECORD)

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """evaluation.json, which `evaluate` writes."""
        return self._read(EVALUATION)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """t5fusion.json, which `export` writes, unchecked. (`hub_export.manifest.read_manifest` checks it.)"""
        return self._read(MANIFEST)

    def check_record(self) -> None:
        """Check that the weights are those of the training that training.json describes.

        Raises:
            ValueError: Other weights were saved over them.
        """
        if self.record.get(DIGEST) not in (None, weights_digest(self.path)):
            raise ValueError(
                f"{self} holds other weights than those of the training that its {RECORD} describes. Save a model to a "
                f"folder of its own. To use this folder without its record, delete {RECORD} and {EVALUATION}."
            )

    @property
    def is_shrunk(self) -> bool:
        """Whether `t5fusion shrink` wrote the folder. The losses in training.json are then of a larger adapter."""
        return SHRUNK in self.record

    @property
    def has_adapter(self) -> bool:
        """Whether the folder holds adapter_config.json."""
        return (self.path / ADAPTER_CONFIG).exists()

    @property
    def has_config(self) -> bool:
        """Whether the folder holds config.json."""
        return (self.path / CONFIG).exists()

    def folder_with(self, name: str) -> Path | None:
        """Return the folder that holds a file of this name: this folder or, for a checkpoint, its run folder.

        None if neither holds it.
        """
        is_checkpoint = self.path.name.startswith("checkpoint-")
        above = [self.path.parent, self.path.parent.parent] if is_checkpoint else []
        return next((folder for folder in (self.path, *above) if (folder / name).exists()), None)

    @cached_property
    def adapter_base(self) -> FusedName:
        """The base model that the adapter's config names, with the choices that were made when it was fused.

        An embedded base model is called by its name, wherever t5fusion was installed during training.

        Raises:
            ValueError: adapter_config.json names no base model, or is damaged.
        """
        try:
            return self._name_by_record(recorded_base(self.adapter_config))
        except (LookupError, TypeError, AttributeError) as error:
            raise cannot_be_loaded(f"the adapter in {self.path}", error) from error

    @cached_property
    def trained_on(self) -> FusedName | None:
        """The base model that training started from, or None if no file names it."""
        if self.model_config.get("backbone"):
            backbone = FusedName(self.model_config["backbone"], self.model_config.get("backbone_revision"))
            return self._name_by_path(backbone)
        named = self.adapter_base if self.has_adapter else self._name_by_record(FusedName(""))
        return named if named.base_model else None

    @property
    def embedded_base(self) -> str | None:
        """The name of the embedded base model that this folder is, or that training started from; None without one."""
        names = [name_to_record(str(self.path)), self.trained_on.base_model if self.trained_on else None]
        return next((name for name in names if name in EMBEDDED), None)

    @property
    def export_command(self) -> str:
        """The command that makes a bundle of this run folder."""
        base = self.trained_on.base_model if self.trained_on else None
        is_base_local = base is not None and (base in EMBEDDED or Path(base).is_dir())
        # The default kind is for an adapter on a base model on the Hub. `export` refuses it for all other models.
        kind = ["--kind", "standalone"] if is_base_local or not self.has_adapter else []
        return shlex.join(["t5fusion", "export", str(self.path), f"bundles/{self.path.resolve().name}", *kind])

    def _name_by_record(self, named: FusedName) -> FusedName:
        """Return `named`. If training.json or its path says that it is an embedded base model, it gets that name."""
        # After training in a development install, only training.json says that the base model was an embedded one.
        options = self.record.get("options", {})
        for name in (options.get("base"), options.get("base_model")):
            if name in EMBEDDED:
                return named._replace(base_model=name, commit=None)
        return self._name_by_path(named)

    def _name_by_path(self, named: FusedName) -> FusedName:
        """Return `named`. A path at which an embedded base model is or was installed becomes that model's name."""
        if not named.base_model:
            return named
        earlier = was_embedded(named.base_model, self.path)
        name = FIRST_EMBEDDED if earlier else name_to_record(named.base_model)
        return named._replace(base_model=name, commit=None) if name in EMBEDDED else named


def find_folder(name: str, revision: str | None = None, **download: Any) -> Path:
    """Return the folder of this name, or the cached files of the Hub repository of this id.

    Args:
        name: A folder, or the id of a repository.
        revision: Branch, tag or commit of the repository.
        **download: Further arguments of `huggingface_hub.snapshot_download`, such as `allow_patterns`.

    Raises:
        ValueError: A revision is given for a folder.
        OSError: There is neither such a folder nor such a repository.
    """
    check_folder(name, revision)
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, **download))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        problem = in_one_sentence(error, name, revision)
        raise OSError(f"there is no folder {name}. As a repository on the Hub, it cannot be read: {problem}") from error


def read_json(file: Path) -> dict:
    """Return the JSON object in a file.

    Raises:
        ValueError: The file is not valid JSON, not UTF-8, or holds something other than an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: it is not valid JSON ({error}). Copy or save it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected an object, {{...}}. Save it again.")
    return content


def weights_digest(folder: Path) -> str:
    """Return a digest of the weights files that training saves in a folder; see `digest_of`."""
    files = (file for file in folder.glob("*model*") if file.suffix in (".safetensors", ".bin"))
    return digest_of(files, with_names=True)


def digest_of(files: Iterable[Path], with_names: bool = False) -> str:
    """Return 12 hexadecimal digits of a digest of some files' contents, in the order of their names.

    Args:
        files: The files.
        with_names: Whether the names count too. Users have saved digests of both forms, so neither may change.
    """
    digest = hashlib.sha256()
    for file in sorted(files):
        if with_names:
            digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(sha_fileobj(opened))
    return digest.hexdigest()[:12]

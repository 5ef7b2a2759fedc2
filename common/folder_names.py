"""Find out whether a name is a folder, or may be the id of a repository, before anything slow is imported."""

import os
import shlex
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session, validate_repo_id

from ..naming_t5fusion import EMBEDDED, first_line, hub_unreachable, not_in_cache
from .errors import unusable_base
from .replace_folder import recover

RUN = "run.yaml"  # the options of a run, as `t5fusion train --config` reads them
CHECKPOINTS = "checkpoints"
FILE_SUFFIXES = {
    ".arrow", ".bin", ".ckpt", ".csv", ".feather", ".gz", ".json", ".jsonl", ".npy", ".onnx", ".parquet", ".pt", ".pth",
    ".py", ".safetensors", ".tar", ".txt", ".yaml", ".yml", ".zip",
}  # fmt: skip


def check_folder(name: str, revision: str | None = None) -> None:
    """Check that `name` is a folder, or may be the id of a repository. The Hub is not asked.

    A folder that a killed process left half replaced is put back first.

    Raises:
        ValueError: A revision is given for a folder.
        OSError: The folder belongs to an interrupted training; or `name` is neither a folder nor a valid id, looks
            like a path, or is not in the Hub's cache while HF_HUB_OFFLINE is set.
    """
    folder = Path(name)
    recover(folder)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"--revision is for a repository on the Hub, and {name} is a folder. Leave it out.")
        check_ended(folder)
        return
    if folder.is_file() or _is_no_id(name):
        problem = "is a file" if folder.is_file() else "is not a folder"
        raise OSError(f"{name} {problem}; expected a folder, or the id of a repository on the Hub, OWNER/NAME.")
    if _is_cached(name):
        return
    if os.sep in name and folder.parent.is_dir() and revision is None:
        raise OSError(
            f"there is no folder {name}, though {folder.parent} is a folder here. If {name} is a repository on the "
            f"Hub, download it first: hf download {name}."
        )
    if constants.HF_HUB_OFFLINE:
        raise OSError(not_in_cache(name))


def check_reachable(name: str, revision: str | None = None) -> None:
    """Check `name` as `check_folder` does. If it is neither a folder nor cached, check that the Hub answers.

    The Hub is asked once, because its client would try for half a minute if there is no network. What the Hub answers
    does not matter here.

    Raises:
        ValueError, OSError: See `check_folder`; or there is no such folder, and the Hub cannot be reached.
    """
    check_folder(name, revision)
    if Path(name).is_dir() or _is_cached(name):
        return
    try:
        get_session().head(f"{constants.ENDPOINT}/api/models/{name}", timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # Its type depends on the release of the Hub's client.
        raise OSError(hub_unreachable(name, error)) from error


def check_base_model(base_model: str | None) -> None:
    """Check a base model as `check_reachable` does: the name of an embedded one, a folder, or a Hub id; None passes.

    Raises:
        OSError: There is no such base model.
    """
    if base_model is None or base_model in EMBEDDED:
        return
    try:
        check_reachable(base_model)
    except OSError as error:
        raise unusable_base(base_model, first_line(error)) from error


def check_ended(folder: Path) -> None:
    """Check that a folder does not belong to a training that was interrupted before it saved a model.

    Raises:
        OSError: It holds checkpoints and no saved model. The message says how to resume.
    """
    has_ended = any((folder / name).exists() for name in ("adapter_config.json", "config.json", "training.json"))
    if has_ended or not any((folder / CHECKPOINTS).glob("checkpoint-*")):
        return
    go_on = "run its command again with --resume."
    if (folder / RUN).exists():
        words = ["t5fusion", "train", "--config", str(folder / RUN), "--output", str(folder), "--resume"]
        go_on = f"run: {shlex.join(words)}"
    raise OSError(f"the training in {folder} was interrupted, and has not saved a model yet. To go on, {go_on}")


def check_source(source: str, is_base_model: bool) -> None:
    """Check what `export` gets: the name of a base model, or else a folder.

    Raises:
        OSError: There is no such base model or folder.
    """
    recover(Path(source))
    if is_base_model and source not in EMBEDDED:
        check_reachable(source)
    elif not is_base_model and not Path(source).is_dir():
        problem = "is a file" if Path(source).is_file() else "is not a folder"
        raise OSError(f"{source} {problem}; expected a folder that `t5fusion train` wrote.")
    if not is_base_model:
        check_ended(Path(source))


def _is_no_id(name: str) -> bool:
    """Return whether a name is not the id of a repository: it ends like a file, or the Hub's client refuses it."""
    if Path(name).suffix.lower() in FILE_SUFFIXES:
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:  # for "./x", "../x", "/x", "~/x" and "x/y/z", among others
        return True
    return False


def _is_cached(name: str) -> bool:
    """Return whether the Hub's cache on this machine holds files of the repository."""
    snapshots = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots")
    return snapshots.is_dir() and any(snapshots.iterdir())

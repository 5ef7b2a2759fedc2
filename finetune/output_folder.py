"""The folder that a training writes. Training locks it, and changes nothing in it before something is saved."""

import errno
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TextIO

import portalocker

from ..common import folder_names
from ..common.console import say
from ..common.run_files import ADAPTER_CONFIG, CONFIG, EVALUATION, PROCESSOR_CONFIG, RECORD
from ..common.writing import writing

RESUME_CONDITIONS = "options.json"  # the file in each checkpoint with the conditions that a resumed training must meet
CHECKPOINTS, RUN = folder_names.CHECKPOINTS, folder_names.RUN
LOGS = "logs"  # the folder of TensorBoard's files
LOCK = ".training.lock"  # A killed training leaves this file, but no longer locks it.
# What t5fusion, the Trainer, PEFT and transformers write into a run folder. Everything else in it is the user's.
WRITTEN = (
    CHECKPOINTS, LOGS, LOCK, RUN, RECORD, EVALUATION, ADAPTER_CONFIG, CONFIG, PROCESSOR_CONFIG, "README.md", "loss.svg",
    "adapter_model*", "model*.safetensors", "model.safetensors.index.json", "pytorch_model*", "generation_config.json",
    "tokenizer*.json", "tokenizer.model", "spiece.model", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "training_args.bin", "*_t5fusion.py", "demo.json", "demo.html", "demo.svg", "probe.json",
)  # fmt: skip


def is_written(name: str) -> bool:
    """Return whether a training, an evaluation or a demonstration writes a file or folder of this name."""
    return any(fnmatchcase(name, pattern) for pattern in WRITTEN)


def check_output(folder: Path, resume: bool = False, overwrite: bool = False, mark: str | None = None) -> None:
    """Check that a training may write into `folder`. Nothing is changed.

    Args:
        folder: The folder. It need not exist.
        resume: Whether the training continues from the checkpoints in the folder.
        overwrite: Whether the run in the folder will be replaced. This is refused unless the folder holds a run. Other
            files in it stay.
        mark: Name of a file. With `overwrite`, a run is replaced only if the folder holds this file. With None, it must
            hold files that `train` writes.

    Raises:
        ValueError: Another training is writing there, or the folder holds something that must not be replaced.
        OSError: The path is a file, or cannot be written to.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise OSError(f"{existing} is a file; expected a folder. Choose a different --output.")
    if not os.access(existing, os.W_OK):
        raise OSError(f"{existing} cannot be written to. Choose a different --output.")
    if (folder / LOCK).exists():
        with (folder / LOCK).open("a+") as file:
            _lock(file, folder)
    _check_content(folder, resume, overwrite, mark)


def _check_content(folder: Path, resume: bool, overwrite: bool, mark: str | None) -> None:
    """Raise ValueError if the folder holds something that must not be replaced (see `check_output`)."""
    if resume or is_unused(folder):
        return
    if not overwrite:
        raise ValueError(f"{folder} is not empty. Choose a different --output, or pass --overwrite or --resume.")
    names = {item.name for item in folder.iterdir()} - {LOCK}
    # Other programs have folders named checkpoint-N, but ours hold our own file.
    has_checkpoint = any(folder.glob(f"{CHECKPOINTS}/checkpoint-*/{RESUME_CONDITIONS}"))
    is_ours = mark in names if mark else RECORD in names or names - {RUN, LOGS} == {CHECKPOINTS} or has_checkpoint
    if not is_ours:
        raise ValueError(
            f"{folder} holds files that t5fusion did not write, so --overwrite does not remove them. Choose a "
            "different --output."
        )


def is_unused(folder: Path) -> bool:
    """Return whether a folder is missing, empty, or holds only what a training leaves if it is killed early."""
    if not folder.is_dir():
        return True
    items = [item for item in folder.iterdir() if item.name != LOCK]
    return not items or (items == [folder / CHECKPOINTS] and items[0].is_dir() and not any(items[0].iterdir()))


def _lock(file: TextIO, folder: Path) -> None:
    """Lock the open lock file of a folder.

    Raises:
        ValueError: Another training holds the lock.
    """
    try:
        portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.LockException as error:
        is_held = isinstance(error, portalocker.AlreadyLocked)
        if not is_held and getattr(error.__cause__, "errno", None) not in (errno.EACCES, errno.EAGAIN):
            say(f"{folder} is on a file system without locks. Make sure that no other training writes into it.")
            return
        try:
            file.seek(0)
            holder = file.read().strip()
        except OSError:  # On Windows, a locked file cannot be read.
            holder = ""
        raise ValueError(
            f"another training{holder and f', {holder},'} is writing into {folder}. Wait for it, end it, or choose "
            "a different --output."
        ) from error


def _take_lock(folder: Path) -> TextIO:
    """Lock a folder. Return the open lock file."""
    while True:
        file = (folder / LOCK).open("a+")
        try:
            _lock(file, folder)
            # An earlier training may have removed the file between our opening and locking it.
            is_current = os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK))
        except FileNotFoundError:
            is_current = False
        except ValueError:
            file.close()
            raise
        if is_current:
            return file
        file.close()


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove each folder that is empty. A folder comes before its parents."""
    for folder in folders:
        with suppress(OSError):  # It may be missing, or not empty.
            folder.rmdir()


class OutputFolder:
    """The folder that a training saves into.

    Args:
        path: The folder. It need not exist.
        resume, overwrite, mark: As for `check_output`. The mark is written before the first checkpoint is saved.
        run: Content of run.yaml, which is written with the mark; None for no such file.
    """

    def __init__(
        self,
        path: Path,
        resume: bool = False,
        overwrite: bool = False,
        mark: str | None = None,
        run: str | None = None,
    ):
        self.path, self.resume, self.overwrite, self.mark, self.run = path, resume, overwrite, mark, run
        self.has_begun = False  # whether something has been saved
        self.logs: Path | None = None  # the folder of this training's logs

    def new_logs(self) -> Path:
        """Return a new path for a folder of logs. Only logs are written before a checkpoint is saved."""
        self.logs = self.path / LOGS / time.strftime("%Y-%m-%d_%H-%M-%S")
        return self.logs

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder in this context. If nothing is saved, the folder is left as it was.

        Raises:
            ValueError, OSError: As `check_output` does.
        """
        check_output(self.path, self.resume, self.overwrite, self.mark)
        path = self.path.absolute()
        new_folders = [
            folder for folder in (path / LOGS, path / CHECKPOINTS, path, *path.parents) if not folder.exists()
        ]
        try:
            with writing(self.path):
                path.mkdir(parents=True, exist_ok=True)
                file = _take_lock(path)
        except OSError:
            _remove_empty(new_folders)
            raise
        try:
            with writing(self.path):  # A full disk is then noticed before the training, not after its first epoch.
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            # Another training may have saved something between the first check and the lock.
            _check_content(self.path, self.resume, self.overwrite, self.mark)
            yield
        finally:
            with suppress(OSError):  # Windows does not remove a file that is open.
                (path / LOCK).unlink()
            with suppress(OSError):  # Closing tries once more to write what a full disk did not take.
                file.close()
            if not self.has_begun:
                if self.logs is not None:
                    shutil.rmtree(self.logs, ignore_errors=True)
                _remove_empty(new_folders)

    def begin(self) -> None:
        """Remove what is to be overwritten (see `is_written`), and write the mark and run.yaml.

        Call this before something is saved. Only the first call has an effect.
        """
        if self.has_begun:
            return
        self.has_begun = True
        new = {self.path / LOCK, self.path / LOGS if self.logs else None, self.logs}
        earlier = [item for item in self.path.iterdir() if is_written(item.name)]
        items = [*earlier, *self.path.glob(f"{LOGS}/*")] if self.overwrite and not self.resume else []
        for item in items:
            if item in new or not os.path.lexists(item):
                continue
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            else:
                item.unlink()
        with writing(self.path):
            if self.mark is not None:
                (self.path / self.mark).write_text("{}\n")
            if self.run is not None:
                (self.path / RUN).write_text(self.run, encoding="utf-8")

"""The folder of a training: held by one training at a time, and changed only when that one has something to save."""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import portalocker

from ..common.console import say
from ..common.run_folder import RECORD

RESUMED = "options.json"  # in each checkpoint: what a resumed training must agree with
CHECKPOINTS = "checkpoints"
LOCK = ".training.lock"  # there while a training goes on; a killed one leaves the file, but not the lock on it


def check_output(folder: Path, resume: bool = False, overwrite: bool = False, mark: str | None = None) -> None:
    """Checks that a training may write into `folder`. Changes nothing.

    Args:
        resume: the training goes on from what is there.
        overwrite: what is there will be removed, if `train` wrote it.
        mark: name of a file that is in every folder which may be overwritten; None for what `train` always writes.

    Raises:
        ValueError: another training is writing there, or the folder is not empty, or `train` did not write it.
        OSError: it is no folder, or nothing can be written there.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise OSError(f"{there} is a file; expected a folder. Choose another --output.")
    if not os.access(there, os.W_OK):
        raise OSError(f"{there} cannot be written to. Choose another --output.")
    if (folder / LOCK).exists():
        with (folder / LOCK).open("a+") as file:
            _lock(file, folder)
    _check_content(folder, resume, overwrite, mark)


def _check_content(folder: Path, resume: bool, overwrite: bool, mark: str | None) -> None:
    if resume or is_unused(folder):
        return
    if not overwrite:
        raise ValueError(f"{folder} is not empty. Choose another --output, or give --overwrite, or --resume.")
    names = {item.name for item in folder.iterdir()} - {LOCK}
    has_checkpoint = any(folder.glob(f"{CHECKPOINTS}/checkpoint-*/{RESUMED}"))  # many a folder of others has others
    is_ours = mark in names if mark else RECORD in names or names == {CHECKPOINTS} or has_checkpoint
    if not is_ours:
        raise ValueError(f"{folder} holds what t5fusion did not write, and is left alone. Choose another --output.")


def is_unused(folder: Path) -> bool:
    """Whether there is no such folder, or it holds no more than a training that was killed at its start leaves."""
    if not folder.is_dir():
        return True
    used = [item for item in folder.iterdir() if item.name != LOCK]
    return not used or (used == [folder / CHECKPOINTS] and used[0].is_dir() and not any(used[0].iterdir()))


def _lock(file: TextIO, folder: Path) -> None:
    """Locks the file of a folder; ValueError if another training has."""
    try:
        portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.LockException as error:
        taken = isinstance(error, portalocker.AlreadyLocked)
        if not taken and getattr(error.__cause__, "errno", None) not in (errno.EACCES, errno.EAGAIN):
            say(f"{folder} is on a file system without locks: see to it that no other training writes there.")
            return
        try:
            file.seek(0)
            holder = file.read().strip()
        except OSError:  # Windows lets nobody read what is locked
            holder = ""
        raise ValueError(
            f"another training{holder and f', {holder},'} is writing into {folder}. Wait for it, or end it, or choose "
            "another --output."
        ) from error


def _take_lock(folder: Path) -> TextIO:
    """The open and locked file of a folder, which names this process."""
    while True:
        file = (folder / LOCK).open("a+")
        try:
            _lock(file, folder)
            # the training before may have removed the file after it was opened here
            is_current = os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK))
        except FileNotFoundError:
            is_current = False
        except ValueError:
            file.close()
            raise
        if is_current:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            return file
        file.close()


class RunFolder:
    """A training's hold on its folder.

    Args:
        path: of the folder, which need not exist.
        resume, overwrite, mark: as for `check_output`; the mark is put there with the first thing that is saved.
    """

    def __init__(self, path: Path, resume: bool = False, overwrite: bool = False, mark: str | None = None):
        self.path, self.resume, self.overwrite, self.mark = path, resume, overwrite, mark
        self.has_begun = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the folder. If nothing was saved meanwhile, it is left as it was.

        Raises:
            ValueError, OSError: as `check_output` does.
        """
        check_output(self.path, self.resume, self.overwrite, self.mark)
        path = self.path.absolute()
        made = [folder for folder in (path / CHECKPOINTS, path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        file = _take_lock(path)
        try:
            _check_content(self.path, self.resume, self.overwrite, self.mark)  # another training may have ended since
            yield
        finally:
            with suppress(OSError):  # Windows removes no file that is open
                (path / LOCK).unlink()
            file.close()
            if not self.has_begun:
                for folder in made:
                    with suppress(OSError):  # it is not there, or not empty
                        folder.rmdir()

    def begin(self) -> None:
        """Makes room for what is about to be saved for the first time."""
        if self.has_begun:
            return
        self.has_begun = True
        for item in list(self.path.iterdir()) if self.overwrite and not self.resume else ():
            if item.name == LOCK:
                continue
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            else:
                item.unlink()
        if self.mark is not None:
            (self.path / self.mark).write_text("{}\n")

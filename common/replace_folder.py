"""Replace a folder so that a process killed at any moment leaves either the old version or the new one, whole."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, REPLACED = "lock", "replaced"


def workplace_of(target: Path) -> Path:
    """Return the hidden folder beside `target` in which its next version is prepared.

    Its name is always the same, so that the next process finds what a killed one left there.
    """
    return target.with_name(f".{target.name}-export")


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """Lock and yield an empty folder beside `target`, and remove it at the end.

    If a killed process left the only version of `target` there, that version is put back. Anything else that it left is
    removed.

    Raises:
        ValueError: Another process is writing `target`.
    """
    folder = workplace_of(target)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another process is writing {target}. Wait until it has ended.") from error
    try:
        put_back(folder, target)
        for leftover in folder.iterdir():
            if leftover.name != LOCK:
                shutil.rmtree(leftover)
        yield folder
    finally:
        put_back(folder, target)
        shutil.rmtree(folder, ignore_errors=True)  # The lock is still held, so no other process uses the folder.
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)  # Windows could not remove the lock file while it was open.


def replace(target: Path, new: Path) -> None:
    """Move `new`, a folder in the workplace of `target`, to `target`.

    No portable call exchanges two folders. Between the two renames the old version is in the workplace, and `recover`
    or the next `workplace` puts it back from there.
    """
    if target.exists():
        target.rename(workplace_of(target) / REPLACED)
    new.rename(target)


def check_replaceable(target: Path, command: str, holds: str, is_own: bool, overwrite: bool) -> None:
    """Check that a command may write the folder `target`, which may exist.

    Args:
        target: The folder.
        command: The command, such as "export", for the error.
        holds: What it writes, such as "a bundle", for the error.
        is_own: Whether the command wrote what is in the folder.
        overwrite: Whether that may be replaced.

    Raises:
        ValueError: The folder holds something that must not be replaced.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not is_own:
        raise ValueError(
            f"{target} holds files that t5fusion {command} did not write, and is left alone. Choose a different folder."
        )
    if not overwrite:
        raise ValueError(f"{target} holds {holds} already. Choose a different folder, or pass --overwrite.")


def copy_others(target: Path, new: Path, is_written: Callable[[str], bool]) -> None:
    """Copy the user's own files and folders from the folder that is replaced into `new`.

    Args:
        target: The folder that is replaced.
        new: Its next version. What it holds already is not copied.
        is_written: Whether the command wrote the file of a name, which is then not copied.
    """
    for item in target.iterdir() if target.exists() else ():
        if not is_written(item.name) and not (new / item.name).exists():
            (shutil.copytree if item.is_dir() else shutil.copy2)(item, new / item.name)


def put_back(folder: Path, target: Path) -> None:
    """Move the old version of `target` back from the workplace `folder`, if `target` is missing."""
    if (folder / REPLACED).exists() and not target.exists():
        (folder / REPLACED).rename(target)


def recover(target: Path) -> None:
    """Put `target` back if a process was killed while replacing it. Do nothing while a process is replacing it."""
    target = target.absolute()
    if not target.exists() and (workplace_of(target) / REPLACED).exists():
        try:
            with workplace(target):
                pass
        except ValueError:  # Another process is replacing it, and will be done in a moment.
            pass

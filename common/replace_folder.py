"""Replace a folder by a new one, so that a process that is killed at any moment leaves the old one or the new one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, REPLACED = "lock", "replaced"


def workplace_of(target: Path) -> Path:
    """Return the hidden folder beside `target` in which its next version is prepared.

    Its name is always the same, so that the next process finds the leftovers of a killed one.
    """
    return target.with_name(f".{target.name}-export")


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """Give this process an empty folder beside `target`, and remove the folder at the end.

    If a killed process left the only version of `target` there, it is put back first. Other leftovers are removed.

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
        shutil.rmtree(folder, ignore_errors=True)  # before the release, so that no other process owns it yet
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)  # Windows cannot remove the lock before it is released.


def replace(target: Path, new: Path) -> None:
    """Move `new`, a folder in the workplace of `target`, to `target`.

    No portable call exchanges two folders. If the process is killed between the two renames, the old folder is in the
    workplace, and `recover` or the next `workplace` puts it back.
    """
    if target.exists():
        target.rename(workplace_of(target) / REPLACED)
    new.rename(target)


def put_back(folder: Path, target: Path) -> None:
    """Move the old version of `target` back, if there is no other."""
    if (folder / REPLACED).exists() and not target.exists():
        (folder / REPLACED).rename(target)


def recover(target: Path) -> None:
    """Put `target` back if a process was killed while replacing it. Do nothing while such a process runs."""
    target = target.absolute()
    if not target.exists() and (workplace_of(target) / REPLACED).exists():
        try:
            with workplace(target):
                pass
        except ValueError:  # Another process is writing it, and will finish.
            pass

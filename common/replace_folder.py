"""Replace a folder by a new one so that a process killed at any moment leaves the old one or the new one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, REPLACED = "lock", "replaced"


def workplace_of(target: Path) -> Path:
    """The hidden folder beside `target` in which its next version is prepared.

    Its name is always the same, so that the next process finds what a killed one left there.
    """
    return target.with_name(f".{target.name}-export")


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, for this process alone; it is removed at the end.

    What a killed process left there is put back, if it is the only version of `target`, or removed.

    Raises:
        ValueError: another process is writing `target`.
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
        shutil.rmtree(folder, ignore_errors=True)  # while it is locked, lest it becomes another process's meanwhile
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)  # Windows removes no file that is open


def replace(target: Path, new: Path) -> None:
    """Moves `new`, a folder in the workplace of `target`, to `target`.

    No system-independent call exchanges two folders. Between the two renames the old one is in the workplace, from
    where `recover` and the next `workplace` put it back.
    """
    if target.exists():
        target.rename(workplace_of(target) / REPLACED)
    new.rename(target)


def put_back(folder: Path, target: Path) -> None:
    """The old version of `target` to where it was, if there is no other."""
    if (folder / REPLACED).exists() and not target.exists():
        (folder / REPLACED).rename(target)


def recover(target: Path) -> None:
    """Puts `target` back if a process was killed while it replaced it; does nothing while such a process runs."""
    target = target.absolute()
    if not target.exists() and (workplace_of(target) / REPLACED).exists():
        try:
            with workplace(target):
                pass
        except ValueError:  # it is being written: it will be there in a moment
            pass

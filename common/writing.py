"""Write files so that a full disk loses nothing, and say in one sentence why a file cannot be written."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..naming_t5fusion import first_line

FULL_DISK = 2**20  # bytes: a disk with less free space counts as full, and so as the cause of an error


def cause_of(error: BaseException, path: Path) -> str:
    """Return why `path` could not be written: the system's message if there is one, otherwise the error's own."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    number = next((number for each in causes if (number := getattr(each, "errno", None))), None)
    if number is not None:
        return os.strerror(number)
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if shutil.disk_usage(existing).free < FULL_DISK:  # The errors of torch and safetensors do not say it.
        return os.strerror(errno.ENOSPC)
    return first_line(error)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of writing `path` in this context into an OSError that says the cause and what to do.

    An OSError without the system's number, such as an error of the Hub's client, passes unchanged.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise
        raise OSError(
            f"{path} cannot be written ({cause_of(error, path)}). Free some space, or see who may write there, and try "
            "again."
        ) from error


def replace_text(file: Path, text: str) -> None:
    """Replace a text file so that a process killed at any moment leaves the old text or the new one, whole.

    Raises:
        OSError: The new text cannot be written. The old one stays.
    """
    new = file.with_name(f".{file.name}.new")
    with writing(file):
        try:
            new.write_text(text, encoding="utf-8")
            new.replace(file)
        finally:
            new.unlink(missing_ok=True)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Yield a new temporary folder, whose name begins with `prefix`, and remove it at the end.

    Raises:
        OSError: No folder can be made, for example because all disks are full.
    """
    try:
        temporary = tempfile.TemporaryDirectory(prefix=prefix)
    except OSError as error:
        raise OSError(
            f"no temporary folder can be made ({error.strerror}). Free some space, or set TMPDIR to a folder that can "
            "be written to, and try again."
        ) from error
    with temporary as name:
        yield Path(name)


def check_space(folder: Path) -> None:
    """Check whether a full disk explains why another process failed to write to `folder`.

    Raises:
        OSError: The disk of `folder` is full.
    """
    if shutil.disk_usage(folder).free < FULL_DISK:
        with writing(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

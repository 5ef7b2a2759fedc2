"""File permissions of saved models."""

import stat
from pathlib import Path


def apply_umask(folder: Path, pattern: str = "*") -> None:
    """Give every file below `folder` whose name matches `pattern` the permissions that the user's umask asks for.

    safetensors and tempfile write files that only their owner can read. Other users of a shared folder could not load
    the model.
    """
    probe = folder / ".permissions"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.rglob(pattern):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)

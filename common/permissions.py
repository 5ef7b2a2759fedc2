"""The permissions of saved files."""

import stat
from pathlib import Path


def apply_umask(folder: Path, pattern: str = "*") -> None:
    """Give files below `folder` the permissions that the user's umask asks for, if their names match `pattern`.

    safetensors and tempfile write files that only their owner can read, so nobody else could load a model from a shared
    folder.
    """
    probe = folder / ".permissions"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.rglob(pattern):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)

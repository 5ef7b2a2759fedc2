"""A disk that is full after a few bytes or files, for one command."""

import subprocess

import pytest

MOUNT = 'mount -t tmpfs -o "$0" tiny "$1" && shift && exec "$@"'


def tiny_disk(folder, options):
    """Make `folder`, and return words that, put before a command, make it a disk of its own for that command.

    The test is skipped where nobody may mount a disk.

    Args:
        folder: The folder, which must not exist.
        options: Options of tmpfs, such as "size=64k" or "nr_inodes=2".
    """
    folder.mkdir()
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, options, str(folder)]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nobody may mount a disk here")
    return words

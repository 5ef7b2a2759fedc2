"""A user of the Hub, with their own home folder, token and cache."""

import os
import subprocess
from pathlib import Path

from forks import COMMAND, Forks
from warm import warm_python


class Author:
    """A user with their own home folder, token and cache, who runs commands.

    Args:
        hub: The `HubServer`.
        home: The home folder.
        token: The token, or None for a user who is not logged in.
        busy: Whether the user runs many commands. These are then forks of a process that has imported t5fusion, which
            saves time from the third command on.
    """

    def __init__(self, hub, home: Path, token: str | None = "hf_owner", busy: bool = False):
        home.mkdir(exist_ok=True)
        self.hub, self.home = hub, home
        self.environment = os.environ | hub.environment(home / "cache", token)
        self.environment |= {"OMP_NUM_THREADS": "1", "HOME": str(home), "COLUMNS": "200"}
        self.forks = Forks(home, self.environment) if busy else None

    def close(self):
        self.forks.close()

    def python(self, code, *arguments, expect=0, cwd=None, **environment):
        """Run code, which must end with exit code `expect`. Return its standard output and standard error."""
        arguments, cwd = [str(part) for part in arguments], str(cwd or self.home)
        if self.forks is not None and not environment:  # The libraries read variables when they are imported.
            status, out, err = self.forks.run(*arguments, code=code, cwd=cwd)
        else:
            done = subprocess.run(
                [warm_python(), "-c", code, *arguments], cwd=cwd, env=self.environment | environment,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            status, out, err = done.returncode, done.stdout, done.stderr
        assert status == expect, f"{arguments}\n{out}\n{err}"
        return out, err

    def t5fusion(self, *arguments, **options):
        """Run a command of t5fusion, as `python` runs code."""
        return self.python(COMMAND, *arguments, **options)

    def refused(self, *arguments, **options):
        """Run a command that must end with exit code 1. Return its error, without "t5fusion: "."""
        _, stderr = self.t5fusion(*arguments, expect=1, **options)
        assert "Traceback" not in stderr
        last = stderr.strip().splitlines()[-1]
        assert last.startswith("t5fusion: "), stderr
        return last.removeprefix("t5fusion: ")

"""Show how far long work has come: a bar in a terminal, and a line every half minute elsewhere."""

import sys
import time

from tqdm import tqdm

from .console import is_first_process, say

LINE_INTERVAL = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """Show how far long work has come, on standard error.

    In a terminal, that is a bar with the time left; elsewhere, such as in a pipe or a log, a line every half minute. Of
    several processes, only the first shows it. Use it as a context manager, or call `close` at the end.

    Args:
        title: The name of the work, such as "Encoding".
        total: Number of units of work; None if it is not known.
        unit: The name of the units, in the plural.
        done: Number of units that an earlier run has done.
        every: Seconds between two lines where there is no terminal.
    """

    def __init__(self, title: str, total: int | None, unit: str = "rows", done: int = 0, every: float = LINE_INTERVAL):
        self.title, self.total, self.unit, self.done, self.every = title, total, unit, done, every
        self.done_earlier, self.remark = done, ""
        self.started = self.last_line = time.monotonic()
        self.bar: tqdm | None = None
        if is_first_process() and sys.stderr.isatty():
            self.bar = tqdm(desc=title, total=total, initial=done, unit=f" {unit}", leave=False, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def advance(self, units: int = 1, remark: str | None = None) -> None:
        """Count units of work that are done.

        Args:
            units: How many; 0 to show a new remark only.
            remark: A few words shown beside the numbers, such as "loss 0.412". None keeps the last one.
        """
        self.done += units
        if remark is not None:
            self.remark = remark
        if self.bar is not None:
            if remark is not None:
                self.bar.set_postfix_str(remark, refresh=False)
            self.bar.update(units)
        elif time.monotonic() - self.last_line >= self.every:
            self.last_line = time.monotonic()
            say(self._line())

    def skip(self, units: int) -> None:
        """Count units of work that an earlier run has done. They do not count in the estimate of the time left."""
        self.done_earlier += units
        self.advance(units)

    def write(self, line: str) -> None:
        """Print a line on standard error, above the bar."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            say(line)

    def close(self) -> None:
        """Remove the bar, so that what is printed next gets its own line. Further calls do nothing."""
        if self.bar is not None:
            self.bar.close()

    def _line(self) -> str:
        """Return "TITLE: 10 of 40 rows (25%), 01:30 left, REMARK", without what is not known."""
        if self.total is None:
            return ", ".join(filter(None, (f"{self.title}: {self.done:,} {self.unit}", self.remark)))
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        line = f"{self.title}: {self.done:,} of {self.total:,} {self.unit}{share}"
        if self.done > self.done_earlier:
            seconds_per_unit = (time.monotonic() - self.started) / (self.done - self.done_earlier)
            seconds = seconds_per_unit * (self.total - self.done)
            line += f", {tqdm.format_interval(seconds)} left"
        return f"{line}, {self.remark}" if self.remark else line

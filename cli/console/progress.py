"""Progress for people and for logs: a bar with rate and time left on a terminal, plain lines every few seconds elsewhere.

with progress("extracting", unit="videos") as advance:
    run(..., progress=advance)          # called as advance(done, total)
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Advance = Callable[[int, int], None]
EVERY_SECONDS = 10.0
log = logging.getLogger("cli")


@contextmanager
def progress(what: str, unit: str = "items", stream: TextIO | None = None) -> Iterator[Advance]:
    """A function `advance(done, total)` that shows how far `what` has come; it may be called as often as you like."""
    stream = stream or sys.stderr
    if stream.isatty():
        with _bar(what, unit, stream) as advance:
            yield advance
    else:
        yield Lines(what, unit, stream)


@contextmanager
def _bar(what: str, unit: str, stream: TextIO) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    lines = Lines(what, unit, None)
    rate = TextColumn("{task.fields[rate]}", style="dim")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), rate)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(file=stream), transient=False) as bars:
        task = bars.add_task(what, total=None, rate="")

        def advance(done: int, total: int) -> None:
            speed = bars.tasks[0].speed
            bars.update(task, completed=done, total=total, rate=f"{speed:.3g}/s" if speed else "")
            lines(done, total)

        yield advance


class Lines:
    """Plain lines in the log file and on `stream` (None: in the log only): the first, every few seconds, the last."""

    def __init__(self, what: str, unit: str, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self.unit, self.stream, self.clock = what, unit, stream, clock
        self.began = clock()
        self.first: int | None = None
        self.last = 0
        self.said = -EVERY_SECONDS
        self.finished = False

    def __call__(self, done: int, total: int) -> None:
        if self.first is None or done < self.last:  # the first call, or a next part of the work
            self.first, self.began, self.said, self.finished = done, self.clock(), -EVERY_SECONDS, False
        self.last = done
        passed = self.clock() - self.began
        whole = done >= total
        if (passed - self.said < EVERY_SECONDS and not whole) or (whole and self.finished):
            return
        self.said, self.finished = passed, whole
        line = f"{self.what}: {done}/{total} {self.unit}{self._pace(done, total, passed)}"
        log.info("%s", line)
        if self.stream is not None:
            self.stream.write(line + "\n")
            self.stream.flush()

    def _pace(self, done: int, total: int, passed: float) -> str:
        """Rate and time left, once something has been done; what was done before the start does not count."""
        made = done - (self.first or 0)
        if made <= 0 or passed <= 0:
            return ""
        if done >= total:
            return f", {made / passed:.3g}/s, {clock_text(passed)} in all"
        return f", {made / passed:.3g}/s, {clock_text((total - done) * passed / made)} left"


def clock_text(seconds: float) -> str:
    """Seconds as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

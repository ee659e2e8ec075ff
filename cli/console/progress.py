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

ProgressCallback = Callable[[int, int], None]
LINE_INTERVAL_SECONDS = 10.0
log = logging.getLogger("cli")


@contextmanager
def show_progress(
    label: str, unit: str = "items", stream: TextIO | None = None
) -> Iterator[ProgressCallback]:
    """A function `advance(done, total)` that shows how far `what` has come; it may be called as often as you like."""
    stream = stream or sys.stderr
    if stream.isatty():
        with _show_bar(label, unit, stream) as advance:
            yield advance
    else:
        yield ProgressLines(label, unit, stream)


@contextmanager
def _show_bar(what: str, unit: str, stream: TextIO) -> Iterator[ProgressCallback]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    lines = ProgressLines(what, unit, None)
    rate = TextColumn("{task.fields[rate]}", style="dim")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        rate,
    )
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(file=stream),
        transient=False,
    ) as bars:
        task = bars.add_task(what, total=None, rate="")

        def advance(done: int, total: int) -> None:
            speed = bars.tasks[0].speed
            bars.update(task, completed=done, total=total, rate=f"{speed:.3g}/s" if speed else "")
            lines(done, total)

        yield advance


class ProgressLines:
    """Plain lines in the log file and on `stream` (None: in the log only): the first, every few seconds, the last."""

    def __init__(
        self,
        label: str,
        unit: str,
        stream: TextIO | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.unit, self.stream, self.clock = label, unit, stream, clock
        self.start_time = clock()
        self.first_done: int | None = None
        self.last_done = 0
        self.last_report_time = -LINE_INTERVAL_SECONDS
        self.finished = False

    def __call__(self, done: int, total: int) -> None:
        if (
            self.first_done is None or done < self.last_done
        ):  # the first call, or a next part of the work
            self.first_done, self.start_time, self.last_report_time, self.finished = (
                done,
                self.clock(),
                -LINE_INTERVAL_SECONDS,
                False,
            )
        self.last_done = done
        passed = self.clock() - self.start_time
        whole = done >= total
        if (passed - self.last_report_time < LINE_INTERVAL_SECONDS and not whole) or (
            whole and self.finished
        ):
            return
        self.last_report_time, self.finished = passed, whole
        line = f"{self.label}: {done}/{total} {self.unit}{self._format_rate(done, total, passed)}"
        log.info("%s", line)
        if self.stream is not None:
            self.stream.write(line + "\n")
            self.stream.flush()

    def _format_rate(self, done: int, total: int, passed: float) -> str:
        """Rate and time left, once something has been done; what was done before the start does not count."""
        made = done - (self.first_done or 0)
        if made <= 0 or passed <= 0:
            return ""
        if done >= total:
            return f", {made / passed:.3g}/s, {format_clock(passed)} in all"
        return f", {made / passed:.3g}/s, {format_clock((total - done) * passed / made)} left"


def format_clock(seconds: float) -> str:
    """Seconds as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

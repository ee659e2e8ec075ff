"""Progress of long work: a bar on a terminal, plain lines every few seconds elsewhere.

with show_progress("extracting", unit="videos") as advance:
    run(..., progress=advance)          # called as advance(done, total)
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from pipeline.callbacks import ProgressCallback

LINE_INTERVAL_SECONDS = 10.0
log = logging.getLogger("cli")


@contextmanager
def show_progress(
    label: str, unit: str = "items", stream: TextIO | None = None
) -> Iterator[ProgressCallback]:
    """Show progress while the context is open.

    Args:
        label: Name of the work.
        unit: Noun for what is counted, in the plural.
        stream: Output stream; stderr by default. A terminal gets a bar with rate and time left.

    Yields:
        The callback `advance(done, total)`. It may be called at any rate.
    """
    stream = stream or sys.stderr
    if stream.isatty():
        with _show_bar(label, unit, stream) as advance:
            yield advance
    else:
        yield ProgressLines(label, unit, stream)


@contextmanager
def _show_bar(label: str, unit: str, stream: TextIO) -> Iterator[ProgressCallback]:
    """Show a bar on a terminal, and write plain lines to the log."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    lines = ProgressLines(label, unit, None)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}", style="dim"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream), transient=False) as bars:
        task = bars.add_task(label, total=None, rate="")

        def advance(done: int, total: int) -> None:
            speed = bars.tasks[0].speed
            rate = f"{speed:.3g}/s" if speed else ""
            bars.update(task, completed=done, total=total, rate=rate)
            lines(done, total)

        yield advance


class ProgressLines:
    """Progress as plain lines: the first, one every few seconds, and the last.

    Args:
        label: Name of the work; may be changed while it runs.
        unit: Noun for what is counted.
        stream: Output stream; None writes to the log only.
        clock: Function that returns the time in seconds.
    """

    def __init__(
        self,
        label: str,
        unit: str,
        stream: TextIO | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label = label
        self.unit = unit
        self.stream = stream
        self.clock = clock

        self.start_time = clock()
        self.first_done: int | None = None
        self.last_done = 0
        self.last_report_time = -LINE_INTERVAL_SECONDS
        self.finished = False

    def __call__(self, done: int, total: int) -> None:
        """Write a line, if enough time has passed since the last one.

        Args:
            done: Units finished. A smaller number than before begins a new part of the work.
            total: Units in all.
        """
        if self.first_done is None or done < self.last_done:
            self._start_part(done)
        self.last_done = done

        # The last line is written once and at once; others only after the interval.
        elapsed = self.clock() - self.start_time
        is_complete = done >= total
        is_early = elapsed - self.last_report_time < LINE_INTERVAL_SECONDS
        if (is_early and not is_complete) or (is_complete and self.finished):
            return
        self.last_report_time = elapsed
        self.finished = is_complete

        rate = self._format_rate(done, total, elapsed)
        line = f"{self.label}: {done}/{total} {self.unit}{rate}"
        log.info("%s", line)
        if self.stream is not None:
            self.stream.write(line + "\n")
            self.stream.flush()

    def _start_part(self, done: int) -> None:
        """Restart the clock at the first call, or at the next part of the work."""
        self.first_done = done
        self.start_time = self.clock()
        self.last_report_time = -LINE_INTERVAL_SECONDS
        self.finished = False

    def _format_rate(self, done: int, total: int, elapsed: float) -> str:
        """Format rate and time left; units that were finished before the start do not count."""
        new_units = done - (self.first_done or 0)
        if new_units <= 0 or elapsed <= 0:
            return ""

        rate = f"{new_units / elapsed:.3g}/s"
        if done >= total:
            return f", {rate}, {format_clock(elapsed)} in all"
        return f", {rate}, {format_clock((total - done) * elapsed / new_units)} left"


def format_clock(seconds: float) -> str:
    """Format a duration as `m:ss`, or as `h:mm:ss` from one hour on.

    Args:
        seconds: The duration.

    Returns:
        The text.
    """
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds_left:02d}"
    return f"{minutes}:{seconds_left:02d}"

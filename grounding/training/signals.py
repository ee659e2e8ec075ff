"""SIGTERM and Ctrl-C during training: the step that runs is finished and saved first."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Context in which the first of `SIGNALS` only sets `asked` to its number; leaving it hands that signal to whoever
    handled it before.

    A second one is handed on at once, unless the process is one of `several`: torchrun repeats what the terminal has
    already sent to all of them. Signals that are ignored stay so; outside the main thread all are left alone.
    """

    def __init__(self, several: bool = False) -> None:
        self.asked = 0
        self._several, self._at_once = several, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        try:
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        except ValueError:  # not the main thread
            self._before = {}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()
        if error is None and self.asked:
            self._hand_on(self.asked, None)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Meanwhile signals are handed on without delay: nothing would be lost."""
        self._at_once = True
        try:
            if self.asked:
                self._hand_on(self.asked, None)
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._at_once or (self.asked and not self._several):
            self._hand_on(number, frame)
        self.asked = number

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        self._restore()
        if callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL:
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

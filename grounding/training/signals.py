"""SIGTERM and Ctrl-C during training: the step that runs is finished and saved first."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulShutdown:
    """Context in which the first of `SIGNALS` only sets `asked` to its number; leaving it hands that signal to whoever
    handled it before.

    A second one is handed on at once, unless the process is one of `several`: torchrun repeats what the terminal has
    already sent to all of them. Signals that are ignored stay so; outside the main thread all are left alone.
    """

    def __init__(self, is_distributed: bool = False) -> None:
        self.received_signal = 0
        self._is_distributed, self._immediate = is_distributed, False
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        try:
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._previous_handlers = {
                number: signal.signal(number, self._handle_signal) for number in heard
            }
        except ValueError:  # not the main thread
            self._previous_handlers = {}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore_handlers()
        if error is None and self.received_signal:
            self._forward_signal(self.received_signal, None)

    @contextmanager
    def deliver_immediately(self) -> Iterator[None]:
        """Meanwhile signals are handed on without delay: nothing would be lost."""
        self._immediate = True
        try:
            if self.received_signal:
                self._forward_signal(self.received_signal, None)
            yield
        finally:
            self._immediate = False

    def _handle_signal(self, signal_number: int, frame: FrameType | None) -> None:
        if self._immediate or (self.received_signal and not self._is_distributed):
            self._forward_signal(signal_number, frame)
        self.received_signal = signal_number

    def _forward_signal(self, signal_number: int, frame: FrameType | None) -> None:
        before = self._previous_handlers.get(signal_number)
        self._restore_handlers()
        if callable(before):
            before(signal_number, frame)
        elif before == signal.SIG_DFL:
            os.kill(os.getpid(), signal_number)

    def _restore_handlers(self) -> None:
        for number, before in self._previous_handlers.items():
            signal.signal(number, before)

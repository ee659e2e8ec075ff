"""SIGTERM and Ctrl-C during training: the current step is finished and saved first."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulShutdown:
    """Context manager that delays the first SIGINT or SIGTERM.

    The first signal only sets `received_signal`. On leaving, the signal is handed on to the handler
    that was installed before. A second signal is handed on at once, unless the training is
    distributed: torchrun repeats a signal that the terminal has already sent to all processes.
    Ignored signals stay ignored. Outside the main thread all signals are left alone.

    Args:
        is_distributed: This process is one of several that torchrun started.

    Attributes:
        received_signal: Number of the signal received; 0 before.
    """

    def __init__(self, is_distributed: bool = False) -> None:
        self.received_signal = 0
        self._is_distributed = is_distributed
        self._immediate = False
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        try:
            self._previous_handlers = {
                number: signal.signal(number, self._handle_signal) for number in handled
            }
        except ValueError:
            # Python sets signal handlers only in the main thread.
            self._previous_handlers = {}
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore_handlers()
        if error is None and self.received_signal:
            self._forward_signal(self.received_signal, None)

    @contextmanager
    def deliver_immediately(self) -> Iterator[None]:
        """Hand signals on without delay while the context lasts, because nothing would be lost.

        Yields:
            Nothing. A signal received earlier is handed on before.
        """
        self._immediate = True
        try:
            if self.received_signal:
                self._forward_signal(self.received_signal, None)
            yield
        finally:
            self._immediate = False

    def _handle_signal(self, signal_number: int, frame: FrameType | None) -> None:
        """Record a signal, or hand it on at once."""
        is_repeated = self.received_signal and not self._is_distributed
        if self._immediate or is_repeated:
            self._forward_signal(signal_number, frame)
        self.received_signal = signal_number

    def _forward_signal(self, signal_number: int, frame: FrameType | None) -> None:
        """Restore the previous handlers and hand a signal on to its own."""
        handler = self._previous_handlers.get(signal_number)
        self._restore_handlers()
        if callable(handler):
            handler(signal_number, frame)
        elif handler == signal.SIG_DFL:
            os.kill(os.getpid(), signal_number)

    def _restore_handlers(self) -> None:
        """Install the handlers that were there before."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

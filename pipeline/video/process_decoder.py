"""A decoder in a process of its own: what it does to itself (hang, crash, take memory) costs one video, never the run.

The process is a plain `subprocess` of `python -m pipeline.video.worker`: Dask's workers are daemons, which may not have
children of `multiprocessing`, and a fork would copy torch's threads and locks. It imports no torch. It has a session of
its own, so Ctrl-C reaches the parent alone, and it dies with the parent (see `serve`). Pictures come through a ring in
shared memory, so decoding overlaps the consumer's compute.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pipeline.errors import VideoError
from pipeline.video.frames import Picture, ascending
from pipeline.video.metadata import VideoFacts
from pipeline.video.protocol import Wire, ring_file, ring_map, ring_pictures

COMMAND = ("-m", "pipeline.video.worker")
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""Pictures come and go: giving their memory back to the system and asking for it again takes a tenth of the time."""
NUDGE_SECONDS = 0.02
"""While the parent waits it wakes the child this often: one that stopped just as room was given would sleep on."""
CLOSE_SECONDS = 5.0
"""A stream closed early may take this long to end; then the process is replaced."""
DEATH_SECONDS = 5.0
STARTS = 3
"""Attempts to start the process before that counts as an error of the installation."""


class DecodeChild:
    """One decoding process, used for one video after another by one thread at a time, and replaced when it dies.

    `frame_limit` and `probe_limit` are seconds without a sign of life while the parent waits; then the process is
    killed: VideoError `hung`. If it dies by itself: VideoError `crashed`. The next request starts another.
    """

    def __init__(self, frame_limit: float = 60.0, probe_limit: float = 300.0) -> None:
        self.frame_limit = frame_limit
        self.probe_limit = probe_limit
        self._stream: FrameStream | None = None
        self._start()

    def __enter__(self) -> DecodeChild:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The id of the present process."""
        return self._process.pid

    def probe(self, path: str | Path) -> VideoFacts:
        """As `pipeline.video.probe`."""
        self._request("probe", Path(path))
        facts: VideoFacts = self._answer(Path(path), self.probe_limit)[1]
        return facts

    def frames(self, path: str | Path, facts: VideoFacts, wanted: Iterable[int]) -> FrameStream:
        """As `pipeline.video.open_frames`: the `wanted` (ascending) frames. Read it to its end, or close it, before the next request."""
        self._request("frames", Path(path), facts, ascending(path, facts, wanted))
        _, decoder, reason = self._answer(Path(path), self.probe_limit)
        self._stream = FrameStream(self, Path(path), ring_pictures(self._memory, facts.size), decoder, reason)
        return self._stream

    def close(self) -> None:
        """End the process."""
        self._stream = None
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # where a disk does not answer it dies when that does
            self._process.wait(DEATH_SECONDS)
        self._process.stdin.close()  # type: ignore[union-attr]
        self._wire.close()

    def _start(self) -> None:
        ring, (end, other) = ring_file(), socket.socketpair()
        try:
            shared = (ring, other.fileno())
            command = [sys.executable, *COMMAND, *map(str, shared)]
            environment = os.environ | KEEP_MEMORY
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=shared, env=environment, start_new_session=True)
            self._memory = ring_map(ring)
        finally:
            os.close(ring)
            other.close()
        self._wire = Wire(end)
        self._ready = False

    def _request(self, kind: str, path: Path, *values: Any) -> None:
        """Ask a process that is there and has no stream open."""
        if self._stream is not None:
            raise RuntimeError(f"{self._stream.path} is still being read: close its stream before asking for {path}")
        if self._process.poll() is not None:
            self.close()
            self._start()
        for _ in range(STARTS):  # what kills it while it starts is not the video
            if self._ready or self._comes_up():
                break
            self.close()
            self._start()
        else:
            self.close()
            command = " ".join([sys.executable, *COMMAND])
            raise RuntimeError(f"the decoder's process does not start; what `{command}` prints says why")
        self._tell(kind, os.getcwd(), path, *values)

    def _comes_up(self) -> bool:
        """Wait until the process is ready; False where it dies instead."""
        try:
            self._ready = self._receive(self.probe_limit)[0] == "ready"
        except (EOFError, ConnectionError, TimeoutError):
            return False
        return self._ready

    def _tell(self, kind: str, *values: Any) -> None:
        """Send a message and wake the process; where that fails the wait for an answer will say so."""
        with suppress(ConnectionError, TimeoutError):
            self._wire.send(kind, *values, limit=self.frame_limit)
        self._process.send_signal(signal.SIGCONT)

    def _receive(self, limit: float) -> tuple[Any, ...]:
        """The next message, waking the process while waiting; only time that is really spent waiting counts."""
        for _ in range(max(1, round(limit / NUDGE_SECONDS))):
            try:
                return self._wire.receive(NUDGE_SECONDS)
            except TimeoutError:
                self._process.send_signal(signal.SIGCONT)
        raise TimeoutError

    def _answer(self, path: Path, limit: float) -> tuple[Any, ...]:
        """The next answer about a video; the VideoError it ends with, if it does."""
        try:
            while (message := self._receive(limit))[0] == "alive":
                pass
        except TimeoutError:
            self.close()
            detail = f"{path}: the decoder gave nothing for {limit:g} s and was killed; convert the video again, or leave it out"
            raise VideoError("decode", "hung", detail) from None
        except (EOFError, ConnectionError):
            death = self._death()
            detail = f"{path}: the decoder's process died of it ({death}); convert the video again, or leave it out"
            raise VideoError("decode", "crashed", detail) from None
        if message[0] == "refused":
            self._stream = None
            raise message[1]
        return message

    def _death(self) -> str:
        """What the process died of; it is gone afterwards."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(DEATH_SECONDS)
        code = self._process.returncode
        self.close()
        if code == -signal.SIGKILL:
            return "SIGKILL: killed from outside, or out of memory"
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

    def _close_stream(self) -> None:
        """End the open stream before its last picture, keeping the process if it complies."""
        self._stream = None
        self._tell("close")
        end = time.monotonic() + CLOSE_SECONDS
        try:
            while self._receive(CLOSE_SECONDS)[0] not in ("end", "refused"):
                if time.monotonic() > end:
                    raise TimeoutError
        except (EOFError, ConnectionError, TimeoutError):
            self.close()


class FrameStream:
    """Iterator of `(frame number, rgb uint8 [h, w, 3])`, the picture the caller's own; `decoder` and `reason` as in `FrameReader`."""

    def __init__(self, child: DecodeChild, path: Path, slots: np.ndarray, decoder: str, reason: str) -> None:
        self.path, self.decoder, self.reason = path, decoder, reason
        self._child = child
        self._slots = slots
        self._ready: list[int] = []
        self._place = 0
        self._taken = 0

    def __iter__(self) -> FrameStream:
        return self

    def __next__(self) -> Picture:
        child = self._child
        if child._stream is not self:
            raise StopIteration
        if 2 * self._taken >= len(self._slots):  # in halves: a process that sleeps is woken less often
            child._tell("room", self._taken)
            self._taken = 0
        while not self._ready:
            kind, *values = child._answer(self.path, child.frame_limit)
            if kind == "end":
                child._stream = None
                raise StopIteration
            self._ready, self.decoder, self.reason = values
        picture = self._slots[self._place % len(self._slots)].copy()
        self._place += 1
        self._taken += 1
        return self._ready.pop(0), picture

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading."""
        if self._child._stream is self:
            self._child._close_stream()

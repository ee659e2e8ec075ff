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
from pipeline.video.frames import IndexedFrame, validate_frame_indices
from pipeline.video.metadata import VideoMetadata
from pipeline.video.protocol import MessageChannel, create_ring_file, map_ring, view_ring_slots

WORKER_COMMAND = ("-m", "pipeline.video.worker")
MALLOC_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
"""Pictures come and go: giving their memory back to the system and asking for it again takes a tenth of the time."""
WAKE_INTERVAL_SECONDS = 0.02
"""While the parent waits it wakes the child this often: one that stopped just as room was given would sleep on."""
CLOSE_TIMEOUT_SECONDS = 5.0
"""A stream closed early may take this long to end; then the process is replaced."""
EXIT_TIMEOUT_SECONDS = 5.0
MAX_START_ATTEMPTS = 3
"""Attempts to start the process before that counts as an error of the installation."""


class ProcessDecoder:
    """One decoding process, used for one video after another by one thread at a time, and replaced when it dies.

    `frame_timeout` and `probe_timeout` are seconds without a sign of life while the parent waits; then the process is
    killed: VideoError `hung`. If it dies by itself: VideoError `crashed`. The next request starts another.
    """

    def __init__(self, frame_timeout: float = 60.0, probe_timeout: float = 300.0) -> None:
        self.frame_timeout = frame_timeout
        self.probe_timeout = probe_timeout
        self._stream: FrameStream | None = None
        self._start()

    def __enter__(self) -> ProcessDecoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The id of the present process."""
        return self._process.pid

    def probe(self, path: str | Path) -> VideoMetadata:
        """As `pipeline.video.probe`."""
        self._request("probe", Path(path))
        facts: VideoMetadata = self._receive_reply(Path(path), self.probe_timeout)[1]
        return facts

    def frames(
        self, path: str | Path, metadata: VideoMetadata, frame_indices: Iterable[int]
    ) -> FrameStream:
        """As `pipeline.video.open_frames`: the `wanted` (ascending) frames. Read it to its end, or close it, before the next request."""
        self._request(
            "frames", Path(path), metadata, validate_frame_indices(path, metadata, frame_indices)
        )
        _, decoder, reason = self._receive_reply(Path(path), self.probe_timeout)
        self._stream = FrameStream(
            self, Path(path), view_ring_slots(self._ring_memory, metadata.size), decoder, reason
        )
        return self._stream

    def close(self) -> None:
        """End the process."""
        self._stream = None
        self._process.kill()
        with suppress(
            subprocess.TimeoutExpired
        ):  # where a disk does not answer it dies when that does
            self._process.wait(EXIT_TIMEOUT_SECONDS)
        self._process.stdin.close()  # type: ignore[union-attr]
        self._channel.close()

    def _start(self) -> None:
        ring, (end, other) = create_ring_file(), socket.socketpair()
        try:
            shared = (ring, other.fileno())
            command = [sys.executable, *WORKER_COMMAND, *map(str, shared)]
            environment = os.environ | MALLOC_ENVIRONMENT
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                pass_fds=shared,
                env=environment,
                start_new_session=True,
            )
            self._ring_memory = map_ring(ring)
        finally:
            os.close(ring)
            other.close()
        self._channel = MessageChannel(end)
        self._is_ready = False

    def _request(self, kind: str, path: Path, *values: Any) -> None:
        """Ask a process that is there and has no stream open."""
        if self._stream is not None:
            raise RuntimeError(
                f"{self._stream.path} is still being read: close its stream before asking for {path}"
            )
        if self._process.poll() is not None:
            self.close()
            self._start()
        for _ in range(MAX_START_ATTEMPTS):  # what kills it while it starts is not the video
            if self._is_ready or self._wait_until_ready():
                break
            self.close()
            self._start()
        else:
            self.close()
            command = " ".join([sys.executable, *WORKER_COMMAND])
            raise RuntimeError(
                f"the decoder's process does not start; what `{command}` prints says why"
            )
        self._send(kind, os.getcwd(), path, *values)

    def _wait_until_ready(self) -> bool:
        """Wait until the process is ready; False where it dies instead."""
        try:
            self._is_ready = self._receive(self.probe_timeout)[0] == "ready"
        except (EOFError, ConnectionError, TimeoutError):
            return False
        return self._is_ready

    def _send(self, kind: str, *values: Any) -> None:
        """Send a message and wake the process; where that fails the wait for an answer will say so."""
        with suppress(ConnectionError, TimeoutError):
            self._channel.send(kind, *values, timeout=self.frame_timeout)
        self._process.send_signal(signal.SIGCONT)

    def _receive(self, limit: float) -> tuple[Any, ...]:
        """The next message, waking the process while waiting; only time that is really spent waiting counts."""
        for _ in range(max(1, round(limit / WAKE_INTERVAL_SECONDS))):
            try:
                return self._channel.receive(WAKE_INTERVAL_SECONDS)
            except TimeoutError:
                self._process.send_signal(signal.SIGCONT)
        raise TimeoutError

    def _receive_reply(self, path: Path, limit: float) -> tuple[Any, ...]:
        """The next answer about a video; the VideoError it ends with, if it does."""
        try:
            while (message := self._receive(limit))[0] == "alive":
                pass
        except TimeoutError:
            self.close()
            detail = f"{path}: the decoder gave nothing for {limit:g} s and was killed; convert the video again, or leave it out"
            raise VideoError("decode", "hung", detail) from None
        except (EOFError, ConnectionError):
            death = self._describe_exit()
            detail = f"{path}: the decoder's process died of it ({death}); convert the video again, or leave it out"
            raise VideoError("decode", "crashed", detail) from None
        if message[0] == "refused":
            self._stream = None
            raise message[1]
        return message

    def _describe_exit(self) -> str:
        """What the process died of; it is gone afterwards."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_TIMEOUT_SECONDS)
        code = self._process.returncode
        self.close()
        if code == -signal.SIGKILL:
            return "SIGKILL: killed from outside, or out of memory"
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

    def _close_stream(self) -> None:
        """End the open stream before its last picture, keeping the process if it complies."""
        self._stream = None
        self._send("close")
        end = time.monotonic() + CLOSE_TIMEOUT_SECONDS
        try:
            while self._receive(CLOSE_TIMEOUT_SECONDS)[0] not in ("end", "refused"):
                if time.monotonic() > end:
                    raise TimeoutError
        except (EOFError, ConnectionError, TimeoutError):
            self.close()


class FrameStream:
    """Iterator of `(frame number, rgb uint8 [h, w, 3])`, the picture the caller's own; `decoder` and `reason` as in `FrameReader`."""

    def __init__(
        self,
        process_decoder: ProcessDecoder,
        path: Path,
        slots: np.ndarray,
        decoder: str,
        reason: str,
    ) -> None:
        self.path, self.decoder, self.reason = path, decoder, reason
        self._process_decoder = process_decoder
        self._slots = slots
        self._pending_indices: list[int] = []
        self._slot_index = 0
        self._consumed_slots = 0

    def __iter__(self) -> FrameStream:
        return self

    def __next__(self) -> IndexedFrame:
        child = self._process_decoder
        if child._stream is not self:
            raise StopIteration
        if 2 * self._consumed_slots >= len(
            self._slots
        ):  # in halves: a process that sleeps is woken less often
            child._send("room", self._consumed_slots)
            self._consumed_slots = 0
        while not self._pending_indices:
            kind, *values = child._receive_reply(self.path, child.frame_timeout)
            if kind == "end":
                child._stream = None
                raise StopIteration
            self._pending_indices, self.decoder, self.reason = values
        picture = self._slots[self._slot_index % len(self._slots)].copy()
        self._slot_index += 1
        self._consumed_slots += 1
        return self._pending_indices.pop(0), picture

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading."""
        if self._process_decoder._stream is self:
            self._process_decoder._close_stream()

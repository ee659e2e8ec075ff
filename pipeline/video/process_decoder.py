"""Decoding in a separate process, so that a hang or a crash costs one video and never the run.

The process is a plain `subprocess` of `python -m pipeline.video.worker`. `multiprocessing` is not
used: Dask's workers are daemons, which may not have such children, and a fork would copy torch's
threads and locks. The process imports no torch. It has its own session, so Ctrl-C reaches the
parent alone, and it dies with the parent (see `pipeline.video.worker`). Frames arrive through a
ring in shared memory, so decoding overlaps with the consumer's computation.
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
"""Settings of glibc's allocator that keep the memory of freed frames.

Returning it to the kernel and requesting it again takes a tenth of the time.
"""
WAKE_INTERVAL_SECONDS = 0.02
"""Interval at which a waiting parent wakes the process.

A process that stopped itself just as a slot was released would otherwise sleep on.
"""
CLOSE_TIMEOUT_SECONDS = 5.0
"""Time for a stream to end after an early close; then the process is replaced."""
EXIT_TIMEOUT_SECONDS = 5.0
"""Time to wait for the end of a process that was killed or closed its channel."""
MAX_START_ATTEMPTS = 3
"""Attempts to start the process before the failure counts as an error of the installation."""


class ProcessDecoder:
    """A decoding process for one video after another, which is replaced when it dies.

    One thread may use it at a time. The timeouts count seconds without a message while the parent
    waits. After a timeout the process is killed, which gives VideoError `hung`. A process that
    dies by itself gives VideoError `crashed`. The next request starts another process.

    Args:
        frame_timeout: Seconds without a message while frames are read.
        probe_timeout: Seconds without a message while a video is probed or opened.
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
        """Process id of the current process."""
        return self._process.pid

    def probe(self, path: str | Path) -> VideoMetadata:
        """Read the metadata of a video, as `pipeline.video.probe` does.

        Args:
            path: Video file.

        Returns:
            The metadata.

        Raises:
            VideoError: The video cannot be used, or the process `hung` or `crashed`.
            RuntimeError: A stream is open, or the process does not start.
        """
        self._request("probe", Path(path))
        metadata: VideoMetadata = self._receive_reply(Path(path), self.probe_timeout)[1]
        return metadata

    def frames(
        self, path: str | Path, metadata: VideoMetadata, frame_indices: Iterable[int]
    ) -> FrameStream:
        """Open a video to read some of its frames, as `pipeline.video.open_frames` does.

        Args:
            path: Video file.
            metadata: Its metadata.
            frame_indices: Strictly increasing indices of the frames to read.

        Returns:
            The stream. Read it to its end, or close it, before the next request.

        Raises:
            ValueError: The frame indices are not strictly increasing within the video.
            VideoError: The video cannot be opened, or the process `hung` or `crashed`.
            RuntimeError: A stream is open, or the process does not start.
        """
        checked_indices = validate_frame_indices(path, metadata, frame_indices)
        self._request("frames", Path(path), metadata, checked_indices)
        _, decoder, reason = self._receive_reply(Path(path), self.probe_timeout)

        slots = view_ring_slots(self._ring_memory, metadata.size)
        self._stream = FrameStream(self, Path(path), slots, decoder, reason)
        return self._stream

    def close(self) -> None:
        """End the process."""
        self._stream = None
        self._process.kill()

        # A process that waits for a disk dies only when the disk answers.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_TIMEOUT_SECONDS)
        self._process.stdin.close()  # type: ignore[union-attr]
        self._channel.close()

    def _start(self) -> None:
        """Start a process with a new ring and a new channel."""
        ring_descriptor = create_ring_file()
        parent_socket, worker_socket = socket.socketpair()
        try:
            shared_descriptors = (ring_descriptor, worker_socket.fileno())
            command = [sys.executable, *WORKER_COMMAND, *map(str, shared_descriptors)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                pass_fds=shared_descriptors,
                env=os.environ | MALLOC_ENVIRONMENT,
                start_new_session=True,
            )
            self._ring_memory = map_ring(ring_descriptor)
        finally:
            os.close(ring_descriptor)
            worker_socket.close()

        self._channel = MessageChannel(parent_socket)
        self._is_ready = False

    def _request(self, kind: str, path: Path, *values: Any) -> None:
        """Send a request to a running process that has no open stream."""
        if self._stream is not None:
            raise RuntimeError(
                f"{self._stream.path} is still being read: close its stream before opening {path}"
            )

        if self._process.poll() is not None:
            self.close()
            self._start()
        self._ensure_ready()
        self._send(kind, os.getcwd(), path, *values)

    def _ensure_ready(self) -> None:
        """Wait for the process, restarting it if it dies: a start does not depend on a video."""
        for _ in range(MAX_START_ATTEMPTS):
            if self._is_ready or self._wait_until_ready():
                return
            self.close()
            self._start()

        self.close()
        command = " ".join([sys.executable, *WORKER_COMMAND])
        raise RuntimeError(
            f"the decoding process does not start; run `{command}` to see its error message"
        )

    def _wait_until_ready(self) -> bool:
        """Wait until the process is ready; return False if it dies instead."""
        try:
            self._is_ready = self._receive(self.probe_timeout)[0] == "ready"
        except (EOFError, ConnectionError, TimeoutError):
            return False
        return self._is_ready

    def _send(self, kind: str, *values: Any) -> None:
        """Send a message and wake the process; the wait for its reply reports a failure."""
        with suppress(ConnectionError, TimeoutError):
            self._channel.send(kind, *values, timeout=self.frame_timeout)
        self._process.send_signal(signal.SIGCONT)

    def _receive(self, timeout: float) -> tuple[Any, ...]:
        """Return the next message, waking the process while waiting.

        The timeout is counted in wake intervals, so that only time spent waiting counts.
        """
        for _ in range(max(1, round(timeout / WAKE_INTERVAL_SECONDS))):
            try:
                return self._channel.receive(WAKE_INTERVAL_SECONDS)
            except TimeoutError:
                self._process.send_signal(signal.SIGCONT)
        raise TimeoutError

    def _receive_reply(self, path: Path, timeout: float) -> tuple[Any, ...]:
        """Return the next reply about a video, or raise the VideoError that ended its decoding."""
        try:
            message = self._receive(timeout)
            while message[0] == "heartbeat":
                message = self._receive(timeout)
        except TimeoutError:
            self.close()
            detail = (
                f"{path}: the decoder did not respond for {timeout:g} s and was killed; "
                "convert the video again, or leave it out"
            )
            raise VideoError("decode", "hung", detail) from None
        except (EOFError, ConnectionError):
            exit_description = self._describe_exit()
            detail = (
                f"{path}: the decoding process died ({exit_description}); "
                "convert the video again, or leave it out"
            )
            raise VideoError("decode", "crashed", detail) from None

        if message[0] == "refused":
            self._stream = None
            raise message[1]
        return message

    def _describe_exit(self) -> str:
        """Return how the process ended, and release what is left of it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_TIMEOUT_SECONDS)
        code = self._process.returncode
        self.close()

        if code == -signal.SIGKILL:
            return "SIGKILL: killed from outside, or out of memory"
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

    def _close_stream(self) -> None:
        """End the open stream early, and keep the process if it ends the stream in time."""
        self._stream = None
        self._send("close")
        deadline = time.monotonic() + CLOSE_TIMEOUT_SECONDS
        try:
            # Frames that were announced before the close are discarded.
            while self._receive(CLOSE_TIMEOUT_SECONDS)[0] not in ("end", "refused"):
                if time.monotonic() > deadline:
                    raise TimeoutError
        except (EOFError, ConnectionError, TimeoutError):
            self.close()


class FrameStream:
    """Iterator of `(frame index, RGB uint8 [h, w, 3])` from a decoding process.

    Each frame is a copy that belongs to the caller.

    Attributes:
        path: Video file.
        decoder: Decoder in use, as in `FrameReader`.
        reason: Reason for the choice of the decoder.
    """

    def __init__(
        self,
        process_decoder: ProcessDecoder,
        path: Path,
        slots: np.ndarray,
        decoder: str,
        reason: str,
    ) -> None:
        self.path = path
        self.decoder = decoder
        self.reason = reason
        self._process_decoder = process_decoder
        self._slots = slots
        self._pending_indices: list[int] = []
        self._slot_index = 0
        self._consumed_slots = 0

    def __iter__(self) -> FrameStream:
        return self

    def __next__(self) -> IndexedFrame:
        process_decoder = self._process_decoder
        if process_decoder._stream is not self:
            raise StopIteration

        # Release half of the ring at once, so that a stopped process is woken less often.
        if 2 * self._consumed_slots >= len(self._slots):
            process_decoder._send("release", self._consumed_slots)
            self._consumed_slots = 0

        # Wait for the next announced frames.
        while not self._pending_indices:
            kind, *values = process_decoder._receive_reply(self.path, process_decoder.frame_timeout)
            if kind == "end":
                process_decoder._stream = None
                raise StopIteration
            self._pending_indices, self.decoder, self.reason = values

        # Copy the frame, because its slot is written again.
        frame = self._slots[self._slot_index % len(self._slots)].copy()
        self._slot_index += 1
        self._consumed_slots += 1
        return self._pending_indices.pop(0), frame

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

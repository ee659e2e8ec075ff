"""Entry point of the decoding process, which answers one request after another.

`ProcessDecoder` starts `python -m pipeline.video.worker RING SOCKET` with two file descriptors.

The process ends with its parent at any moment, even while it is stopped or hangs in a decoder. Its
standard input is a pipe that the parent holds and never writes to. The kernel is told to send
SIGKILL when the pipe is closed. PR_SET_PDEATHSIG is not used: that signal is sent as soon as the
parent's *thread* that started the process ends. A fork of the parent holds the pipe as well.

decord decodes ahead without a limit while its reader is idle. A process whose ring is full
therefore stops itself, with all of decord's threads (SIGSTOP). The parent wakes it (SIGCONT) after
releasing slots. The case `memory` of `python -m benchmarks` measures the memory that this saves.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from mmap import mmap
from pathlib import Path

import numpy as np

from pipeline.errors import VideoError
from pipeline.video.frames import open_frames
from pipeline.video.metadata import VideoMetadata, probe
from pipeline.video.protocol import MessageChannel, map_ring, view_ring_slots

PARENT_PIPE = 0
"""File descriptor whose other end only the parent holds."""
HEARTBEAT_INTERVAL_SECONDS = 1.0
ANNOUNCE_INTERVAL_SECONDS = 0.004
"""Frames that arrive faster are announced together.

Waking the parent costs as much as decoding a small frame.
"""


def main() -> None:
    """Run the decoding process until its parent ends."""
    # Ctrl-C is handled by the parent alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()

    # Import the decoders before the first request, so that its timeout covers decoding only.
    import av  # noqa: F401

    with suppress(ImportError, OSError):
        import decord  # noqa: F401

    ring_descriptor = int(sys.argv[1])
    socket_descriptor = int(sys.argv[2])
    memory = map_ring(ring_descriptor)
    os.close(ring_descriptor)
    channel = MessageChannel(socket.socket(fileno=socket_descriptor))
    channel.send("ready")

    # Decoders print to stderr the same errors that they raise.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    serve(channel, memory)


def _die_with_parent() -> None:
    """Let the kernel send SIGKILL when the other end of standard input is closed."""
    fcntl.fcntl(PARENT_PIPE, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(PARENT_PIPE, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(PARENT_PIPE, fcntl.F_SETFL, fcntl.fcntl(PARENT_PIPE, fcntl.F_GETFL) | os.O_ASYNC)

    # The parent may have ended before the signal was set up.
    if select.select([PARENT_PIPE], [], [], 0)[0]:
        os.kill(os.getpid(), signal.SIGKILL)


def serve(channel: MessageChannel, memory: mmap) -> None:
    """Answer requests until the parent is gone.

    A request names the parent's working directory, from which relative paths start.

    Args:
        channel: Channel to the parent.
        memory: The mapped ring of frames.
    """
    heartbeat = _HeartbeatSender(channel)
    while True:
        try:
            kind, *values = channel.receive()

            # "release" and "close" may arrive after the last frame of a stream.
            if kind not in ("probe", "frames"):
                continue

            directory, path, *values = values
            os.chdir(directory)
            if kind == "probe":
                channel.send("metadata", probe(path, heartbeat=heartbeat))
            else:
                _stream_frames(channel, memory, heartbeat, path, *values)
        except VideoError as error:
            channel.send("refused", error)
        except (EOFError, ConnectionError):
            return
        except Exception as error:
            detail = (
                f"{path}: the decoder failed with an unexpected error "
                f"({type(error).__name__}: {error}); convert the video again, or leave it out"
            )
            channel.send("refused", VideoError("decode", "failed", detail))


class _HeartbeatSender:
    """Sender of a message, at most once a second, while work continues without a result."""

    def __init__(self, channel: MessageChannel) -> None:
        self._channel = channel
        self._last_send_time = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last_send_time >= HEARTBEAT_INTERVAL_SECONDS:
            self._last_send_time = now
            self._channel.send("heartbeat")


def _stream_frames(
    channel: MessageChannel,
    memory: mmap,
    heartbeat: _HeartbeatSender,
    path: Path,
    metadata: VideoMetadata,
    frame_indices: np.ndarray,
) -> None:
    """Write frames into the ring and announce their indices, until the last one or "close"."""
    slots = view_ring_slots(memory, metadata.size)  # [slots, h, w, 3]
    slot_counter = _SlotCounter(channel, len(slots))

    with open_frames(path, metadata, frame_indices, heartbeat=heartbeat) as reader:
        channel.send("opened", reader.decoder, reader.reason)
        pending_indices: list[int] = []
        last_announce_time = 0.0
        try:
            for position, (frame_index, frame) in enumerate(reader.iterate_views()):
                if not slot_counter.acquire():
                    break
                slots[position % len(slots)] = frame
                pending_indices.append(frame_index)

                # Announce before the ring is full, because this process then stops itself.
                is_due = time.monotonic() - last_announce_time > ANNOUNCE_INTERVAL_SECONDS
                if is_due or not slot_counter.free_slots:
                    channel.send("frames", pending_indices, reader.decoder, reader.reason)
                    pending_indices = []
                    last_announce_time = time.monotonic()
        finally:
            channel.send("frames", pending_indices, reader.decoder, reader.reason)
        channel.send("end")


class _SlotCounter:
    """Count of the ring's free slots, updated by the parent's messages."""

    def __init__(self, channel: MessageChannel, num_slots: int) -> None:
        self._channel = channel
        self.free_slots = num_slots

    def acquire(self) -> bool:
        """Use one slot, stopping this process until one is free.

        Returns:
            False if the parent closes the stream instead.
        """
        while True:
            if not self._receive_released_slots():
                return False
            if self.free_slots:
                self.free_slots -= 1
                return True

            # Sleep without decoding ahead, until the parent sends SIGCONT.
            os.kill(os.getpid(), signal.SIGSTOP)

    def _receive_released_slots(self) -> bool:
        """Add the slots that the parent has released; return False on "close"."""
        with suppress(TimeoutError):
            while True:
                kind, *values = self._channel.receive(0)
                if kind == "close":
                    return False
                self.free_slots += values[0]
        return True


if __name__ == "__main__":
    main()

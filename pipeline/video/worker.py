"""The decoder's process (`python -m pipeline.video.worker RING SOCKET`, started by `ProcessDecoder`): answers one request after another.

It dies with its parent at any moment, also while it is stopped or hangs in a decoder: its standard input is a pipe that
the parent holds and never writes to, and the kernel is told to send SIGKILL when that pipe is closed. (PR_SET_PDEATHSIG
would kill it as soon as the parent's *thread* that started it ends; a fork of the parent holds the pipe as well.)

decord decodes ahead without bound while nobody takes its pictures, so a process whose ring is full stops itself
(SIGSTOP, with all of decord's threads); its parent wakes it when it gives room back. The case `memory` of
`python -m benchmarks` says what that saves.
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
HEARTBEAT_INTERVAL_SECONDS = 1.0
ANNOUNCE_INTERVAL_SECONDS = 0.004
"""Pictures are announced together if they come faster: waking the parent for each costs as much as decoding a small one."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    import av  # noqa: F401

    with suppress(ImportError, OSError):
        import decord  # noqa: F401

    ring, end = int(sys.argv[1]), int(sys.argv[2])
    memory = map_ring(ring)
    os.close(ring)
    wire = MessageChannel(socket.socket(fileno=end))
    wire.send("ready")
    os.dup2(
        os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno()
    )  # decoders print what the errors say again
    serve(wire, memory)


def _die_with_parent() -> None:
    """SIGKILL, whatever this process is doing, when the other end of standard input is closed."""
    fcntl.fcntl(PARENT_PIPE, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(PARENT_PIPE, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(PARENT_PIPE, fcntl.F_SETFL, fcntl.fcntl(PARENT_PIPE, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([PARENT_PIPE], [], [], 0)[0]:  # it was closed before
        os.kill(os.getpid(), signal.SIGKILL)


def serve(channel: MessageChannel, memory: mmap) -> None:
    """Answer requests, each with the folder relative paths begin at, until the parent is gone."""
    alive = _HeartbeatSender(channel)
    while True:
        try:
            kind, *values = channel.receive()
            if kind in (
                "probe",
                "frames",
            ):  # "room" and "close" may come after a stream's last picture
                folder, path, *values = values
                os.chdir(folder)
                if kind == "probe":
                    channel.send("facts", probe(path, heartbeat=alive))
                else:
                    _stream_frames(channel, memory, alive, path, *values)
        except VideoError as error:
            channel.send("refused", error)
        except (EOFError, ConnectionError):
            return
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            detail = f"{path}: the decoder failed in a way that is not foreseen ({said}); convert the video again, or leave it out"
            channel.send("refused", VideoError("decode", "failed", detail))


class _HeartbeatSender:
    """Tells the parent, at most once a second, that work goes on without an answer."""

    def __init__(self, wire: MessageChannel) -> None:
        self._channel = wire
        self._last_send_time = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last_send_time >= HEARTBEAT_INTERVAL_SECONDS:
            self._last_send_time = now
            self._channel.send("alive")


def _stream_frames(
    wire: MessageChannel,
    memory: mmap,
    alive: _HeartbeatSender,
    path: Path,
    facts: VideoMetadata,
    wanted: np.ndarray,
) -> None:
    """Write the wanted pictures into the ring one after another and announce their numbers, until the last or "close"."""
    slots = view_ring_slots(memory, facts.size)
    room = _SlotCounter(wire, len(slots))
    with open_frames(path, facts, wanted, heartbeat=alive) as reader:
        wire.send("opened", reader.decoder, reader.reason)
        ready: list[int] = []
        told = 0.0
        try:
            for place, (number, picture) in enumerate(reader.iterate_views()):
                if not room.acquire():
                    break
                slots[place % len(slots)] = picture
                ready.append(number)
                if not room.free_slots or time.monotonic() - told > ANNOUNCE_INTERVAL_SECONDS:
                    wire.send("pictures", ready, reader.decoder, reader.reason)
                    ready, told = [], time.monotonic()
        finally:
            wire.send("pictures", ready, reader.decoder, reader.reason)
        wire.send("end")


class _SlotCounter:
    """Free slots of the ring."""

    def __init__(self, wire: MessageChannel, slots: int) -> None:
        self._channel = wire
        self.free_slots = slots

    def acquire(self) -> bool:
        """Use one slot, stopping this process until there is one; False where the parent closes the stream instead."""
        while True:
            try:
                while True:
                    kind, *given = self._channel.receive(0)
                    if kind == "close":
                        return False
                    self.free_slots += given[0]
            except TimeoutError:
                pass
            if self.free_slots:
                self.free_slots -= 1
                return True
            os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    main()

"""Channel and shared memory between a decoding process and its parent.

Messages are sent over a socket pair. A message is a pickled tuple, prefixed by its length. Its
first element is the message kind.

Frames are not sent as messages. They are stored in a ring of slots in an anonymous memory file
(`memfd`) that both processes map. The file has no name, so nothing remains of it after both
processes have ended. It does not count against `/dev/shm`, which is small in containers. Only
pages that were written occupy memory.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
from typing import Any

import numpy as np

from pipeline.video.container import MAX_PIXELS

LENGTH_PREFIX = struct.Struct("<Q")
READ_BYTES = 1 << 16
"""Largest number of bytes that one call reads from the socket."""
RING_BYTES = 2 * MAX_PIXELS * 3
"""Address space of the ring: two RGB frames of the largest accepted size."""
TARGET_RING_BYTES = 64 << 20
"""Ring memory that a video uses if at least two of its frames fit."""
MAX_RING_SLOTS = 32


class MessageChannel:
    """One end of a socket pair that carries messages.

    EOFError or ConnectionError means that the other process has ended.
    """

    def __init__(self, endpoint: socket.socket) -> None:
        self._socket = endpoint
        self._buffer = bytearray()

    def send(self, kind: str, *values: Any, timeout: float | None = None) -> None:
        """Send one message.

        Args:
            kind: Message kind.
            *values: Picklable content.
            timeout: Seconds until the other process must have accepted the message; None for no
                limit.

        Raises:
            TimeoutError: The other process did not accept the message in time.
        """
        data = pickle.dumps((kind, *values))
        self._socket.settimeout(timeout)
        self._socket.sendall(LENGTH_PREFIX.pack(len(data)) + data)

    def receive(self, timeout: float | None = None) -> tuple[Any, ...]:
        """Return the next message.

        Args:
            timeout: Seconds to wait for data. 0 does not wait; None waits without limit.

        Returns:
            The message: its kind, then its values.

        Raises:
            TimeoutError: No data arrived in time.
            EOFError: The other process has closed its end.
        """
        self._socket.settimeout(timeout)
        message = self._pop_message()
        while message is None:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                raise TimeoutError from None
            if not data:
                raise EOFError
            self._buffer += data
            message = self._pop_message()
        return message

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def _pop_message(self) -> tuple[Any, ...] | None:
        """Remove and return the first complete message of the buffer, or None."""
        if len(self._buffer) < LENGTH_PREFIX.size:
            return None

        (length,) = LENGTH_PREFIX.unpack_from(self._buffer)
        end = LENGTH_PREFIX.size + length
        if len(self._buffer) < end:
            return None

        message: tuple[Any, ...] = pickle.loads(bytes(self._buffer[LENGTH_PREFIX.size : end]))
        del self._buffer[:end]
        return message


def create_ring_file() -> int:
    """Create the memory file of a ring.

    Returns:
        A file descriptor. Close it once both processes have mapped it.
    """
    descriptor = os.memfd_create("pictures", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, RING_BYTES)
    return descriptor


def map_ring(descriptor: int) -> mmap.mmap:
    """Map the memory file of a ring into this process.

    Args:
        descriptor: File descriptor of `create_ring_file`.

    Returns:
        The mapped memory, shared with the other process.
    """
    return mmap.mmap(descriptor, RING_BYTES)


def view_ring_slots(memory: mmap.mmap, size: tuple[int, int]) -> np.ndarray:
    """View the ring as an array of frames, without a copy.

    Args:
        memory: Memory of `map_ring`.
        size: (width, height) of the frames in pixels.

    Returns:
        uint8 `[slots, h, w, 3]`. The number of slots fills `TARGET_RING_BYTES`, within 2 and
        `MAX_RING_SLOTS`.

    Raises:
        ValueError: Two frames of this size exceed the ring.
    """
    width, height = size
    frame_bytes = width * height * 3
    num_slots = min(MAX_RING_SLOTS, max(2, TARGET_RING_BYTES // frame_bytes))
    if num_slots * frame_bytes > RING_BYTES:
        raise ValueError(
            f"two frames of {width}x{height} do not fit in the ring; "
            f"frames may have at most {MAX_PIXELS} pixels"
        )

    pixels = np.frombuffer(memory, np.uint8, num_slots * frame_bytes)
    return pixels.reshape(num_slots, height, width, 3)

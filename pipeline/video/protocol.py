"""What the decoder's process and its parent share: messages on a socket pair, and a ring of pictures in memory.

A message is a pickled tuple, its kind first, after its length. Pictures never go through it: they lie in an anonymous
file in memory (`memfd`) that both sides map. It has no name, so no death of either side leaves it behind, and it is not
counted against `/dev/shm`, which containers keep small. Only pages that were written take memory.
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
RING_BYTES = 2 * MAX_PIXELS * 3
TARGET_RING_BYTES = 64 << 20
MAX_RING_SLOTS = 32


class MessageChannel:
    """One end of a socket pair. EOFError or ConnectionError: the other side is gone."""

    def __init__(self, endpoint: socket.socket) -> None:
        self._socket = endpoint
        self._buffer = bytearray()

    def send(self, kind: str, *values: Any, timeout: float | None = None) -> None:
        """Send one message; TimeoutError where the other side does not take it within `limit` seconds."""
        data = pickle.dumps((kind, *values))
        self._socket.settimeout(timeout)
        self._socket.sendall(LENGTH_PREFIX.pack(len(data)) + data)

    def receive(self, timeout: float | None = None) -> tuple[Any, ...]:
        """The next message; TimeoutError where nothing comes for `limit` seconds (0: where none is there)."""
        self._socket.settimeout(timeout)
        while (message := self._pop_message()) is None:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                raise TimeoutError from None
            if not data:
                raise EOFError
            self._buffer += data
        return message

    def close(self) -> None:
        self._socket.close()

    def _pop_message(self) -> tuple[Any, ...] | None:
        """The first whole message that has been read, if there is one."""
        if len(self._buffer) < LENGTH_PREFIX.size:
            return None
        end = LENGTH_PREFIX.size + LENGTH_PREFIX.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return None
        message: tuple[Any, ...] = pickle.loads(bytes(self._buffer[LENGTH_PREFIX.size : end]))
        del self._buffer[:end]
        return message


def create_ring_file() -> int:
    """A descriptor of new memory for a ring (close it once both sides have mapped it)."""
    descriptor = os.memfd_create("pictures", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, RING_BYTES)
    return descriptor


def map_ring(descriptor: int) -> mmap.mmap:
    return mmap.mmap(descriptor, RING_BYTES)


def view_ring_slots(memory: mmap.mmap, size: tuple[int, int]) -> np.ndarray:
    """The ring as pictures `[slots, h, w, 3]` uint8 of `size` (width, height): as many as 64 MiB hold, at least 2, at most 32."""
    width, height = size
    each = width * height * 3
    slots = min(MAX_RING_SLOTS, max(2, TARGET_RING_BYTES // each))
    if slots * each > RING_BYTES:
        raise ValueError(
            f"pictures of {width}x{height} do not fit the ring twice; at most {MAX_PIXELS} pixels do"
        )
    return np.frombuffer(memory, np.uint8, slots * each).reshape(slots, height, width, 3)

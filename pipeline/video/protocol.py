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

LENGTH = struct.Struct("<Q")
READ_BYTES = 1 << 16
RING_BYTES = 2 * MAX_PIXELS * 3
USED_BYTES = 64 << 20
PICTURES = 32


class Wire:
    """One end of a socket pair. EOFError or ConnectionError: the other side is gone."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._bytes = bytearray()

    def send(self, kind: str, *values: Any, limit: float | None = None) -> None:
        """Send one message; TimeoutError where the other side does not take it within `limit` seconds."""
        data = pickle.dumps((kind, *values))
        self._end.settimeout(limit)
        self._end.sendall(LENGTH.pack(len(data)) + data)

    def receive(self, limit: float | None = None) -> tuple[Any, ...]:
        """The next message; TimeoutError where nothing comes for `limit` seconds (0: where none is there)."""
        self._end.settimeout(limit)
        while (message := self._next()) is None:
            try:
                data = self._end.recv(READ_BYTES)
            except BlockingIOError:
                raise TimeoutError from None
            if not data:
                raise EOFError
            self._bytes += data
        return message

    def close(self) -> None:
        self._end.close()

    def _next(self) -> tuple[Any, ...] | None:
        """The first whole message that has been read, if there is one."""
        if len(self._bytes) < LENGTH.size:
            return None
        end = LENGTH.size + LENGTH.unpack_from(self._bytes)[0]
        if len(self._bytes) < end:
            return None
        message: tuple[Any, ...] = pickle.loads(bytes(self._bytes[LENGTH.size : end]))
        del self._bytes[:end]
        return message


def ring_file() -> int:
    """A descriptor of new memory for a ring (close it once both sides have mapped it)."""
    descriptor = os.memfd_create("pictures", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, RING_BYTES)
    return descriptor


def ring_map(descriptor: int) -> mmap.mmap:
    return mmap.mmap(descriptor, RING_BYTES)


def ring_pictures(memory: mmap.mmap, size: tuple[int, int]) -> np.ndarray:
    """The ring as pictures `[slots, h, w, 3]` uint8 of `size` (width, height): as many as 64 MiB hold, at least 2, at most 32."""
    width, height = size
    each = width * height * 3
    slots = min(PICTURES, max(2, USED_BYTES // each))
    if slots * each > RING_BYTES:
        raise ValueError(f"pictures of {width}x{height} do not fit the ring twice; at most {MAX_PIXELS} pixels do")
    return np.frombuffer(memory, np.uint8, slots * each).reshape(slots, height, width, 3)

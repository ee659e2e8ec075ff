"""Memory for large results, used again once nobody holds it: the system takes as long to hand out fresh pages as to fill them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress

import numpy as np

SMALL = 256 << 10  # bytes; what is smaller, NumPy allocates as fast
IDLE = 128 << 20  # bytes that may wait for use
Allocate = Callable[[int], np.ndarray]
"""From a number of bytes to as many, uint8."""


def fresh(size: int) -> np.ndarray:
    """From NumPy, as ever."""
    return np.empty(size, np.uint8)


class Recycler:
    """Gives arrays like `np.empty`; the memory of those that are gone, with all views of them, is given again. What is large comes from
    `allocate` at first."""

    def __init__(self, allocate: Allocate = fresh) -> None:
        self._allocate = allocate
        self._idle: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64))
        size = count * dtype.itemsize
        if size < SMALL:
            return np.empty(shape, dtype)
        block = self._take(size)
        # A view keeps this array alive: NumPy looks for its owner no further than a memoryview. The array keeps the block.
        array = np.frombuffer(block.data, dtype, count)
        weakref.finalize(array, self._give_back, block).atexit = False
        return array.reshape(shape)

    def _take(self, size: int) -> np.ndarray:
        """A block of at least `size` bytes, and less than twice as many."""
        for _ in range(len(self._idle)):
            try:
                block = self._idle.pop(0)
            except IndexError:  # another thread was quicker
                break
            if size <= block.nbytes < 2 * size:
                return block
            self._idle.append(block)
        return self._allocate(size)

    def _give_back(self, block: np.ndarray) -> None:
        """Runs wherever the last view goes, in any thread and after a fork: so without a lock."""
        self._idle.append(block)
        while sum(idle.nbytes for idle in list(self._idle)) > IDLE:
            with suppress(IndexError):
                self._idle.pop(0)

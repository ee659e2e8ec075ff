"""Memory for large results, used again once nobody holds it: the system takes as long to hand out fresh pages as to fill them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress

import numpy as np

MIN_POOLED_BYTES = 256 << 10  # bytes; what is smaller, NumPy allocates as fast
MAX_IDLE_BYTES = 128 << 20  # bytes that may wait for use
Allocator = Callable[[int], np.ndarray]
"""From a number of bytes to as many, uint8."""


def allocate_numpy(size: int) -> np.ndarray:
    """From NumPy, as ever."""
    return np.empty(size, np.uint8)


class BufferPool:
    """Gives arrays like `np.empty`; the memory of those that are gone, with all views of them, is given again. What is large comes from
    `allocate` at first.
    """

    def __init__(self, allocate: Allocator = allocate_numpy) -> None:
        self._allocate = allocate
        self._idle_blocks: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64))
        size = count * dtype.itemsize
        if size < MIN_POOLED_BYTES:
            return np.empty(shape, dtype)
        block = self._acquire_block(size)
        # A view keeps this array alive: NumPy looks for its owner no further than a memoryview. The array keeps the block.
        array = np.frombuffer(block.data, dtype, count)
        weakref.finalize(array, self._release_block, block).atexit = False
        return array.reshape(shape)

    def _acquire_block(self, size: int) -> np.ndarray:
        """A block of at least `size` bytes, and less than twice as many."""
        for _ in range(len(self._idle_blocks)):
            try:
                block = self._idle_blocks.pop(0)
            except IndexError:  # another thread was quicker
                break
            if size <= block.nbytes < 2 * size:
                return block
            self._idle_blocks.append(block)
        return self._allocate(size)

    def _release_block(self, block: np.ndarray) -> None:
        """Runs wherever the last view goes, in any thread and after a fork: so without a lock."""
        self._idle_blocks.append(block)
        while sum(idle.nbytes for idle in list(self._idle_blocks)) > MAX_IDLE_BYTES:
            with suppress(IndexError):
                self._idle_blocks.pop(0)

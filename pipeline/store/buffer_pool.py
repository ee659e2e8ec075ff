"""A pool of large buffers for read results.

Large buffers are reused after their last view is gone: the kernel takes as long to hand out
fresh pages as a read takes to fill them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress

import numpy as np

MIN_POOLED_BYTES = 256 << 10
"""Bytes of the smallest pooled buffer; NumPy allocates smaller ones just as fast."""
MAX_IDLE_BYTES = 128 << 20
"""Bytes of all idle buffers of a pool."""
Allocator = Callable[[int], np.ndarray]
"""Allocates a number of bytes as a uint8 array."""


def allocate_numpy(size: int) -> np.ndarray:
    """Allocate ordinary host memory.

    Args:
        size: Number of bytes.

    Returns:
        uint8 `[size]`, uninitialized.
    """
    return np.empty(size, np.uint8)


class BufferPool:
    """Arrays like those of `np.empty`, in memory that is reused.

    The memory of an array returns to the pool when the array and all its views are gone.

    Args:
        allocate: Allocator of new large blocks.
    """

    def __init__(self, allocate: Allocator = allocate_numpy) -> None:
        self._allocate = allocate
        self._idle_blocks: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an uninitialized array.

        Args:
            shape: Shape of the array.
            dtype: Element type.

        Returns:
            The array; the pool owns its memory if the array is large.
        """
        count = int(np.prod(shape, dtype=np.int64))
        size = count * dtype.itemsize
        if size < MIN_POOLED_BYTES:
            return np.empty(shape, dtype)

        # Views keep `array` alive, because NumPy follows the owner of memory only up to a
        # memoryview. `array` keeps the block.
        block = self._acquire_block(size)
        array = np.frombuffer(block.data, dtype, count)
        weakref.finalize(array, self._release_block, block).atexit = False
        return array.reshape(shape)

    def _acquire_block(self, size: int) -> np.ndarray:
        """Return a block of at least `size` bytes; an idle one has less than twice as many."""
        # Try each idle block once; blocks of another size go back to the end.
        for _ in range(len(self._idle_blocks)):
            try:
                block = self._idle_blocks.pop(0)
            except IndexError:  # another thread took the last idle block
                break
            if size <= block.nbytes < 2 * size:
                return block
            self._idle_blocks.append(block)
        return self._allocate(size)

    def _release_block(self, block: np.ndarray) -> None:
        """Return a block to the pool and trim the pool, without a lock.

        The method runs where the last view is deleted: in any thread, and after a fork.
        """
        self._idle_blocks.append(block)
        while sum(idle.nbytes for idle in list(self._idle_blocks)) > MAX_IDLE_BYTES:
            with suppress(IndexError):
                self._idle_blocks.pop(0)

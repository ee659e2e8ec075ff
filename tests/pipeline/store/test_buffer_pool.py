"""Memory is given again once nobody can see it, never before."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.store.buffer_pool import MAX_IDLE_BYTES, MIN_POOLED_BYTES, BufferPool

HALF = np.dtype(np.float16)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_what_is_gone_is_given_again() -> None:
    memory = BufferPool()
    first = memory.empty((MIN_POOLED_BYTES, 2), HALF)
    assert (first.shape, first.dtype, first.flags.writeable, first.flags.c_contiguous) == (
        (MIN_POOLED_BYTES, 2),
        HALF,
        True,
        True,
    )
    place = address(first)
    other = memory.empty((MIN_POOLED_BYTES, 2), HALF)
    assert address(other) != place
    del first
    assert address(memory.empty((2, MIN_POOLED_BYTES - 5), np.dtype(np.uint16))) == place
    assert address(memory.empty((MIN_POOLED_BYTES // 2,), HALF)) != place  # too large for it


def test_a_view_keeps_it() -> None:
    memory = BufferPool()
    for keep in (
        lambda array: array[3:5].T,
        torch.from_numpy,
        lambda array: memoryview(array),
        lambda array: array.view(np.uint8)[..., :1],
    ):
        array = memory.empty((MIN_POOLED_BYTES, 2), HALF)
        place, kept = address(array), keep(array)
        del array
        fresh = memory.empty((MIN_POOLED_BYTES, 2), HALF)
        assert address(fresh) != place
        del kept, fresh
    assert len(memory._idle_blocks) == 2


def test_idle_memory_is_bounded_and_small_results_are_numpys() -> None:
    memory = BufferPool()
    arrays = [memory.empty((8 << 20,), HALF) for _ in range(12)]
    arrays.clear()
    assert sum(block.nbytes for block in memory._idle_blocks) <= MAX_IDLE_BYTES
    assert memory.empty((3, 4), HALF).base is None


def test_what_is_large_comes_from_where_it_is_said_to() -> None:
    asked: list[int] = []

    def allocate(size: int) -> np.ndarray:
        asked.append(size)
        return np.zeros(size, np.uint8)

    memory = BufferPool(allocate)
    memory.empty((MIN_POOLED_BYTES // 4,), HALF)
    assert asked == []
    assert not memory.empty((MIN_POOLED_BYTES, 2), HALF).any()
    memory.empty((MIN_POOLED_BYTES, 2), HALF)  # in the first one's memory
    assert asked == [4 * MIN_POOLED_BYTES]

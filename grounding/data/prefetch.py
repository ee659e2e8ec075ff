"""Ordered prefetching with a thread pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

GPU_READER_THREADS = 4
"""Reader threads for models on a GPU. On a CPU the model runs on the same cores: one thread."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    executor: ThreadPoolExecutor,
    depth: int,
    function: Callable[[Item], Result],
    items: Iterator[Item],
) -> Iterator[Future[Result]]:
    """Apply a function to items in a thread pool, a few items ahead of their use.

    Args:
        executor: The thread pool.
        depth: Number of items that are submitted beyond the one that is yielded.
        function: The function.
        items: The items. No reference to an item is kept after its submission.

    Yields:
        The futures in the order of the items.
    """
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(executor.submit(function, item))
        # An item may hold large arrays: only the pool keeps it alive.
        del item
        if len(pending) > depth:
            yield pending.popleft()

    while pending:
        yield pending.popleft()

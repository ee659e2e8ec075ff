"""Work that is done before its result is asked for, by threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

GPU_READER_THREADS = 4
"""Threads that read for a GPU; a CPU has the network to run meanwhile and gets one."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    executor: ThreadPoolExecutor,
    depth: int,
    function: Callable[[Item], Result],
    items: Iterator[Item],
) -> Iterator[Future[Result]]:
    """The work on each item, in order, with that on the `count` next ones under way. What was given is not held here."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(executor.submit(function, item))
        del item
        if len(waiting) > depth:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()

"""A least-recently-used cache of arrays, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from grounding.data.images import EncodedImages

CachedArray = TypeVar("CachedArray", np.ndarray, EncodedImages, np.ndarray | EncodedImages)


class LRUCache:
    """A cache of arrays, or of encoded images, that drops the least recently used ones.

    Threads may share a cache. If one thread is loading an array, others wait for the result.

    Args:
        max_bytes: Bytes to keep. The last array is kept whatever its size.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.cached_bytes = 0
        self._arrays: OrderedDict[Hashable, Any] = OrderedDict()
        self._pending: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], CachedArray]) -> CachedArray:
        """Return a cached array, or load it.

        Args:
            key: The key of the array.
            load: Loads the array; an error is raised in every thread that waits for it.

        Returns:
            The array.
        """
        # Look for the array, and for a thread that is loading it.
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
            pending = self._pending.get(key)
            if pending is None:
                future = self._pending[key] = Future()
        if pending is not None:
            return pending.result()

        # Load the array outside the lock, so that other keys are not blocked.
        try:
            future.set_result(load())
        except BaseException as error:
            future.set_exception(error)

        # Keep the array; after an error the next caller tries again.
        with self._lock:
            del self._pending[key]
            if future.exception() is None:
                self._store(key, future.result())
        return future.result()

    def _store(self, key: Hashable, array: Any) -> None:
        """Add an array and drop the least recently used ones."""
        self._arrays[key] = array
        self.cached_bytes += array.nbytes
        while self.cached_bytes > self.max_bytes and len(self._arrays) > 1:
            _, dropped = self._arrays.popitem(last=False)
            self.cached_bytes -= dropped.nbytes

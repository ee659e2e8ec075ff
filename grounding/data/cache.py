"""A cache of arrays that were read, bounded in bytes."""

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
    """Arrays (or pictures not decoded yet) read before, the ones used longest ago forgotten first once they take more than `limit` bytes.

    Threads may share it: what one is reading, others wait for.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.cached_bytes = max_bytes, 0
        self._arrays: OrderedDict[Hashable, Any] = OrderedDict()
        self._pending: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], CachedArray]) -> CachedArray:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
            if (coming := self._pending.get(key)) is None:
                own = self._pending[key] = Future()
        if coming is not None:
            return coming.result()
        try:
            own.set_result(load())
        except BaseException as error:
            own.set_exception(error)
        with self._lock:
            del self._pending[key]
            if own.exception() is None:
                self._store(key, own.result())
        return own.result()

    def _store(self, key: Hashable, array: Any) -> None:
        self._arrays[key] = array
        self.cached_bytes += array.nbytes
        while self.cached_bytes > self.max_bytes and len(self._arrays) > 1:
            self.cached_bytes -= self._arrays.popitem(last=False)[1].nbytes

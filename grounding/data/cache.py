"""A cache of arrays that were read, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from grounding.data.images import Jpegs

Held = TypeVar("Held", np.ndarray, Jpegs, np.ndarray | Jpegs)


class _Recent:
    """Arrays (or pictures not decoded yet) read before, the ones used longest ago forgotten first once they take more than `limit` bytes.

    Threads may share it: what one is reading, others wait for.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._arrays: OrderedDict[Hashable, Any] = OrderedDict()
        self._coming: dict[Hashable, Future[Any]] = {}
        self._mutex = threading.Lock()

    def get(self, key: Hashable, read: Callable[[], Held]) -> Held:
        with self._mutex:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
            if (coming := self._coming.get(key)) is None:
                own = self._coming[key] = Future()
        if coming is not None:
            return coming.result()
        try:
            own.set_result(read())
        except BaseException as error:
            own.set_exception(error)
        with self._mutex:
            del self._coming[key]
            if own.exception() is None:
                self._keep(key, own.result())
        return own.result()

    def _keep(self, key: Hashable, array: Any) -> None:
        self._arrays[key] = array
        self.held += array.nbytes
        while self.held > self.limit and len(self._arrays) > 1:
            self.held -= self._arrays.popitem(last=False)[1].nbytes

"""The order of batches: samples grouped by the size of their maps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from grounding.data.dataset import RECENT_BYTES, FeatureSet
from pipeline.records import Query


def steps_per_epoch(count: int, batch: int) -> int:
    """Whole batches in `count` queries; all of them are one batch where there are fewer. The rest sits out this epoch."""
    return count // min(batch, count)


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `count` queries, a function of seed and epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


class Plan:
    """The queries of every global batch: a pure function of queries, the shapes of their features, `batch` and `seed`.

    `sources` `[n]` numbers what each query reads (equal where one read serves both), `weights` `[n]` says how many bytes that
    takes, `sizes` `[n, 2]` are the maps' rows and columns. Where all sources together fit into `memory` bytes and all maps
    are of one size, an epoch is `epoch_order` cut into batches.
    """

    def __init__(
        self, sources: np.ndarray, weights: np.ndarray, sizes: np.ndarray, batch: int, seed: int, memory: int = RECENT_BYTES
    ) -> None:
        self.size, self.seed = min(batch, len(sources)), seed
        self.steps = steps_per_epoch(len(sources), batch)
        _, self._first, self._source = np.unique(sources, return_index=True, return_inverse=True)
        self._weight = np.asarray(weights, np.float64)[self._first]
        self._reach = max(memory, 2 * self.size * self._weight.mean())
        self._bucket = np.unique(sizes, axis=0, return_inverse=True)[1].reshape(-1)

    @classmethod
    def of(cls, features: FeatureSet, queries: Sequence[Query], batch: int, seed: int) -> Plan:
        """The plan of queries of a set of features."""
        known: dict[tuple[str, tuple[int, int]], int] = {}
        sources = [known.setdefault((query.video, query.segment), len(known)) for query in queries]
        sizes = [features.map_size(query) for query in queries]
        return cls(np.array(sources), np.array([features.bytes_of(query) for query in queries]), np.array(sizes), batch, seed)

    def batches(self, start: int) -> Iterator[np.ndarray]:
        """The numbers `[size]` of the queries of batch `start` and of all after it, endlessly."""
        epoch, place = divmod(start, self.steps)
        while True:
            yield from self.epoch(epoch)[place:]
            epoch, place = epoch + 1, 0

    def epoch(self, epoch: int) -> np.ndarray:
        """Its batches, `[steps, size]` numbers of queries, each at most once."""
        order = self._windowed(epoch_order(len(self._source), self.seed, epoch))
        return self._bucketed(order[: self.steps * self.size], np.random.default_rng([self.seed, epoch, 1]))

    def _windowed(self, order: np.ndarray) -> np.ndarray:
        """The order, of sources that fit into memory together first, then of the next such window of sources, …"""
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        turns = np.argsort(place[self._first])  # a source's turn is that of one of its queries: no matter how many it has
        window = np.empty_like(turns)
        window[turns] = (np.cumsum(self._weight[turns]) - self._weight[turns]) // self._reach
        return np.lexsort((place, window[self._source]))

    def _bucketed(self, order: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Cut into batches of maps of one size, in the order in which they fill up; what is left over is mixed, at random places."""
        filling: defaultdict[int, list[int]] = defaultdict(list)
        full: list[list[int]] = []
        for number, bucket in zip(order.tolist(), self._bucket[order].tolist(), strict=True):
            filling[bucket].append(number)
            if len(filling[bucket]) == self.size:
                full.append(filling.pop(bucket))
        left = [number for bucket in sorted(filling) for number in filling[bucket]]
        for begin in range(0, len(left), self.size):
            full.insert(int(random.integers(len(full) + 1)), left[begin : begin + self.size])
        return np.array(full)

"""The order of batches: samples grouped by the size of their maps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from grounding.data.dataset import CACHE_BYTES, GroundingDataset
from pipeline.records import Query


def compute_steps_per_epoch(num_queries: int, batch_size: int) -> int:
    """Whole batches in `count` queries; all of them are one batch where there are fewer. The rest sits out this epoch."""
    return num_queries // min(batch_size, num_queries)


def shuffle_epoch(num_queries: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `count` queries, a function of seed and epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_queries)


class BucketBatchSampler:
    """The queries of every global batch: a pure function of queries, the shapes of their features, `batch` and `seed`.

    `sources` `[n]` numbers what each query reads (equal where one read serves both), `weights` `[n]` says how many bytes that
    takes, `sizes` `[n, 2]` are the maps' rows and columns. Where all sources together fit into `memory` bytes and all maps
    are of one size, an epoch is `shuffle_epoch` cut into batches.
    """

    def __init__(
        self,
        source_ids: np.ndarray,
        query_bytes: np.ndarray,
        map_sizes: np.ndarray,
        batch_size: int,
        seed: int,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.batch_size, self.seed = min(batch_size, len(source_ids)), seed
        self.steps_per_epoch = compute_steps_per_epoch(len(source_ids), batch_size)
        _, self._first_query, self._source_index = np.unique(
            source_ids, return_index=True, return_inverse=True
        )
        self._source_bytes = np.asarray(query_bytes, np.float64)[self._first_query]
        self._window_bytes = max(cache_bytes, 2 * self.batch_size * self._source_bytes.mean())
        self._bucket_index = np.unique(map_sizes, axis=0, return_inverse=True)[1].reshape(-1)

    @classmethod
    def from_dataset(
        cls, dataset: GroundingDataset, queries: Sequence[Query], batch_size: int, seed: int
    ) -> BucketBatchSampler:
        """The plan of queries of a set of features."""
        known: dict[tuple[str, tuple[int, int]], int] = {}
        sources = [known.setdefault((query.video, query.segment), len(known)) for query in queries]
        sizes = [dataset.map_size(query) for query in queries]
        return cls(
            np.array(sources),
            np.array([dataset.nbytes(query) for query in queries]),
            np.array(sizes),
            batch_size,
            seed,
        )

    def iterate_batches(self, start_step: int) -> Iterator[np.ndarray]:
        """The numbers `[size]` of the queries of batch `start` and of all after it, endlessly."""
        epoch, place = divmod(start_step, self.steps_per_epoch)
        while True:
            yield from self.get_epoch_batches(epoch)[place:]
            epoch, place = epoch + 1, 0

    def get_epoch_batches(self, epoch: int) -> np.ndarray:
        """Its batches, `[steps, size]` numbers of queries, each at most once."""
        order = self._group_by_source(shuffle_epoch(len(self._source_index), self.seed, epoch))
        return self._group_by_size(
            order[: self.steps_per_epoch * self.batch_size],
            np.random.default_rng([self.seed, epoch, 1]),
        )

    def _group_by_source(self, order: np.ndarray) -> np.ndarray:
        """The order, of sources that fit into memory together first, then of the next such window of sources, …"""
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        turns = np.argsort(
            place[self._first_query]
        )  # a source's turn is that of one of its queries: no matter how many it has
        window = np.empty_like(turns)
        window[turns] = (
            np.cumsum(self._source_bytes[turns]) - self._source_bytes[turns]
        ) // self._window_bytes
        return np.lexsort((place, window[self._source_index]))

    def _group_by_size(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Cut into batches of maps of one size, in the order in which they fill up; what is left over is mixed, at random places."""
        filling: defaultdict[int, list[int]] = defaultdict(list)
        full: list[list[int]] = []
        for number, bucket in zip(order.tolist(), self._bucket_index[order].tolist(), strict=True):
            filling[bucket].append(number)
            if len(filling[bucket]) == self.batch_size:
                full.append(filling.pop(bucket))
        left = [number for bucket in sorted(filling) for number in filling[bucket]]
        for begin in range(0, len(left), self.batch_size):
            full.insert(int(rng.integers(len(full) + 1)), left[begin : begin + self.batch_size])
        return np.array(full)

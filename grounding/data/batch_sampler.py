"""The order of training batches: shuffled queries, grouped by features and by map size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from grounding.data.dataset import CACHE_BYTES, GroundingDataset
from pipeline.records import Query


def compute_steps_per_epoch(num_queries: int, batch_size: int) -> int:
    """Count the whole batches of an epoch. The remaining queries sit out the epoch.

    Args:
        num_queries: Number of queries.
        batch_size: Queries of a batch. With fewer queries, all of them are one batch.

    Returns:
        The number of batches.
    """
    return num_queries // min(batch_size, num_queries)


def shuffle_epoch(num_queries: int, seed: int, epoch: int) -> np.ndarray:
    """Shuffle the queries of an epoch.

    Args:
        num_queries: Number of queries.
        seed: Seed of training.
        epoch: Index of the epoch.

    Returns:
        [num_queries], a permutation; a function of seed and epoch.
    """
    return np.random.default_rng([seed, epoch]).permutation(num_queries)


class BucketBatchSampler:
    """The queries of each global batch: a function of queries, features, batch size and seed.

    If all features fit into the cache and all maps have one size, an epoch is `shuffle_epoch`
    divided into batches.

    Args:
        source_ids: [n], id of the features that each query reads. Queries with equal ids are
            served by one read.
        query_bytes: [n], size of these features in bytes.
        map_sizes: [n, 2], rows and columns of the maps.
        batch_size: Queries of a global batch.
        seed: Seed of training.
        cache_bytes: Features that are kept in memory, in bytes.

    Attributes:
        batch_size: Queries of a global batch, at most n.
        steps_per_epoch: Batches of an epoch.
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
        self.seed = seed
        self.batch_size = min(batch_size, len(source_ids))
        self.steps_per_epoch = compute_steps_per_epoch(len(source_ids), batch_size)

        # The sources, each with its first query, and the source of each query.
        _, self._first_query, self._source_index = np.unique(
            source_ids, return_index=True, return_inverse=True
        )
        self._source_bytes = np.asarray(query_bytes, np.float64)[self._first_query]

        # A window of sources must hold at least two batches, so that batches stay mixed.
        self._window_bytes = max(cache_bytes, 2 * self.batch_size * self._source_bytes.mean())

        _, bucket_index = np.unique(map_sizes, axis=0, return_inverse=True)
        self._bucket_index = bucket_index.reshape(-1)

    @classmethod
    def from_dataset(
        cls, dataset: GroundingDataset, queries: Sequence[Query], batch_size: int, seed: int
    ) -> BucketBatchSampler:
        """Build the sampler of a dataset.

        Args:
            dataset: The features.
            queries: The queries to sample.
            batch_size: Queries of a global batch.
            seed: Seed of training.

        Returns:
            The sampler.
        """
        # Queries about one segment of a video read the same features.
        segment_ids: dict[tuple[str, tuple[int, int]], int] = {}
        source_ids = []
        for query in queries:
            segment = (query.video, query.segment)
            source_ids.append(segment_ids.setdefault(segment, len(segment_ids)))

        query_bytes = [dataset.count_bytes(query) for query in queries]
        map_sizes = [dataset.get_map_size(query) for query in queries]
        return cls(
            np.array(source_ids), np.array(query_bytes), np.array(map_sizes), batch_size, seed
        )

    def iterate_batches(self, start_step: int) -> Iterator[np.ndarray]:
        """Iterate over batches endlessly.

        Args:
            start_step: Index of the first batch.

        Yields:
            [batch_size], indices of the queries of a batch.
        """
        epoch, first_batch = divmod(start_step, self.steps_per_epoch)
        while True:
            yield from self.get_epoch_batches(epoch)[first_batch:]
            epoch += 1
            first_batch = 0

    def get_epoch_batches(self, epoch: int) -> np.ndarray:
        """Compute the batches of an epoch.

        Args:
            epoch: Index of the epoch.

        Returns:
            [steps, batch_size], indices of queries, each at most once.
        """
        shuffled = shuffle_epoch(len(self._source_index), self.seed, epoch)
        order = self._group_by_source(shuffled)

        # The queries after the last whole batch sit out this epoch.
        num_sampled = self.steps_per_epoch * self.batch_size
        rng = np.random.default_rng([self.seed, epoch, 1])
        return self._group_by_size(order[:num_sampled], rng)

    def _group_by_source(self, order: np.ndarray) -> np.ndarray:
        """Reorder queries by windows of sources that fit into memory together."""
        position = np.empty_like(order)
        position[order] = np.arange(len(order))

        # Sources are ordered by their first query, however many queries they have.
        source_order = np.argsort(position[self._first_query])

        # A source belongs to the window that its first byte falls into.
        ordered_bytes = self._source_bytes[source_order]
        first_bytes = np.cumsum(ordered_bytes) - ordered_bytes
        window = np.empty_like(source_order)
        window[source_order] = first_bytes // self._window_bytes
        return np.lexsort((position, window[self._source_index]))

    def _group_by_size(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Divide queries into batches of one map size; mix the rest, at random positions."""
        # Fill a batch per map size, in the order of the queries.
        filling: defaultdict[int, list[int]] = defaultdict(list)
        batches: list[list[int]] = []
        buckets = self._bucket_index[order].tolist()
        for query_index, bucket in zip(order.tolist(), buckets, strict=True):
            filling[bucket].append(query_index)
            if len(filling[bucket]) == self.batch_size:
                batches.append(filling.pop(bucket))

        # Combine the rest of all sizes into mixed batches.
        remaining = []
        for bucket in sorted(filling):
            remaining += filling[bucket]
        for begin in range(0, len(remaining), self.batch_size):
            position = int(rng.integers(len(batches) + 1))
            batches.insert(position, remaining[begin : begin + self.batch_size])
        return np.array(batches)

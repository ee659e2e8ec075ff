"""The training data loader: batches in an order fixed by data and seed, prefetched by threads.

Each epoch shuffles the queries, and then groups them in two ways as far as possible. Queries with
the same features (video and segment) come close together, so that one read serves them. Queries
with maps of one size share a batch, so that the batch needs little padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch

from grounding.data.batch_sampler import BucketBatchSampler
from grounding.data.collate import collate, join_targets, to_device
from grounding.data.dataset import CPU, GroundingDataset
from grounding.data.prefetch import GPU_READER_THREADS, prefetch
from grounding.data.sample import Sample
from grounding.structures.inputs import ModelInputs
from grounding.structures.targets import Targets
from pipeline.errors import InputError
from pipeline.records import Query

SampleTransform = Callable[[Sample, Targets, int, int], tuple[Sample, Targets]]
"""From (sample, targets, epoch, index of the query) to the sample and targets of this epoch."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of a training step.

    Attributes:
        inputs: The model's inputs.
        targets: The ground truth.
        query_ids: Ids of the queries, in the order of the batch.
    """

    inputs: ModelInputs
    targets: Targets
    query_ids: list[str]


class Loader:
    """Endless iterator over the micro-batches of this process, one list per training step.

    Each global batch is divided into equal parts, over ranks and then over accumulation steps. The
    parts together are the same for any division. Threads prepare a few steps ahead, in exact order,
    inside the `with` block. Their errors are raised in the iteration.

    Args:
        dataset: The features.
        queries: The queries to train on.
        batch_size: Queries of a global batch.
        seed: Seed of the order.
        start_step: Index of the first training step.
        rank: Index of this process.
        world_size: Number of processes.
        accumulation_steps: Micro-batches of each process in a step.
        device: The device of the model.
        transforms: Random changes of samples, applied one after the other.

    Raises:
        InputError: If the batch cannot be divided into equal parts.
    """

    def __init__(  # noqa: PLR0913
        self,
        dataset: GroundingDataset,
        queries: Sequence[Query],
        batch_size: int,
        seed: int,
        start_step: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation_steps: int = 1,
        device: torch.device = CPU,
        transforms: Sequence[SampleTransform] = (),
    ) -> None:
        self.dataset = dataset
        self.queries = queries
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size
        self.accumulation_steps = accumulation_steps
        self._transforms = transforms
        self._batch_sampler = BucketBatchSampler.from_dataset(dataset, queries, batch_size, seed)

        # Threads have a current GPU of their own, so the GPU's index must be known.
        self._on_gpu = device.type == "cuda"
        needs_index = self._on_gpu and device.index is None
        self.device = torch.device("cuda", torch.cuda.current_device()) if needs_index else device
        self._num_readers = GPU_READER_THREADS if self._on_gpu else 1

        actual_batch_size = self._batch_sampler.batch_size
        if actual_batch_size % (world_size * accumulation_steps):
            raise InputError(
                f"a batch of {actual_batch_size} queries cannot be cut into {world_size} processes"
                f" × {accumulation_steps} accumulated parts: choose a batch that is a multiple of"
                " both (and not larger than the train split)"
            )

    def __enter__(self) -> Loader:
        init_thread = None
        if self._on_gpu:
            init_thread = partial(torch.cuda.set_device, self.device)
            # One stream for all batches, so that the memory of one batch is reused for the next.
            self._transfer_stream = torch.cuda.Stream(self.device)

        self._reader_pool = ThreadPoolExecutor(self._num_readers, "loader", init_thread)
        self._transfer_pool = ThreadPoolExecutor(1, "loader-sends", init_thread)
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._reader_pool, self._transfer_pool):
            pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[list[Batch]]:
        index_batches = self._batch_sampler.iterate_batches(self.start_step)
        loaded = prefetch(
            self._reader_pool,
            self._num_readers,
            self._load_step,
            enumerate(index_batches, self.start_step),
        )
        if not self._on_gpu:
            for future in loaded:
                yield future.result()
            return

        for copied in prefetch(self._transfer_pool, 1, self._copy_to_device, loaded):
            batches = copied.result()
            _record_stream(batches, torch.cuda.current_stream(self.device))
            yield batches

    def _load_step(self, step_and_indices: tuple[int, np.ndarray]) -> list[Batch]:
        """Return this process's micro-batches of a step, in host memory."""
        step, query_indices = step_and_indices
        epoch = step // self._batch_sampler.steps_per_epoch
        parts = query_indices.reshape(self.world_size, self.accumulation_steps, -1)
        return [self._load_batch(part.tolist(), epoch) for part in parts[self.rank]]

    def _load_batch(self, query_indices: Sequence[int], epoch: int) -> Batch:
        """Load, transform and collate the samples of one micro-batch."""
        samples = [self.dataset.load_sample(self.queries[index]) for index in query_indices]
        targets = [self.dataset.load_targets(sample) for sample in samples]

        for transform in self._transforms:
            for slot, index in enumerate(query_indices):
                samples[slot], targets[slot] = transform(samples[slot], targets[slot], epoch, index)

        inputs = collate(samples, defer=self._on_gpu, deduplicate=self.dataset.reads_images)
        query_ids = [sample.query.id for sample in samples]
        return Batch(inputs, join_targets(targets), query_ids)

    def _copy_to_device(self, future: Future[list[Batch]]) -> list[Batch]:
        """Copy micro-batches to the GPU, where images are decoded, beside the GPU's work.

        The host memory of features is reused once nothing refers to it. So the batches in host
        memory are kept until their copies have ended.
        """
        host_batches = future.result()
        device_batches = []
        with torch.cuda.stream(self._transfer_stream):
            for batch in host_batches:
                inputs = to_device(batch.inputs, self.device)
                targets = to_device(batch.targets, self.device)
                device_batches.append(Batch(inputs, targets, batch.query_ids))

        self._transfer_stream.synchronize()
        return device_batches


def _record_stream(batches: list[Batch], stream: torch.cuda.Stream) -> None:
    """Record the compute stream on tensors that the transfer stream copied.

    The caching allocator would otherwise reuse their memory too early.
    """
    for batch in batches:
        for part in (batch.inputs, batch.targets):
            for field in fields(part):
                tensor = getattr(part, field.name)
                if tensor is not None:
                    tensor.record_stream(stream)

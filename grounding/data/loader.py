"""Batches for training: in an order that is a function of data and seed alone, and made ahead of their use.

Each epoch takes the queries in a random order, with two things brought together as far as that goes: queries that need
the same features (same video and segment), so that one read serves them, and maps of one size, so that a batch pads little.
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
"""A sample and what is true of it, an epoch, and the query's place among all → the same as they are in that epoch."""


@dataclass(frozen=True)
class Batch:
    """One process' part of a step, on the device."""

    inputs: ModelInputs
    targets: Targets
    query_ids: list[str]


class Loader:
    """This process' parts of every global batch from step `start` on, one list of `accumulate` batches per step, endlessly.

    Process `rank` of `world` gets equal parts of each batch; all parts together are the same for any `world` and `accumulate`.
    Batches are made by threads that live inside the `with` block, in exact order and a few ahead; what goes wrong
    there is raised here. `changes`, one after the other, change the samples of an epoch. An InputError where `batch` cannot be cut
    into equal parts.
    """

    def __init__(
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
        self.dataset, self.queries, self.start_step, self._transforms = (
            dataset,
            queries,
            start_step,
            transforms,
        )
        self.rank, self.world_size, self.accumulation_steps = rank, world_size, accumulation_steps
        self._batch_sampler = BucketBatchSampler.from_dataset(dataset, queries, batch_size, seed)
        self._on_gpu = device.type == "cuda"
        self.device = (
            torch.device("cuda", torch.cuda.current_device())
            if self._on_gpu and device.index is None
            else device
        )
        self._num_readers = GPU_READER_THREADS if self._on_gpu else 1
        if self._batch_sampler.batch_size % (world_size * accumulation_steps):
            raise InputError(
                f"a batch of {self._batch_sampler.batch_size} queries cannot be cut into {world_size} processes × {accumulation_steps} accumulated parts: "
                "choose a batch that is a multiple of both (and not larger than the train split)"
            )

    def __enter__(self) -> Loader:
        prepare = partial(torch.cuda.set_device, self.device) if self._on_gpu else None
        if self._on_gpu:  # one for all batches: memory that one has left is the next one's
            self._transfer_stream = torch.cuda.Stream(self.device)
        self._reader_pool, self._transfer_pool = (
            ThreadPoolExecutor(self._num_readers, "loader", prepare),
            ThreadPoolExecutor(1, "loader-sends", prepare),
        )
        return self

    def __exit__(self, *_: object) -> None:
        for threads in (self._reader_pool, self._transfer_pool):
            threads.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[list[Batch]]:
        made = prefetch(
            self._reader_pool,
            self._num_readers,
            self._load_step,
            enumerate(self._batch_sampler.iterate_batches(self.start_step), self.start_step),
        )
        if not self._on_gpu:
            for step in made:
                yield step.result()
            return
        for sent in prefetch(self._transfer_pool, 1, self._copy_to_device, made):
            parts = sent.result()
            _record_stream(parts, torch.cuda.current_stream(self.device))
            yield parts

    def _load_step(self, indexed_step: tuple[int, np.ndarray]) -> list[Batch]:
        """This process' parts of a step's global batch, in the machine's memory."""
        own = indexed_step[1].reshape(self.world_size, self.accumulation_steps, -1)[self.rank]
        return [
            self._load_batch(part.tolist(), indexed_step[0] // self._batch_sampler.steps_per_epoch)
            for part in own
        ]

    def _load_batch(self, query_indices: Sequence[int], epoch: int) -> Batch:
        samples = [self.dataset.load_sample(self.queries[number]) for number in query_indices]
        truths = [self.dataset.targets(sample) for sample in samples]
        for change in self._transforms:
            for place, number in enumerate(query_indices):
                samples[place], truths[place] = change(samples[place], truths[place], epoch, number)
        inputs = collate(samples, defer=self._on_gpu, deduplicate=self.dataset.reads_images)
        return Batch(inputs, join_targets(truths), [sample.query.id for sample in samples])

    def _copy_to_device(self, future: Future[list[Batch]]) -> list[Batch]:
        """Copy parts to the GPU, or decode them there, beside its work.

        The features' memory is read into again once nobody holds it: so they are held until they have arrived.
        """
        own = future.result()
        with torch.cuda.stream(self._transfer_stream):
            parts = [
                Batch(
                    to_device(part.inputs, self.device),
                    to_device(part.targets, self.device),
                    part.query_ids,
                )
                for part in own
            ]
        self._transfer_stream.synchronize()
        return parts


def _record_stream(batches: list[Batch], stream: torch.cuda.Stream) -> None:
    """Tell the memory of parts, which came to the GPU on a stream of their own, that this stream computes with it."""
    for part in batches:
        for held in (part.inputs, part.targets):
            for field in fields(held):
                if (own := getattr(held, field.name)) is not None:
                    own.record_stream(stream)

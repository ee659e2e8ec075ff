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

from grounding.data.batch_sampler import Plan
from grounding.data.collate import collate, join_targets, to_device
from grounding.data.dataset import CPU, FeatureSet
from grounding.data.prefetch import READERS, ahead
from grounding.data.sample import Sample
from grounding.structures.inputs import Inputs
from grounding.structures.targets import Targets
from pipeline.errors import InputError
from pipeline.records import Query

Change = Callable[[Sample, Targets, int, int], tuple[Sample, Targets]]
"""A sample and what is true of it, an epoch, and the query's place among all → the same as they are in that epoch."""


@dataclass(frozen=True)
class Batch:
    """One process' part of a step, on the device."""

    inputs: Inputs
    targets: Targets
    ids: list[str]


class Loader:
    """This process' parts of every global batch from step `start` on, one list of `accumulate` batches per step, endlessly.

    Process `rank` of `world` gets equal parts of each batch; all parts together are the same for any `world` and `accumulate`.
    Batches are made by threads that live inside the `with` block, in exact order and a few ahead; what goes wrong
    there is raised here. `changes`, one after the other, change the samples of an epoch. An InputError where `batch` cannot be cut
    into equal parts.
    """

    def __init__(
        self,
        features: FeatureSet,
        queries: Sequence[Query],
        batch: int,
        seed: int,
        start: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        device: torch.device = CPU,
        changes: Sequence[Change] = (),
    ) -> None:
        self.features, self.queries, self.start, self._changes = features, queries, start, changes
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self._plan = Plan.of(features, queries, batch, seed)
        self._on_gpu = device.type == "cuda"
        self.device = torch.device("cuda", torch.cuda.current_device()) if self._on_gpu and device.index is None else device
        self._readers = READERS if self._on_gpu else 1
        if self._plan.size % (world * accumulate):
            raise InputError(
                f"a batch of {self._plan.size} queries cannot be cut into {world} processes × {accumulate} accumulated parts: "
                "choose a batch that is a multiple of both (and not larger than the train split)"
            )

    def __enter__(self) -> Loader:
        prepare = partial(torch.cuda.set_device, self.device) if self._on_gpu else None
        if self._on_gpu:  # one for all batches: memory that one has left is the next one's
            self._stream = torch.cuda.Stream(self.device)
        self._makers, self._sender = ThreadPoolExecutor(self._readers, "loader", prepare), ThreadPoolExecutor(1, "loader-sends", prepare)
        return self

    def __exit__(self, *_: object) -> None:
        for threads in (self._makers, self._sender):
            threads.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[list[Batch]]:
        made = ahead(self._makers, self._readers, self._make, enumerate(self._plan.batches(self.start), self.start))
        if not self._on_gpu:
            for step in made:
                yield step.result()
            return
        for sent in ahead(self._sender, 1, self._send, made):
            parts = sent.result()
            _take_over(parts, torch.cuda.current_stream(self.device))
            yield parts

    def _make(self, step: tuple[int, np.ndarray]) -> list[Batch]:
        """This process' parts of a step's global batch, in the machine's memory."""
        own = step[1].reshape(self.world, self.accumulate, -1)[self.rank]
        return [self._part(part.tolist(), step[0] // self._plan.steps) for part in own]

    def _part(self, numbers: Sequence[int], epoch: int) -> Batch:
        samples = [self.features.sample(self.queries[number]) for number in numbers]
        truths = [self.features.truth(sample) for sample in samples]
        for change in self._changes:
            for place, number in enumerate(numbers):
                samples[place], truths[place] = change(samples[place], truths[place], epoch, number)
        inputs = collate(samples, apart=self._on_gpu, share=self.features.pictures)
        return Batch(inputs, join_targets(truths), [sample.query.id for sample in samples])

    def _send(self, made: Future[list[Batch]]) -> list[Batch]:
        """Copy parts to the GPU, or decode them there, beside its work.

        The features' memory is read into again once nobody holds it: so they are held until they have arrived.
        """
        own = made.result()
        with torch.cuda.stream(self._stream):
            parts = [Batch(to_device(part.inputs, self.device), to_device(part.targets, self.device), part.ids) for part in own]
        self._stream.synchronize()
        return parts


def _take_over(parts: list[Batch], stream: torch.cuda.Stream) -> None:
    """Tell the memory of parts, which came to the GPU on a stream of their own, that this stream computes with it."""
    for part in parts:
        for held in (part.inputs, part.targets):
            for field in fields(held):
                if (own := getattr(held, field.name)) is not None:
                    own.record_stream(stream)

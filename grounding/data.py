"""From the store to batches: one sample per query, padded and masked into the model's inputs and targets.

A sample reads only the rows it needs: `frames` appearance maps, the clips of its segment, its words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grounding.losses import Targets
from grounding.models.csdvl import Inputs
from pipeline import sampling
from pipeline.boxes import interpolate, xyxy_to_cxcywh
from pipeline.encoders.geometry import picture_in_square
from pipeline.errors import InputError, StoreError
from pipeline.records import Query, Tracks, read_jsonl
from pipeline.store import Store


@dataclass(frozen=True)
class Sample:
    """One query, not yet padded. Arrays are float32 unless said otherwise."""

    query: Query
    numbers: np.ndarray
    """`[T_s]` int: the frames that were taken."""
    appearance: np.ndarray
    """`[T_s, H, W, C]`."""
    tau: np.ndarray
    """`[T_s]` the frames' places in the segment."""
    motion: np.ndarray
    """`[T_d, h, w, C]`."""
    square: np.ndarray
    """`[4]` where the picture lies in the motion square."""
    text: np.ndarray
    """`[L, C]`."""


class FeatureSet:
    """The queries of one split of a store, as samples of `frames` frames and `clips` clips.

    Queries whose video or words are not in the store are left out and named in `missing`.
    """

    def __init__(self, store: Path, split: str, frames: int, clips: int) -> None:
        opened = Store(store)
        self.frames, self.clips = frames, clips
        self.appearance, self.motion, self.text = (opened.open(name) for name in ("appearance", "motion", "text"))
        queries = [query for query in read_jsonl(opened.index_path, Query) if query.split == split]
        there = [q for q in queries if q.video in self.appearance and q.video in self.motion and q.id in self.text]
        self.queries, self.missing = there, sorted({q.id for q in queries} - {q.id for q in there})
        if not there:
            raise StoreError(f"store {store} has no features for any query of split {split!r}: run stvg-extract, or look into failures.jsonl")
        boxed = any(query.truth is not None and query.truth.track is not None for query in there)
        self.tracks = Tracks.load(opened.tracks_path) if boxed else Tracks()

    @property
    def dims(self) -> tuple[int, int, int]:
        """Channels of (appearance, motion, text)."""
        query = self.queries[0]
        readers = ((self.appearance, query.video), (self.motion, query.video), (self.text, query.id))
        widths = [reader.shape(key)[-1] for reader, key in readers]
        return widths[0], widths[1], widths[2]

    def sample(self, query: Query, rows: np.ndarray | None = None) -> Sample:
        """One query's features; `rows` choose among its stored frames (training's bin centres by default)."""
        stored = self.appearance.columns(query.video)["frame"]
        own = self.rows_of(query, stored)
        chosen = own[sampling.bin_centres(len(own), self.frames)] if rows is None else rows
        numbers = stored[chosen]
        return Sample(
            query=query,
            numbers=numbers,
            appearance=self.appearance.read(query.video, chosen).astype(np.float32),
            tau=np.clip(sampling.place_of(numbers, query.segment), 0, 1 - 1e-6).astype(np.float32),
            motion=self._motion(query),
            square=np.array(picture_in_square(tuple(self.motion.facts(query.video)["size"])), np.float32),
            text=self.text.read(query.id).astype(np.float32),
        )

    def passes(self, query: Query) -> list[Sample]:
        """Test-time samples that together see every stored frame of the segment."""
        own = self.rows_of(query, self.appearance.columns(query.video)["frame"])
        first = self.sample(query, own[:1])
        samples = []
        for places in sampling.passes(len(own), self.frames):
            part = self.sample_frames(query, own[places])
            samples.append(replace(first, **part))
        return samples

    def sample_frames(self, query: Query, rows: np.ndarray) -> dict[str, Any]:
        """Only what differs from pass to pass: the frames."""
        numbers = self.appearance.columns(query.video)["frame"][rows]
        tau = np.clip(sampling.place_of(numbers, query.segment), 0, 1 - 1e-6).astype(np.float32)
        return {"numbers": numbers, "appearance": self.appearance.read(query.video, rows).astype(np.float32), "tau": tau}

    def rows_of(self, query: Query, stored: np.ndarray) -> np.ndarray:
        """Rows of a query's stored frames inside its segment; the nearest one where the grid skips a short segment."""
        begin, end = query.segment
        inside = np.flatnonzero((stored >= begin) & (stored < end))
        return inside if len(inside) else np.array([np.abs(stored - (begin + end) / 2).argmin()])

    def _motion(self, query: Query) -> np.ndarray:
        """The segment's clips brought to T_d by 2D-TAN's rule, `[T_d, h, w, C]`."""
        own = self.rows_of(query, self.motion.columns(query.video)["frame"])
        clips = self.motion.read(query.video, own).astype(np.float32)
        return np.stack([clips[begin:end].mean(0) for begin, end in sampling.pool_bins(len(own), self.clips)])

    def truth(self, sample: Sample) -> Targets:
        """What is true of a sample, as a batch of one."""
        query = sample.query
        if query.truth is None:
            raise InputError(f"query {query.id} has no truth to learn from: keep it out of split {query.split!r}")
        begin, end = query.truth.span
        first, last = query.segment
        span = ((begin - first) / (last - first), (end - first) / (last - first))
        inside = sampling.inside_frames(sample.numbers, query.truth.span)
        boxes, boxed = np.zeros((len(sample.numbers), 4)), np.zeros(len(sample.numbers), bool)
        if query.truth.track is not None:
            frames, track = self.tracks[query.truth.track]
            boxes = xyxy_to_cxcywh(interpolate(frames, track, sample.numbers), query.size)
            boxed = (sample.numbers >= begin) & (sample.numbers < end) & np.isin(sample.numbers, frames)
        return Targets(
            boxes=torch.from_numpy(boxes).float()[None],
            boxed=torch.from_numpy(boxed)[None],
            span=torch.tensor([span]),
            frames=torch.from_numpy(inside).float()[None],
            clips=torch.from_numpy(sampling.inside_clips(span, self.clips)).float()[None],
        )


def collate(samples: Sequence[Sample]) -> Inputs:
    """Pad maps to the batch's largest and words to its longest; masks and sizes say what is real."""
    size = torch.tensor([sample.appearance.shape[1:3] for sample in samples])
    length = max(len(sample.text) for sample in samples)
    mask = torch.tensor([[i < len(sample.text) for i in range(length)] for sample in samples])
    return Inputs(
        appearance=_padded([sample.appearance for sample in samples]),
        map_size=size,
        frame_tau=torch.from_numpy(np.stack([sample.tau for sample in samples])),
        motion=torch.from_numpy(np.stack([sample.motion for sample in samples])),
        square=torch.from_numpy(np.stack([sample.square for sample in samples])),
        text=_padded([sample.text for sample in samples]),
        text_mask=mask,
    )


def join_targets(targets: Sequence[Targets]) -> Targets:
    """Batches of one, joined."""
    return Targets(*(torch.cat([getattr(target, field.name) for target in targets]) for field in fields(Targets)))


def _padded(arrays: Sequence[np.ndarray]) -> Tensor:
    """Stack arrays of one rank, zero-padded to the largest along every axis."""
    shape = np.max([array.shape for array in arrays], 0)
    result = np.zeros((len(arrays), *shape), arrays[0].dtype)
    for place, array in zip(result, arrays, strict=True):
        place[tuple(slice(side) for side in array.shape)] = array
    return torch.from_numpy(result)


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of queries in an epoch: a function of seed and epoch, so that a resumed run sees what it would have."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batches(count: int, size: int, seed: int, start: int) -> Iterator[np.ndarray]:
    """Endless batches of query numbers from batch `start` on; an epoch's incomplete last batch is dropped."""
    size = min(size, count)
    per_epoch = count // size
    step = start
    while True:
        epoch, place = divmod(step, per_epoch)
        yield epoch_order(count, seed, epoch)[place * size : (place + 1) * size]
        step += 1


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor of a batch dataclass on the device."""
    return type(batch)(**{field.name: getattr(batch, field.name).to(device, non_blocking=True) for field in fields(batch)})

"""From the store to samples: one per query, with what it is about and what is true of it.

A sample reads only the rows it needs: `frames` appearance maps, the clips of its segment or the motion at those frames, its words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grounding.data.cache import _Recent
from grounding.data.images import Jpegs, decodes
from grounding.data.sample import Sample
from grounding.data.sources import Pictures, Product, Tokenise, Tokens
from grounding.structures.targets import Targets
from pipeline import sampling
from pipeline.boxes import interpolate_boxes, xyxy_to_cxcywh
from pipeline.encoders.image_geometry import picture_in_square
from pipeline.errors import InputError, StoreError
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query
from pipeline.store import Store
from pipeline.store.buffer_pool import Allocator, BufferPool, allocate_numpy
from pipeline.tracks import Tracks

SQUARED = ("motion",)
"""Motion products whose maps are of the padded square."""
WHOLE = (0.0, 0.0, 1.0, 1.0)
CPU = torch.device("cpu")
NO_MOTION = np.zeros((0, 1, 1, 0), np.float16)
"""`[T_d, h, w, C]` of a network that reads no motion."""
RECENT_BYTES = 2 << 30
"""Features kept in memory: many sentences ask about the same video, and a small store fits whole."""


class FeatureSet:
    """Queries and their features, as samples of `frames` frames (T_s) and `clips` clips (T_d); with None for `clips` the motion is
    that at each frame (T_d = T_s). With None for `motion` there is none, and T_d = 0.

    `squared`: motion maps are of the padded square, as SlowFast's; else of the picture, as Video Swin's. Pictures stay JPEGs where
    `device` decodes them itself; what is read for a GPU lies in pinned memory. Queries whose video or words are not among the features
    are left out and named in `missing`. Threads may share it.
    """

    def __init__(
        self,
        queries: Sequence[Query],
        tracks: Tracks,
        appearance: Product,
        motion: Product | None,
        text: Product,
        frames: int,
        clips: int | None,
        squared: bool = True,
        device: torch.device = CPU,
    ) -> None:
        self.appearance, self.motion, self.text = appearance, motion, text
        self._read_maps = appearance.jpegs if isinstance(appearance, Pictures) and decodes(device) else appearance.read
        self.tracks, self.frames, self.clips, self.squared = tracks, frames, clips, squared
        self.pictures = isinstance(appearance, Pictures)
        seen = [product for product in (appearance, motion) if product is not None]
        self.queries = [q for q in queries if all(q.video in product for product in seen) and q.id in text]
        self.missing = sorted({q.id for q in queries} - {q.id for q in self.queries})
        self._recent, self._memory = _Recent(RECENT_BYTES), BufferPool(memory_for(device))

    @classmethod
    def of_store(
        cls,
        path: Path,
        split: str,
        frames: int,
        clips: int | None,
        tokenise: Tokenise | None = None,
        motion: str | None = "motion",
        pictures: bool = False,
        device: torch.device = CPU,
    ) -> FeatureSet:
        """The queries of one split of a store; a StoreError where it has features for none of them.

        With `pictures` these stand in the place of appearance maps; with `tokenise` so do they, and tokens in that of token states.
        `motion` is the product that motion maps come from, None for a network that reads none.
        """
        store, allocate = Store(path), memory_for(device)
        queries = [query for query in read_jsonl(store.index_path, Query) if query.split == split]
        boxed = any(query.truth is not None and query.truth.track is not None for query in queries)
        tracks = Tracks.load(store.tracks_path) if boxed else Tracks()
        appearance: Product = Pictures.of_store(store.open("frames")) if pictures or tokenise else store.open("appearance", allocate)
        text: Product = Tokens(queries, tokenise) if tokenise else store.open("text")
        moving = store.open(motion, allocate) if motion else None
        features = cls(queries, tracks, appearance, moving, text, frames, clips, motion in SQUARED, device)
        if not features.queries:
            raise StoreError(
                f"store {path} has no features for any query of split {split!r}: run stvg-extract, or look into failures.jsonl"
            )
        return features

    @property
    def dims(self) -> tuple[int, int, int]:
        """Channels of (appearance, motion, text); 0 without motion."""
        query = self.queries[0]
        readers = ((self.appearance, query.video), (self.motion, query.video), (self.text, query.id))
        widths = [0 if reader is None else reader.shape(key)[-1] for reader, key in readers]
        return widths[0], widths[1], widths[2]

    def map_size(self, query: Query) -> tuple[int, int]:
        """Rows and columns of a query's appearance maps."""
        _, rows, columns, _ = self.appearance.shape(query.video)
        return rows, columns

    def bytes_of(self, query: Query) -> int:
        """Bytes that a query's appearance and motion take in memory."""
        maps = self.frames * math.prod(self.appearance.shape(query.video)[1:])
        clips = 0 if self.motion is None else (self.clips or self.frames) * math.prod(self.motion.shape(query.video)[1:])
        return 2 * (maps + clips)

    def sample(self, query: Query, rows: np.ndarray | None = None) -> Sample:
        """One query's features; `rows` choose among its stored frames (training's bin centres by default)."""
        stored = self.appearance.columns(query.video)["frame"]
        own = self.rows_of(query, stored)
        chosen = own[sampling.sample_bin_centers(len(own), self.frames)] if rows is None else rows
        numbers = stored[chosen]
        return Sample(
            query=query,
            numbers=numbers,
            appearance=self._maps(query.video, chosen),
            tau=np.clip(sampling.normalized_position(numbers, query.segment), 0, 1 - 1e-6).astype(np.float32),
            motion=self._motion(query, numbers),
            square=np.array(picture_in_square(tuple(self.appearance.facts(query.video)["size"])) if self.squared else WHOLE, np.float32),
            text=self.words(query),
        )

    def words(self, query: Query) -> np.ndarray:
        """Of a query's sentence, `[L, C]`."""
        return self._recent.get(("text", query.id), lambda: self.text.read(query.id))

    def rows_of(self, query: Query, stored: np.ndarray) -> np.ndarray:
        """Rows of a query's stored frames inside its segment; the nearest one where the grid skips a short segment."""
        begin, end = query.segment
        inside = np.flatnonzero((stored >= begin) & (stored < end))
        return inside if len(inside) else np.array([np.abs(stored - (begin + end) / 2).argmin()])

    def _maps(self, video: str, rows: np.ndarray) -> np.ndarray | Jpegs:
        """Appearance maps of stored rows, `[len(rows), H, W, C]` as stored."""
        return self._recent.get(("appearance", video, rows.tobytes()), lambda: self._read_maps(video, rows))

    def _motion(self, query: Query, numbers: np.ndarray) -> np.ndarray:
        """The motion of a query's segment, of clips or at frames `[T_s]`, as stored."""
        if self.motion is None:
            return NO_MOTION
        if self.clips is None:
            return self._motion_at(self.motion, query, numbers)
        return self._clips(self.motion, query, self.clips)

    def _clips(self, motion: Product, query: Query, clips: int) -> np.ndarray:
        """The segment's clips brought to T_d by 2D-TAN's rule, `[T_d, h, w, C]` as stored."""

        def read() -> np.ndarray:
            own = self.rows_of(query, motion.columns(query.video)["frame"])
            return _means(motion.read(query.video, own), sampling.compute_pool_bins(len(own), clips), self._memory)

        return self._recent.get(("motion", query.video, query.segment), read)

    def _motion_at(self, motion: Product, query: Query, numbers: np.ndarray) -> np.ndarray:
        """The motion of the segment at frames `[T_s]`, `[T_s, h, w, C]` as stored: of the row nearest to each."""
        stored = motion.columns(query.video)["frame"]
        own = self.rows_of(query, stored)
        rows = own[sampling.find_nearest_frames(stored[own], numbers)]
        return self._recent.get(("motion", query.video, rows.tobytes()), lambda: motion.read(query.video, rows))

    def truth(self, sample: Sample) -> Targets:
        """What is true of a sample, as a batch of one."""
        query = sample.query
        if query.truth is None:
            raise InputError(f"query {query.id} has no truth to learn from: keep it out of split {query.split!r}")
        begin, end = query.truth.span
        first, last = query.segment
        span = ((begin - first) / (last - first), (end - first) / (last - first))
        inside = sampling.label_frames(sample.numbers, query.truth.span)
        if self.clips is None:
            middles, inside_clips = sample.numbers, inside
        else:
            middles = (first + (np.arange(self.clips) + 0.5) / self.clips * (last - first)).astype(np.int64)
            inside_clips = sampling.label_clips(span, self.clips)
        boxes, boxed = self._boxes(query, np.concatenate([sample.numbers, middles]))
        frames = len(sample.numbers)
        return Targets(
            boxes=boxes[:, :frames],
            boxed=boxed[:, :frames],
            span=torch.tensor([span]),
            frames=torch.from_numpy(inside).float()[None],
            clips=torch.from_numpy(inside_clips).float()[None],
            clip_boxes=boxes[:, frames:],
            clip_boxed=boxed[:, frames:],
        )

    def _boxes(self, query: Query, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """True boxes at frames, `[1, n, 4]` cxcywh, and where there is one inside the span, `[1, n]`."""
        if query.truth is None or query.truth.track is None:
            return torch.zeros(1, len(numbers), 4), torch.zeros(1, len(numbers), dtype=torch.bool)
        begin, end = query.truth.span
        frames, track = self.tracks[query.truth.track]
        boxes = xyxy_to_cxcywh(interpolate_boxes(frames, track, numbers), query.size)
        boxed = (numbers >= begin) & (numbers < end) & np.isin(numbers, frames)
        return torch.from_numpy(boxes).float()[None], torch.from_numpy(boxed)[None]


def _means(rows: np.ndarray, bins: Sequence[tuple[int, int]], memory: BufferPool) -> np.ndarray:
    """The mean of the rows `[begin, end)` of each bin, `[n, …]` → `[bins, …]`, taken in float32; the rows where each is a bin.

    By NumPy, for the reason that `grounding.data.collate.padded` states.
    """
    if list(bins) == [(place, place + 1) for place in range(len(rows))]:
        return rows
    result = memory.empty((len(bins), *rows.shape[1:]), rows.dtype)
    for place, (begin, end) in zip(result, bins, strict=True):
        place[...] = np.add.reduce(rows[begin:end], 0, dtype=np.float32) / (end - begin) if end - begin > 1 else rows[begin]
    return result


def memory_for(device: torch.device) -> Allocator:
    """Where what is read for a device is put: a GPU fetches from pinned memory alone beside its other work."""
    return _pinned if device.type == "cuda" else allocate_numpy


def _pinned(size: int) -> np.ndarray:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()

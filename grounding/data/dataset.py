"""From the store to samples: one per query, with what it is about and what is true of it.

A sample reads only the rows it needs: `frames` appearance maps, the clips of its segment or the motion at those frames, its words.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grounding.data.cache import LRUCache
from grounding.data.images import EncodedImages, can_decode_jpegs
from grounding.data.sample import Sample
from grounding.data.sources import FeatureSource, ImageSource, TokenizeFunction, TokenSource
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

SQUARE_MOTION_PRODUCTS = ("motion",)
"""Motion products whose maps are of the padded square."""
FULL_FRAME = (0.0, 0.0, 1.0, 1.0)
CPU = torch.device("cpu")
EMPTY_MOTION = np.zeros((0, 1, 1, 0), np.float16)
"""`[T_d, h, w, C]` of a network that reads no motion."""
CACHE_BYTES = 2 << 30
"""Features kept in memory: many sentences ask about the same video, and a small store fits whole."""


class GroundingDataset:
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
        appearance: FeatureSource,
        motion: FeatureSource | None,
        text: FeatureSource,
        num_frames: int,
        num_clips: int | None,
        motion_in_square: bool = True,
        device: torch.device = CPU,
    ) -> None:
        self.appearance, self.motion, self.text = appearance, motion, text
        self._read_appearance_rows = (
            appearance.read_encoded
            if isinstance(appearance, ImageSource) and can_decode_jpegs(device)
            else appearance.read
        )
        self.tracks, self.num_frames, self.num_clips, self.motion_in_square = (
            tracks,
            num_frames,
            num_clips,
            motion_in_square,
        )
        self.reads_images = isinstance(appearance, ImageSource)
        self.queries = [query for query in queries if self.has_features(query)]
        self.missing_query_ids = sorted({q.id for q in queries} - {q.id for q in self.queries})
        self._cache, self._buffer_pool = LRUCache(CACHE_BYTES), BufferPool(host_allocator(device))

    @classmethod
    def from_store(
        cls,
        path: Path,
        split: str,
        num_frames: int,
        num_clips: int | None,
        tokenize: TokenizeFunction | None = None,
        motion: str | None = "motion",
        use_images: bool = False,
        device: torch.device = CPU,
        with_truth: bool = False,
    ) -> GroundingDataset:
        """The queries of one split of a store; a StoreError where it has features for none of them.

        With `with_truth` only the queries that have a ground truth, possibly none.

        With `pictures` these stand in the place of appearance maps; with `tokenize` so do they, and tokens in that of token states.
        `motion` is the product that motion maps come from, None for a network that reads none.
        """
        store, allocate = Store(path), host_allocator(device)
        queries = [query for query in read_jsonl(store.index_path, Query) if query.split == split]
        boxed = any(query.truth is not None and query.truth.track is not None for query in queries)
        tracks = Tracks.load(store.tracks_path) if boxed else Tracks()
        appearance: FeatureSource = (
            ImageSource.from_store(store.open("frames"))
            if use_images or tokenize
            else store.open("appearance", allocate)
        )
        text: FeatureSource = TokenSource(queries, tokenize) if tokenize else store.open("text")
        moving = store.open(motion, allocate) if motion else None
        features = cls(
            [query for query in queries if query.truth is not None] if with_truth else queries,
            tracks,
            appearance,
            moving,
            text,
            num_frames,
            num_clips,
            motion in SQUARE_MOTION_PRODUCTS,
            device,
        )
        if not any(features.has_features(query) for query in queries):
            raise StoreError(
                f"store {path} has no features for any query of split {split!r}: run stvg-extract, or look into failures.jsonl"
            )
        return features

    def has_features(self, query: Query) -> bool:
        """Return True if all products hold the query's video, and the text product its sentence."""
        visual = [product for product in (self.appearance, self.motion) if product is not None]
        return all(query.video in product for product in visual) and query.id in self.text

    @property
    def dims(self) -> tuple[int, int, int]:
        """Channels of (appearance, motion, text); 0 without motion."""
        query = self.queries[0]
        readers = (
            (self.appearance, query.video),
            (self.motion, query.video),
            (self.text, query.id),
        )
        widths = [0 if reader is None else reader.shape(key)[-1] for reader, key in readers]
        return widths[0], widths[1], widths[2]

    def map_size(self, query: Query) -> tuple[int, int]:
        """Rows and columns of a query's appearance maps."""
        _, rows, columns, _ = self.appearance.shape(query.video)
        return rows, columns

    def nbytes(self, query: Query) -> int:
        """Bytes that a query's appearance and motion take in memory."""
        maps = self.num_frames * math.prod(self.appearance.shape(query.video)[1:])
        clips = (
            0
            if self.motion is None
            else (self.num_clips or self.num_frames) * math.prod(self.motion.shape(query.video)[1:])
        )
        return 2 * (maps + clips)

    def load_sample(self, query: Query, rows: np.ndarray | None = None) -> Sample:
        """One query's features; `rows` choose among its stored frames (training's bin centres by default)."""
        stored = self.appearance.columns(query.video)["frame"]
        own = self.rows_in_segment(query, stored)
        chosen = (
            own[sampling.sample_bin_centers(len(own), self.num_frames)] if rows is None else rows
        )
        numbers = stored[chosen]
        motion_key, motion = self._load_motion(query, numbers)
        appearance_key = ("appearance", query.video, chosen.tobytes())

        def read_appearance() -> np.ndarray | EncodedImages:
            return self._read_appearance_rows(query.video, chosen)

        return Sample(
            query=query,
            frame_indices=numbers,
            appearance=self._cache.get(appearance_key, read_appearance),
            frame_positions=np.clip(
                sampling.normalized_position(numbers, query.segment), 0, 1 - 1e-6
            ).astype(np.float32),
            motion=motion,
            picture_in_square=np.array(
                picture_in_square(tuple(self.appearance.facts(query.video)["size"]))
                if self.motion_in_square
                else FULL_FRAME,
                np.float32,
            ),
            text=self.text_features(query),
            video_key=(appearance_key, motion_key),
        )

    def text_features(self, query: Query) -> np.ndarray:
        """Of a query's sentence, `[L, C]`."""
        return self._cache.get(("text", query.id), lambda: self.text.read(query.id))

    def rows_in_segment(self, query: Query, stored_frames: np.ndarray) -> np.ndarray:
        """Rows of a query's stored frames inside its segment; the nearest one where the grid skips a short segment."""
        begin, end = query.segment
        inside = np.flatnonzero((stored_frames >= begin) & (stored_frames < end))
        return (
            inside
            if len(inside)
            else np.array([np.abs(stored_frames - (begin + end) / 2).argmin()])
        )

    def _load_motion(self, query: Query, frame_indices: np.ndarray) -> tuple[Hashable, np.ndarray]:
        """Return the cache key and the motion of a query's segment, of clips or at frames `[T_s]`, as stored."""
        if self.motion is None:
            return None, EMPTY_MOTION
        if self.num_clips is None:
            return self._load_motion_at_frames(self.motion, query, frame_indices)
        return self._load_clips(self.motion, query, self.num_clips)

    def _load_clips(
        self, motion: FeatureSource, query: Query, num_clips: int
    ) -> tuple[Hashable, np.ndarray]:
        """The segment's clips brought to T_d by 2D-TAN's rule, `[T_d, h, w, C]` as stored."""

        def read() -> np.ndarray:
            own = self.rows_in_segment(query, motion.columns(query.video)["frame"])
            return _mean_pool_bins(
                motion.read(query.video, own),
                sampling.compute_pool_bins(len(own), num_clips),
                self._buffer_pool,
            )

        key = ("motion", query.video, query.segment)
        return key, self._cache.get(key, read)

    def _load_motion_at_frames(
        self, motion: FeatureSource, query: Query, frame_indices: np.ndarray
    ) -> tuple[Hashable, np.ndarray]:
        """The motion of the segment at frames `[T_s]`, `[T_s, h, w, C]` as stored: of the row nearest to each."""
        stored = motion.columns(query.video)["frame"]
        own = self.rows_in_segment(query, stored)
        rows = own[sampling.find_nearest_frames(stored[own], frame_indices)]
        key = ("motion", query.video, rows.tobytes())
        return key, self._cache.get(key, lambda: motion.read(query.video, rows))

    def targets(self, sample: Sample) -> Targets:
        """What is true of a sample, as a batch of one."""
        query = sample.query
        if query.truth is None:
            raise InputError(
                f"query {query.id} has no truth to learn from: keep it out of split {query.split!r}"
            )
        begin, end = query.truth.span
        first, last = query.segment
        span = ((begin - first) / (last - first), (end - first) / (last - first))
        inside = sampling.label_frames(sample.frame_indices, query.truth.span)
        if self.num_clips is None:
            middles, inside_clips = sample.frame_indices, inside
        else:
            middles = (
                first + (np.arange(self.num_clips) + 0.5) / self.num_clips * (last - first)
            ).astype(np.int64)
            inside_clips = sampling.label_clips(span, self.num_clips)
        boxes, boxed = self._get_target_boxes(
            query, np.concatenate([sample.frame_indices, middles])
        )
        frames = len(sample.frame_indices)
        return Targets(
            boxes=boxes[:, :frames],
            box_mask=boxed[:, :frames],
            span=torch.tensor([span]),
            frame_labels=torch.from_numpy(inside).float()[None],
            clip_labels=torch.from_numpy(inside_clips).float()[None],
            clip_boxes=boxes[:, frames:],
            clip_box_mask=boxed[:, frames:],
        )

    def _get_target_boxes(self, query: Query, frame_indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """True boxes at frames, `[1, n, 4]` cxcywh, and where there is one inside the span, `[1, n]`."""
        if query.truth is None or query.truth.track is None:
            return torch.zeros(1, len(frame_indices), 4), torch.zeros(
                1, len(frame_indices), dtype=torch.bool
            )
        begin, end = query.truth.span
        frames, track = self.tracks[query.truth.track]
        boxes = xyxy_to_cxcywh(interpolate_boxes(frames, track, frame_indices), query.size)
        boxed = (frame_indices >= begin) & (frame_indices < end) & np.isin(frame_indices, frames)
        return torch.from_numpy(boxes).float()[None], torch.from_numpy(boxed)[None]


def _mean_pool_bins(
    rows: np.ndarray, bins: Sequence[tuple[int, int]], buffer_pool: BufferPool
) -> np.ndarray:
    """The mean of the rows `[begin, end)` of each bin, `[n, …]` → `[bins, …]`, taken in float32; the rows where each is a bin.

    By NumPy, for the reason that `grounding.data.collate.padded` states.
    """
    if list(bins) == [(place, place + 1) for place in range(len(rows))]:
        return rows
    result = buffer_pool.empty((len(bins), *rows.shape[1:]), rows.dtype)
    for place, (begin, end) in zip(result, bins, strict=True):
        place[...] = (
            np.add.reduce(rows[begin:end], 0, dtype=np.float32) / (end - begin)
            if end - begin > 1
            else rows[begin]
        )
    return result


def host_allocator(device: torch.device) -> Allocator:
    """Where what is read for a device is put: a GPU fetches from pinned memory alone beside its other work."""
    return _allocate_pinned if device.type == "cuda" else allocate_numpy


def _allocate_pinned(size: int) -> np.ndarray:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()

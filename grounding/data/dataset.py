"""The dataset: queries, their features in a store, and their ground truth.

A sample reads only the rows that it needs: the appearance maps of `num_frames` frames, the clips of
its segment or the motion at these frames, and the tokens of its sentence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
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
"""Motion products whose maps cover the frame padded to a square."""
FULL_FRAME = (0.0, 0.0, 1.0, 1.0)
CPU = torch.device("cpu")
EMPTY_MOTION = np.zeros((0, 1, 1, 0), np.float16)
"""[T_d, h, w, C], for a model that reads no motion."""
CACHE_BYTES = 2 << 30
"""Features kept in memory. Many sentences ask about the same video, and a small store fits."""


class GroundingDataset:
    """Queries with their features and ground truth. Threads may share a dataset.

    Args:
        queries: The queries.
        tracks: The object tracks of their ground truth.
        appearance: Appearance maps or images.
        motion: Motion maps; None for a model that reads no motion (T_d = 0).
        text: Token states or token ids.
        num_frames: Frames per sample, T_s.
        num_clips: Motion clips per sample, T_d. With None the motion is taken at the sampled
            frames, T_d = T_s.
        motion_in_square: Motion maps cover the frame padded to a square, as SlowFast's. Otherwise
            they cover the frame, as Video Swin's.
        device: The device of the model. For a GPU, features lie in pinned memory, and images stay
            JPEGs if the GPU can decode them.

    Attributes:
        queries: The queries whose video and sentence are among the features.
        missing_query_ids: Ids of the other queries, sorted.
        reads_images: True if `appearance` holds images.
    """

    def __init__(  # noqa: PLR0913
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
        self.tracks = tracks
        self.appearance = appearance
        self.motion = motion
        self.text = text
        self.num_frames = num_frames
        self.num_clips = num_clips
        self.motion_in_square = motion_in_square

        self.reads_images = isinstance(appearance, ImageSource)
        self._read_appearance_rows: Callable[[str, np.ndarray], np.ndarray | EncodedImages]
        self._read_appearance_rows = appearance.read
        if isinstance(appearance, ImageSource) and can_decode_jpegs(device):
            self._read_appearance_rows = appearance.read_encoded

        self.queries = [query for query in queries if self.has_features(query)]
        query_ids = {query.id for query in queries}
        self.missing_query_ids = sorted(query_ids - {query.id for query in self.queries})
        self._cache = LRUCache(CACHE_BYTES)
        self._buffer_pool = BufferPool(host_allocator(device))

    @classmethod
    def from_store(  # noqa: PLR0913
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
        """Open one split of a feature store.

        Args:
            path: The store.
            split: Name of the split.
            num_frames: Frames per sample, T_s.
            num_clips: Motion clips per sample, T_d; None for motion at the sampled frames.
            tokenize: The tokenizer of a model that reads images and token ids; None for a model
                that reads cached token states.
            motion: The product of motion maps; None for a model that reads no motion.
            use_images: Read images in place of appearance maps, also without `tokenize`.
            device: The device of the model.
            with_truth: Keep only queries with a ground truth. The dataset may then be empty.

        Returns:
            The dataset.

        Raises:
            StoreError: If the store has features for no query of the split.
        """
        # Read the queries of the split, and the tracks if any query has one.
        store = Store(path)
        queries = [query for query in read_jsonl(store.index_path, Query) if query.split == split]
        has_tracks = any(
            query.truth is not None and query.truth.track is not None for query in queries
        )
        tracks = Tracks.load(store.tracks_path) if has_tracks else Tracks()

        # Open the products that the model reads.
        allocate = host_allocator(device)
        appearance: FeatureSource
        if use_images or tokenize:
            appearance = ImageSource.from_store(store.open("frames"))
        else:
            appearance = store.open("appearance", allocate)
        text: FeatureSource = TokenSource(queries, tokenize) if tokenize else store.open("text")
        motion_source = store.open(motion, allocate) if motion else None

        selected = queries
        if with_truth:
            selected = [query for query in queries if query.truth is not None]
        dataset = cls(
            selected,
            tracks,
            appearance,
            motion_source,
            text,
            num_frames,
            num_clips,
            motion in SQUARE_MOTION_PRODUCTS,
            device,
        )
        if not any(dataset.has_features(query) for query in queries):
            raise StoreError(
                f"store {path} has no features for any query of split {split!r}: run stvg-extract,"
                " or look into failures.jsonl"
            )
        return dataset

    def has_features(self, query: Query) -> bool:
        """Check that all products contain a query.

        Args:
            query: The query.

        Returns:
            True if its video and its sentence are among the features.
        """
        visual = [product for product in (self.appearance, self.motion) if product is not None]
        return all(query.video in product for product in visual) and query.id in self.text

    @property
    def dims(self) -> tuple[int, int, int]:
        """Channels of (appearance, motion, text); 0 without motion."""
        query = self.queries[0]
        appearance_channels = self.appearance.shape(query.video)[-1]
        motion_channels = 0 if self.motion is None else self.motion.shape(query.video)[-1]
        text_channels = self.text.shape(query.id)[-1]
        return appearance_channels, motion_channels, text_channels

    def get_map_size(self, query: Query) -> tuple[int, int]:
        """Return the size of a query's appearance maps.

        Args:
            query: The query.

        Returns:
            Rows and columns.
        """
        _, rows, columns, _ = self.appearance.shape(query.video)
        return rows, columns

    def count_bytes(self, query: Query) -> int:
        """Compute the size of a query's appearance and motion in memory, stored as float16.

        Args:
            query: The query.

        Returns:
            The size in bytes.
        """
        num_values = self.num_frames * math.prod(self.appearance.shape(query.video)[1:])
        if self.motion is not None:
            num_clips = self.num_clips or self.num_frames
            num_values += num_clips * math.prod(self.motion.shape(query.video)[1:])
        return 2 * num_values

    def load_sample(self, query: Query, rows: np.ndarray | None = None) -> Sample:
        """Load the features of one query.

        Args:
            query: The query.
            rows: [T_s], indices of stored frames. By default the centers of `num_frames` equal
                bins of the segment.

        Returns:
            The sample.
        """
        # Choose the frames.
        stored_frames = self.appearance.columns(query.video)["frame"]
        if rows is None:
            segment_rows = self.rows_in_segment(query, stored_frames)
            rows = segment_rows[sampling.sample_bin_centers(len(segment_rows), self.num_frames)]
        frame_indices = stored_frames[rows]  # [T_s]

        # Positions stay below 1, also that of a frame at the segment's end.
        positions = sampling.compute_relative_positions(frame_indices, query.segment)
        frame_positions = np.clip(positions, 0, 1 - 1e-6).astype(np.float32)

        # Load the features, and the keys that identify the rows read.
        appearance_key, appearance = self._load_appearance(query.video, rows)
        motion_key, motion = self._load_motion(query, frame_indices)
        text = self.load_text(query)

        square: tuple[float, ...] = FULL_FRAME
        if self.motion_in_square:
            square = picture_in_square(tuple(self.appearance.facts(query.video)["size"]))
        return Sample(
            query=query,
            frame_indices=frame_indices,
            appearance=appearance,
            frame_positions=frame_positions,
            motion=motion,
            picture_in_square=np.array(square, np.float32),
            text=text,
            video_key=(appearance_key, motion_key),
        )

    def load_text(self, query: Query) -> np.ndarray:
        """Load the features of a query's sentence.

        Args:
            query: The query.

        Returns:
            [L, C], token states or token ids.
        """
        return self._cache.get(("text", query.id), lambda: self.text.read(query.id))

    def rows_in_segment(self, query: Query, stored_frames: np.ndarray) -> np.ndarray:
        """Select the stored rows inside a query's segment.

        Args:
            query: The query.
            stored_frames: [n], the frame index of each stored row.

        Returns:
            Row indices, ascending. A segment shorter than the grid gets the row nearest to its
            middle.
        """
        begin, end = query.segment
        rows = np.flatnonzero((stored_frames >= begin) & (stored_frames < end))
        if len(rows):
            return rows

        middle = (begin + end) / 2
        return np.array([np.abs(stored_frames - middle).argmin()])

    def _load_appearance(
        self, video: str, rows: np.ndarray
    ) -> tuple[Hashable, np.ndarray | EncodedImages]:
        """Return the key and the appearance of stored rows, [len(rows), H, W, C] as stored."""
        key = ("appearance", video, rows.tobytes())
        return key, self._cache.get(key, lambda: self._read_appearance_rows(video, rows))

    def _load_motion(self, query: Query, frame_indices: np.ndarray) -> tuple[Hashable, np.ndarray]:
        """Return the key and the motion of a query, of its segment or at its frames [T_s]."""
        if self.motion is None:
            return None, EMPTY_MOTION
        if self.num_clips is None:
            return self._load_motion_at_frames(self.motion, query, frame_indices)
        return self._load_clips(self.motion, query, self.num_clips)

    def _load_clips(
        self, motion: FeatureSource, query: Query, num_clips: int
    ) -> tuple[Hashable, np.ndarray]:
        """Return the key and the segment's clips, pooled to [T_d, h, w, C] by 2D-TAN's rule."""

        def read() -> np.ndarray:
            rows = self.rows_in_segment(query, motion.columns(query.video)["frame"])
            bins = sampling.compute_pool_bins(len(rows), num_clips)
            return _mean_pool_bins(motion.read(query.video, rows), bins, self._buffer_pool)

        key = ("motion", query.video, query.segment)
        return key, self._cache.get(key, read)

    def _load_motion_at_frames(
        self, motion: FeatureSource, query: Query, frame_indices: np.ndarray
    ) -> tuple[Hashable, np.ndarray]:
        """Return the key and the segment's motion rows nearest to frames, [T_s, h, w, C]."""
        stored_frames = motion.columns(query.video)["frame"]
        segment_rows = self.rows_in_segment(query, stored_frames)
        nearest = sampling.find_nearest_frames(stored_frames[segment_rows], frame_indices)
        rows = segment_rows[nearest]

        key = ("motion", query.video, rows.tobytes())
        return key, self._cache.get(key, lambda: motion.read(query.video, rows))

    def load_targets(self, sample: Sample) -> Targets:
        """Compute the targets of a sample.

        Args:
            sample: The sample.

        Returns:
            The targets, as a batch of one.

        Raises:
            InputError: If the query has no ground truth.
        """
        query = sample.query
        if query.truth is None:
            raise InputError(
                f"query {query.id} has no truth to learn from: keep it out of split {query.split!r}"
            )

        # The span in positions of the segment, in [0, 1].
        begin, end = query.truth.span
        first, last = query.segment
        span = ((begin - first) / (last - first), (end - first) / (last - first))

        # Labels of frames [T_s] and clips [T_d], and the middle frames of the clips [T_d].
        frame_labels = sampling.label_frames(sample.frame_indices, query.truth.span)
        if self.num_clips is None:
            clip_centers = sample.frame_indices
            clip_labels = frame_labels
        else:
            clip_positions = (np.arange(self.num_clips) + 0.5) / self.num_clips
            clip_centers = (first + clip_positions * (last - first)).astype(np.int64)
            clip_labels = sampling.label_clips(span, self.num_clips)

        # Boxes of frames and clips together: one interpolation of the track.
        frames = np.concatenate([sample.frame_indices, clip_centers])
        boxes, box_mask = self._get_target_boxes(query, frames)
        num_frames = len(sample.frame_indices)
        return Targets(
            boxes=boxes[:, :num_frames],
            box_mask=box_mask[:, :num_frames],
            span=torch.tensor([span]),
            frame_labels=torch.from_numpy(frame_labels).float()[None],
            clip_labels=torch.from_numpy(clip_labels).float()[None],
            clip_boxes=boxes[:, num_frames:],
            clip_box_mask=box_mask[:, num_frames:],
        )

    def _get_target_boxes(self, query: Query, frame_indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return true boxes at frames, [1, n, 4] cxcywh, and their mask inside the span, [1, n]."""
        if query.truth is None or query.truth.track is None:
            num_frames = len(frame_indices)
            return torch.zeros(1, num_frames, 4), torch.zeros(1, num_frames, dtype=torch.bool)

        begin, end = query.truth.span
        track_frames, track_boxes = self.tracks[query.truth.track]
        corners = interpolate_boxes(track_frames, track_boxes, frame_indices)
        boxes = xyxy_to_cxcywh(corners, query.size)
        in_span = (frame_indices >= begin) & (frame_indices < end)
        mask = in_span & np.isin(frame_indices, track_frames)
        return torch.from_numpy(boxes).float()[None], torch.from_numpy(mask)[None]


def _mean_pool_bins(
    rows: np.ndarray, bins: Sequence[tuple[int, int]], buffer_pool: BufferPool
) -> np.ndarray:
    """Return the mean of the rows [begin, end) of each bin, [n, …] → [bins, …], in float32.

    NumPy does the work, for the reason given in `grounding.data.collate.pad_and_stack`.
    """
    # If each row is a bin, the rows are returned as they are.
    single_row_bins = [(index, index + 1) for index in range(len(rows))]
    if list(bins) == single_row_bins:
        return rows

    result = buffer_pool.empty((len(bins), *rows.shape[1:]), rows.dtype)
    for slot, (begin, end) in zip(result, bins, strict=True):
        if end - begin > 1:
            slot[...] = np.add.reduce(rows[begin:end], 0, dtype=np.float32) / (end - begin)
        else:
            slot[...] = rows[begin]
    return result


def host_allocator(device: torch.device) -> Allocator:
    """Return the allocator of host buffers for a device.

    Args:
        device: The device that the buffers are copied to.

    Returns:
        An allocator of pinned memory for CUDA, so that copies overlap with computation, and of
        ordinary memory otherwise.
    """
    return _allocate_pinned if device.type == "cuda" else allocate_numpy


def _allocate_pinned(size: int) -> np.ndarray:
    """Allocate bytes of pinned memory."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()

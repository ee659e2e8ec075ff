"""Columnar storage of many tubes, so that thousands are scored without a Python step per frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import InputError
from pipeline.records import Prediction, Query
from pipeline.tracks import Tracks

FRAME_KEY_STRIDE = np.int64(1) << 40
"""Upper bound of frame indices: `tube · FRAME_KEY_STRIDE + frame` orders the rows of all tubes."""


@dataclass(frozen=True, eq=False)
class Tubes:
    """`q` tubes and the `n` rows of all their boxes, tube after tube.

    Before the first and after the last row of a tube, the nearest box is used.

    Attributes:
        ids: [q], query ids.
        spans: [q, 2], int64, frames `[begin, end)`.
        offsets: [q + 1], int64; tube i has the rows `offsets[i]:offsets[i + 1]`.
        frames: [n], frame of each row, ascending within each tube.
        boxes: [n, 4], xyxy in pixels.
        framewise: True if a frame without a row has no box. False if rows are samples, with
            linear interpolation between them.
    """

    ids: tuple[str, ...]
    spans: np.ndarray
    offsets: np.ndarray
    frames: np.ndarray
    boxes: np.ndarray
    framewise: bool = False

    def __len__(self) -> int:
        """Return the number of tubes."""
        return len(self.ids)

    @classmethod
    def from_rows(
        cls,
        ids: Iterable[str],
        spans: Iterable[Sequence[int]],
        rows: Iterable[tuple[np.ndarray, np.ndarray]],
    ) -> Tubes:
        """Build tubes from the rows of each tube.

        Args:
            ids: Query ids.
            spans: Frames `[begin, end)` of each tube.
            rows: `(frames [k], boxes [k, 4])` of each tube, in any order.

        Returns:
            Tubes with sorted rows, not frame-wise.

        Raises:
            InputError: A tube has two boxes for one frame.
        """
        names = tuple(ids)
        counts = [0]
        all_frames = [np.zeros(0, np.int64)]
        all_boxes = [np.zeros((0, 4), np.float32)]

        for name, (frames, boxes) in zip(names, rows, strict=True):
            sorted_frames, sorted_boxes = _sort_rows(name, frames, boxes)
            counts.append(len(sorted_frames))
            all_frames.append(sorted_frames)
            all_boxes.append(sorted_boxes)

        return cls(
            ids=names,
            spans=np.array(list(spans), np.int64).reshape(-1, 2),
            offsets=np.cumsum(counts, dtype=np.int64),
            frames=np.concatenate(all_frames),
            boxes=np.concatenate(all_boxes),
        )

    @classmethod
    def from_predictions(cls, predictions: Iterable[Prediction]) -> Tubes:
        """Build tubes from predictions; rows are samples.

        Predictions are consumed one by one, so the records of a file need not fit into memory.

        Args:
            predictions: Predicted tubes.

        Returns:
            One tube per prediction.

        Raises:
            InputError: A prediction has two boxes for one frame.
        """
        ids = []
        spans = []
        rows = []

        for prediction in predictions:
            # A row of a prediction is (frame, x1, y1, x2, y2).
            table = np.array(prediction.boxes, np.float64).reshape(-1, 5)
            frames = table[:, 0].astype(np.int64)

            ids.append(prediction.id)
            spans.append(prediction.span)
            rows.append((frames, table[:, 1:]))

        return cls.from_rows(ids, spans, rows)

    @classmethod
    def from_ground_truth(cls, queries: Iterable[Query], tracks: Tracks) -> Tubes:
        """Build the true tubes of all queries with a ground truth.

        Args:
            queries: Queries; those without a ground truth are skipped.
            tracks: Boxes of the annotated tracks.

        Returns:
            Frame-wise tubes. A tube without annotated boxes has no rows.
        """
        ids = []
        spans = []
        rows = []

        for query in queries:
            if query.truth is None:
                continue

            ids.append(query.id)
            spans.append(query.truth.span)
            rows.append(ground_truth_boxes(query, tracks))

        tubes = cls.from_rows(ids, spans, rows)
        return replace(tubes, framewise=True)

    def select(self, indices: np.ndarray) -> Tubes:
        """Return a selection of tubes.

        Args:
            indices: [m], tube indices; −1 selects an empty tube `[0, 0)` with the id "".

        Returns:
            m tubes in the order of the indices.
        """
        exists = indices >= 0

        # Without any tube, all indices are −1 and there is no length to look up.
        lengths = np.diff(self.offsets)[indices] if len(self) else 0
        counts = np.where(exists, lengths, 0)  # [m]

        spans = np.zeros((len(indices), 2), np.int64)
        spans[exists] = self.spans[indices[exists]]

        rows = concatenate_ranges(self.offsets[indices], counts)
        ids = tuple(self.ids[index] if index >= 0 else "" for index in indices.tolist())

        return Tubes(
            ids=ids,
            spans=spans,
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            frames=self.frames[rows],
            boxes=self.boxes[rows],
            framewise=self.framewise,
        )

    def slice(self, begin: int, end: int) -> Tubes:
        """Return consecutive tubes without a copy of their rows.

        Args:
            begin: Index of the first tube.
            end: Index after the last tube.

        Returns:
            Tubes `begin` to `end`.
        """
        rows = slice(self.offsets[begin], self.offsets[end])

        return Tubes(
            ids=self.ids[begin:end],
            spans=self.spans[begin:end],
            offsets=self.offsets[begin : end + 1] - self.offsets[begin],
            frames=self.frames[rows],
            boxes=self.boxes[rows],
            framewise=self.framewise,
        )

    @property
    def row_tubes(self) -> np.ndarray:
        """Return the tube index of each row, `[n]`."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def row_keys(self) -> np.ndarray:
        """Return the key of each row, `[n]` ascending; see `encode_row_keys`."""
        return encode_row_keys(self.row_tubes, self.frames)

    def boxes_at(
        self, tube_indices: np.ndarray, frames: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes of tubes at given frames.

        Boxes are exact at rows. The box is all zeros for a tube without rows and in a gap of a
        frame-wise tube.

        Args:
            tube_indices: [m], the tube of each requested box.
            frames: [m], the frame of each requested box.

        Returns:
            boxes: [m, 4], xyxy in pixels, float64.
            has_box: [m]. For a frame-wise tube, True at rows. Otherwise True for every tube with
                rows.
        """
        if len(self.frames) == 0:
            return np.zeros((len(frames), 4)), np.zeros(len(frames), bool)

        # First and last row of each tube; last < first for a tube without rows.
        first = self.offsets[tube_indices]  # [m]
        last = self.offsets[tube_indices + 1] - 1  # [m]
        is_empty = last < first

        # The last row at or before each frame; a row of another tube before the first one.
        keys = encode_row_keys(tube_indices, frames)
        preceding = np.searchsorted(self.row_keys(), keys, side="right") - 1  # [m]

        # The rows on both sides of each frame, within the tube and within the table.
        max_row = len(self.frames) - 1
        left = np.clip(preceding, first, np.maximum(last, first)).clip(max=max_row)
        right = np.minimum(left + 1, np.maximum(last, left)).clip(max=max_row)
        left_frame = self.frames[left].astype(np.float64)
        right_frame = self.frames[right].astype(np.float64)
        boxes = np.asarray(self.boxes[left], np.float64)

        if self.framewise:
            is_row = (left_frame == frames) & ~is_empty
            is_gap = ~is_row & (preceding >= first) & (preceding < last)
            boxes[is_empty | is_gap] = 0
            return boxes, is_row

        # Linear interpolation between the rows on both sides.
        distance = np.maximum(right_frame - left_frame, 1)
        weight = np.clip((frames - left_frame) / distance, 0, 1)  # [m]
        boxes += (self.boxes[right] - boxes) * weight[:, None]
        boxes[is_empty] = 0
        return boxes, ~is_empty


def _sort_rows(name: str, frames: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of one tube in the order of their frames; raise InputError for duplicates."""
    steps = np.diff(frames)

    if (steps < 0).any():
        order = np.argsort(frames, kind="stable")
        frames = frames[order]
        boxes = boxes[order]
        steps = np.diff(frames)

    if (steps == 0).any():
        duplicate = frames[:-1][steps == 0][0]
        raise InputError(f"query {name!r} has two boxes for frame {duplicate}; keep one")

    return frames, boxes


def ground_truth_boxes(query: Query, tracks: Tracks) -> tuple[np.ndarray, np.ndarray]:
    """Return the annotated boxes inside a query's true span.

    Args:
        query: A query.
        tracks: Boxes of the annotated tracks.

    Returns:
        frames: [n], ascending; empty without annotated boxes.
        boxes: [n, 4], xyxy in pixels.
    """
    if query.truth is None or query.truth.track is None:
        return np.zeros(0, np.int32), np.zeros((0, 4), np.float32)

    frames, boxes = tracks[query.truth.track]
    first, last = np.searchsorted(frames, query.truth.span)
    return frames[first:last], boxes[first:last]


def prediction_boxes(prediction: Prediction, frames: np.ndarray) -> np.ndarray:
    """Return the boxes of one predicted tube at given frames.

    Args:
        prediction: The predicted tube.
        frames: [n], frame indices.

    Returns:
        [n, 4], xyxy in pixels; all zeros (IoU 0) if the prediction has no boxes.
    """
    tubes = Tubes.from_predictions([prediction])
    tube_indices = np.zeros(len(frames), np.int64)

    boxes, _ = tubes.boxes_at(tube_indices, np.asarray(frames))
    return boxes


def ground_truth_box(query: Query, tracks: Tracks, frame: int) -> np.ndarray | None:
    """Return the annotated box at one frame.

    Args:
        query: A query.
        tracks: Boxes of the annotated tracks.
        frame: Frame index.

    Returns:
        [4], xyxy in pixels; None outside the true span and without an annotated box.
    """
    frames, boxes = ground_truth_boxes(query, tracks)
    matches = boxes[frames == frame]
    return matches[0] if len(matches) else None


def predicted_box(prediction: Prediction | None, frame: int) -> np.ndarray | None:
    """Return the predicted box at one frame.

    Args:
        prediction: The predicted tube; None without a prediction.
        frame: Frame index.

    Returns:
        [4], xyxy in pixels; None outside the predicted span and without predicted boxes.
    """
    if prediction is None or not prediction.boxes:
        return None

    begin, end = prediction.span
    if not begin <= frame < end:
        return None

    return prediction_boxes(prediction, np.array([frame]))[0]


def encode_row_keys(tube_indices: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Encode tube and frame in one number, ordered by tube, then by frame.

    Args:
        tube_indices: [n], tube indices.
        frames: [n], frame indices below `FRAME_KEY_STRIDE`.

    Returns:
        [n], int64.
    """
    return tube_indices * FRAME_KEY_STRIDE + frames


def concatenate_ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the integers of several ranges, one range after the other.

    Args:
        begins: [k], first integer of each range.
        lengths: [k], number of integers of each range.

    Returns:
        [sum of lengths], `begins[i], begins[i] + 1, …` for each i.
    """
    ends = np.cumsum(lengths)
    total = ends[-1] if len(ends) else 0

    # Position in the result plus an offset that is constant within each range.
    offsets = begins - (ends - lengths)
    return np.arange(total) + np.repeat(offsets, lengths)

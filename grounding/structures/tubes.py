"""Many tubes in columns, so that thousands are judged at once without a Python step per frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import InputError
from pipeline.records import Prediction, Query
from pipeline.tracks import Tracks

FRAME_KEY_STRIDE = np.int64(1) << 40
"""Frame numbers lie below it: `tube · STRIDE + frame` orders the rows of all tubes."""


@dataclass(frozen=True, eq=False)
class Tubes:
    """`q` tubes and the `n` rows of all their boxes, tube after tube.

    `ids`; `spans` int64 `[q, 2]`, frames `[begin, end)`; `offsets` `[q + 1]`: tube i has the rows
    `offsets[i]:offsets[i + 1]`; `frames` `[n]`, ascending in each tube; `boxes` `[n, 4]` xyxy pixels.
    `framewise`: a frame without a row has no box. Otherwise rows are samples, and boxes between them are
    interpolated linearly. Before the first and after the last row, the nearest box is held.
    """

    ids: tuple[str, ...]
    spans: np.ndarray
    offsets: np.ndarray
    frames: np.ndarray
    boxes: np.ndarray
    framewise: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_rows(
        cls,
        ids: Iterable[str],
        spans: Iterable[Sequence[int]],
        rows: Iterable[tuple[np.ndarray, np.ndarray]],
    ) -> Tubes:
        """From each tube's `(frames [k], boxes [k, 4])`; rows are sorted, two boxes of one frame are refused."""
        names = tuple(ids)
        parts = [_sort_rows(name, *row) for name, row in zip(names, rows, strict=True)]
        return cls(
            ids=names,
            spans=np.array(list(spans), np.int64).reshape(-1, 2),
            offsets=np.cumsum([0, *(len(frames) for frames, _ in parts)], dtype=np.int64),
            frames=np.concatenate([np.zeros(0, np.int64), *(frames for frames, _ in parts)]),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *(boxes for _, boxes in parts)]),
        )

    @classmethod
    def from_predictions(cls, predictions: Iterable[Prediction]) -> Tubes:
        """Predicted tubes: their rows are samples. Read one by one, so that a file need not fit into memory as records."""
        ids, spans, rows = [], [], []
        for prediction in predictions:
            ids.append(prediction.id)
            spans.append(prediction.span)
            table = np.array(prediction.boxes, np.float64).reshape(-1, 5)
            rows.append((table[:, 0].astype(np.int64), table[:, 1:]))
        return cls.from_rows(ids, spans, rows)

    @classmethod
    def from_ground_truth(cls, queries: Iterable[Query], tracks: Tracks) -> Tubes:
        """The true tubes of the queries that have a truth; no rows where no box is known."""
        known = [query for query in queries if query.truth is not None]
        tubes = cls.from_rows(
            (query.id for query in known),
            (query.truth.span for query in known if query.truth),
            (ground_truth_boxes(query, tracks) for query in known),
        )
        return replace(tubes, framewise=True)

    def select(self, indices: np.ndarray) -> Tubes:
        """The tubes at `places`, in that order; at −1 an empty tube `[0, 0)` without rows."""
        there = indices >= 0
        counts = np.where(there, np.diff(self.offsets)[indices] if len(self) else 0, 0)
        spans = np.zeros((len(indices), 2), np.int64)
        spans[there] = self.spans[indices[there]]
        rows = concatenate_ranges(self.offsets[indices], counts)
        ids = tuple(self.ids[place] if place >= 0 else "" for place in indices.tolist())
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return Tubes(ids, spans, offsets, self.frames[rows], self.boxes[rows], self.framewise)

    def slice(self, begin: int, end: int) -> Tubes:
        """Tubes `begin` to `end`, without copying their rows."""
        rows = slice(self.offsets[begin], self.offsets[end])
        offsets = self.offsets[begin : end + 1] - self.offsets[begin]
        return Tubes(
            self.ids[begin:end],
            self.spans[begin:end],
            offsets,
            self.frames[rows],
            self.boxes[rows],
            self.framewise,
        )

    @property
    def row_tubes(self) -> np.ndarray:
        """`[n]`: the tube of each row."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def row_keys(self) -> np.ndarray:
        """`[n]`: tube and frame of each row in one ascending number."""
        return encode_row_keys(self.row_tubes, self.frames)

    def boxes_at(
        self, tube_indices: np.ndarray, frames: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The box of tube `owners[i]` at `frames[i]` → boxes `[m, 4]` float64, and where a tube has one of its own `[m]`.

        Exact at rows. Where a tube has none (no rows at all, or a gap of a frame-wise tube) the box is all zeros.
        "Its own" is a row of that frame or, for samples, any interpolated box: false where a frame-wise tube is held.
        """
        if len(self.frames) == 0:
            return np.zeros((len(frames), 4)), np.zeros(len(frames), bool)
        first, last = self.offsets[tube_indices], self.offsets[tube_indices + 1] - 1
        left = (
            np.searchsorted(self.row_keys(), encode_row_keys(tube_indices, frames), side="right")
            - 1
        )
        near = np.clip(left, first, np.maximum(last, first)).clip(max=len(self.frames) - 1)
        right = np.minimum(near + 1, np.maximum(last, near)).clip(max=len(self.frames) - 1)
        start, stop = self.frames[near].astype(np.float64), self.frames[right].astype(np.float64)
        weight = np.clip((frames - start) / np.maximum(stop - start, 1), 0, 1)
        boxes = np.asarray(self.boxes[near], np.float64)
        empty = last < first
        if self.framewise:
            exact = (start == frames) & ~empty
            gap = ~exact & (left >= first) & (left < last)
            boxes[empty | gap] = 0
            return boxes, exact
        boxes += (self.boxes[right] - boxes) * weight[:, None]
        boxes[empty] = 0
        return boxes, ~empty


def _sort_rows(name: str, frames: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of their frames."""
    steps = np.diff(frames)
    if (steps < 0).any():
        order = np.argsort(frames, kind="stable")
        frames, boxes = frames[order], boxes[order]
        steps = np.diff(frames)
    if (steps == 0).any():
        raise InputError(
            f"query {name!r} has two boxes for frame {frames[:-1][steps == 0][0]}; keep one"
        )
    return frames, boxes


def ground_truth_boxes(query: Query, tracks: Tracks) -> tuple[np.ndarray, np.ndarray]:
    """The true span's frames that have a box, `[n]`, and their boxes `[n, 4]` xyxy pixels; empty where none is known."""
    if query.truth is None or query.truth.track is None:
        return np.zeros(0, np.int32), np.zeros((0, 4), np.float32)
    frames, boxes = tracks[query.truth.track]
    first, last = np.searchsorted(frames, query.truth.span)
    return frames[first:last], boxes[first:last]


def prediction_boxes(prediction: Prediction, frames: np.ndarray) -> np.ndarray:
    """One predicted tube's box at each of `frames` `[n]` → `[n, 4]` xyxy pixels; all zero (IoU 0) if none was predicted."""
    return Tubes.from_predictions([prediction]).boxes_at(
        np.zeros(len(frames), np.int64), np.asarray(frames)
    )[0]


def ground_truth_box(query: Query, tracks: Tracks, frame: int) -> np.ndarray | None:
    """The box `[4]` that is true at a frame of the true span; None without any."""
    frames, boxes = ground_truth_boxes(query, tracks)
    return next(iter(boxes[frames == frame]), None)


def predicted_box(prediction: Prediction | None, frame: int) -> np.ndarray | None:
    """The predicted box `[4]` at a frame of the predicted span; None without any."""
    if (
        prediction is None
        or not prediction.boxes
        or not prediction.span[0] <= frame < prediction.span[1]
    ):
        return None
    return prediction_boxes(prediction, np.array([frame]))[0]


def encode_row_keys(tube_indices: np.ndarray, frames: np.ndarray) -> np.ndarray:
    return tube_indices * FRAME_KEY_STRIDE + frames


def concatenate_ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`begins[i], begins[i] + 1, …` for `lengths[i]` numbers each, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - (ends - lengths), lengths)

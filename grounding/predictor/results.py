"""Results of grounding sentences in a video, and the selection of the best tubes of all windows."""

from __future__ import annotations

import heapq
from typing import Literal

import numpy as np
from pydantic import Field

from grounding.structures.tubes import prediction_boxes
from pipeline.records import FORMAT, Prediction, Span
from pipeline.validation import StrictModel

SAME_EVENT_OVERLAP = 0.5
"""Share of the shorter span that two predictions of the same event have in common, at least."""
MAX_OVERLAPPING_WINDOWS = 4
"""Largest number of other windows that share frames with a window: two on each side."""


class VideoInfo(StrictModel):
    """Facts about a video.

    Attributes:
        path: Path of the video file.
        fps: Mean frame rate.
        frame_count: Number of frames.
        size: `(width, height)` in pixels, as displayed.
    """

    path: str
    fps: float
    frame_count: int
    size: tuple[int, int]


class TubeResult(StrictModel):
    """One tube of a sentence.

    CSDVL's score is the probability of its best proposal and compares videos too.
    CG-STVG's and CoSTA's score is the probability of the first frame times that of the last frame
    within the window. It does not compare windows (see `SpanScores.log_normalizer`).

    Attributes:
        text: The sentence.
        score: Score in [0, 1].
        span_frames: Frames `[begin, end)`.
        span_seconds: Seconds after the video's first frame, from the appearance of the first frame
            of the span to the end of its last frame.
        boxes: A row `(frame, x1, y1, x2, y2)` in pixels for every frame of the span.
    """

    text: str
    score: float
    span_frames: Span
    span_seconds: tuple[float, float]
    boxes: list[tuple[int, float, float, float, float]]


class QueryResult(TubeResult):
    """The best tube of a sentence, and in `others` the next best tubes of other events."""

    others: list[TubeResult] = Field(default_factory=list)


class GroundingResult(StrictModel):
    """The JSON of `stvg-predict --json`: the video, and one result per sentence in their order."""

    format: Literal[1] = FORMAT
    video: VideoInfo
    queries: list[QueryResult]


class TopTubes:
    """The highest ranked predictions of different events for one sentence.

    Windows overlap, so several windows find one event; the highest ranked prediction counts.
    A prediction shares frames with predictions of at most `MAX_OVERLAPPING_WINDOWS` other windows.
    So the best `top_k · (1 + MAX_OVERLAPPING_WINDOWS)` predictions are enough to select from, and
    memory does not grow with the number of windows.
    """

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k
        self._heap: list[tuple[float, int, Prediction]] = []
        self._num_added = 0

    def add(self, rank: float, prediction: Prediction) -> None:
        """Add a prediction.

        Args:
            rank: Rank of the prediction, higher is better. Of equal ranks, the earlier one wins.
            prediction: Prediction of one window.
        """
        self._num_added += 1
        entry = (rank, -self._num_added, prediction)
        max_entries = self.top_k * (1 + MAX_OVERLAPPING_WINDOWS)
        if len(self._heap) < max_entries:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def select(self) -> list[Prediction]:
        """Select the best predictions of different events.

        Returns:
            At most `top_k` predictions, best first.
        """
        selected: list[Prediction] = []
        for _, _, prediction in sorted(self._heap, reverse=True):
            if len(selected) == self.top_k:
                break
            if not any(_is_same_event(prediction.span, other.span) for other in selected):
                selected.append(prediction)
        return selected


def _is_same_event(first: Span, second: Span) -> bool:
    """Return True if two spans have a large share of the shorter span in common."""
    num_common = min(first[1], second[1]) - max(first[0], second[0])
    num_shorter = min(first[1] - first[0], second[1] - second[0])
    return num_common >= SAME_EVENT_OVERLAP * num_shorter


def build_query_result(
    text: str, predictions: list[Prediction], frame_edges: np.ndarray
) -> QueryResult:
    """Build the result of a sentence.

    Args:
        text: The sentence.
        predictions: Its predictions, at least one, best first.
        frame_edges: `[frame_count + 1]`, times of the frames' edges in seconds.

    Returns:
        The result of the sentence.
    """
    tubes = [build_tube_result(text, prediction, frame_edges) for prediction in predictions]
    return QueryResult(**dict(tubes[0]), others=tubes[1:])


def build_tube_result(text: str, prediction: Prediction, frame_edges: np.ndarray) -> TubeResult:
    """Build the result of a tube, with a box for every frame and the span in seconds.

    Args:
        text: The sentence.
        prediction: Prediction with boxes at some frames; others are interpolated.
        frame_edges: `[frame_count + 1]`, times of the frames' edges in seconds.

    Returns:
        The result of the tube.
    """
    begin, end = prediction.span
    frames = np.arange(begin, end)
    boxes = prediction_boxes(prediction, frames).round(2).tolist()  # [n, 4]

    rows = []
    for frame, (x1, y1, x2, y2) in zip(frames, boxes, strict=True):
        rows.append((int(frame), x1, y1, x2, y2))
    return TubeResult(
        text=text,
        score=prediction.score,
        span_frames=prediction.span,
        span_seconds=(round(float(frame_edges[begin]), 3), round(float(frame_edges[end]), 3)),
        boxes=rows,
    )

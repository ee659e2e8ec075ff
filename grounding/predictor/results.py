"""What asking about a video gives: the JSON of `stvg-predict`, and the best of what a long video's windows found."""

from __future__ import annotations

import heapq
from typing import Literal

import numpy as np
from pydantic import Field

from grounding.structures.tubes import prediction_boxes
from pipeline.records import FORMAT, Prediction, Span
from pipeline.validation import StrictModel

SAME_EVENT_OVERLAP = 0.5
"""Two windows found the same where one's span covers at least this share of the other's."""
MAX_OVERLAPPING_WINDOWS = 4
"""Other windows that share frames with one, at most: two on either side."""


class VideoInfo(StrictModel):
    """The video's facts: `size` is `(width, height)` in pixels as shown, `fps` the mean rate."""

    path: str
    fps: float
    frame_count: int
    size: tuple[int, int]


class TubeResult(StrictModel):
    """One sentence's tube. `score` is CSDVL's probability of its best proposal, which compares videos too; CG-STVG's and CoSTA's is that
    of the first frame times that of the last one, within the window: which window is best they say otherwise (`SpanScores.level`).

    `span_frames` `[begin, end)`; `span_seconds` from when the first of them appears to when the last one goes, after
    the video's first frame; `boxes` one row `(frame, x1, y1, x2, y2)` for every frame of the span, in pixels.
    """

    text: str
    score: float
    span_frames: Span
    span_seconds: tuple[float, float]
    boxes: list[tuple[int, float, float, float, float]]


class QueryResult(TubeResult):
    """The best tube, and in `others` the next best ones elsewhere in the video, where more were asked for."""

    others: list[TubeResult] = Field(default_factory=list)


class GroundingResult(StrictModel):
    """What `stvg-predict --json` writes: the video and the answers, in the order of the sentences."""

    format: Literal[1] = FORMAT
    video: VideoInfo
    queries: list[QueryResult]


class TopTubes:
    """The `count` highest ranked of any number of predictions about one sentence, each of another event; its memory does not grow
    with them.

    Windows overlap, so an event is found by several. Of those that found the same the best counts. As one prediction shares frames
    with those of `OVERLAPPING` other windows at most, the best `count · (1 + OVERLAPPING)` are enough to choose from.
    """

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k
        self._heap: list[tuple[float, int, Prediction]] = []
        self._num_added = 0

    def add(self, rank: float, prediction: Prediction) -> None:
        self._num_added += 1
        entry = (rank, -self._num_added, prediction)  # of two equal ones the earlier
        if len(self._heap) < self.top_k * (1 + MAX_OVERLAPPING_WINDOWS):
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def select(self) -> list[Prediction]:
        """The best first."""
        chosen: list[Prediction] = []
        for _, _, prediction in sorted(self._heap, reverse=True):
            if len(chosen) < self.top_k and not any(
                _is_same_event(prediction.span, other.span) for other in chosen
            ):
                chosen.append(prediction)
        return chosen


def _is_same_event(first: Span, second: Span) -> bool:
    """Whether either covers at least the share `SAME` of the other."""
    common = min(first[1], second[1]) - max(first[0], second[0])
    return common >= SAME_EVENT_OVERLAP * min(first[1] - first[0], second[1] - second[0])


def build_query_result(
    text: str, predictions: list[Prediction], frame_edges: np.ndarray
) -> QueryResult:
    """A sentence's predictions, the best first."""
    best, *others = (build_tube_result(text, prediction, frame_edges) for prediction in predictions)
    return QueryResult(**dict(best), others=others)


def build_tube_result(text: str, prediction: Prediction, frame_edges: np.ndarray) -> TubeResult:
    """A prediction with its boxes interpolated to every frame of the span, and the span in seconds."""
    begin, end = prediction.span
    frames = np.arange(begin, end)
    boxes = prediction_boxes(prediction, frames).round(2).tolist()
    return TubeResult(
        text=text,
        score=prediction.score,
        span_frames=prediction.span,
        span_seconds=(round(float(frame_edges[begin]), 3), round(float(frame_edges[end]), 3)),
        boxes=[
            (int(frame), x1, y1, x2, y2)
            for frame, (x1, y1, x2, y2) in zip(frames, boxes, strict=True)
        ],
    )

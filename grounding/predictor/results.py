"""What asking about a video gives: the JSON of `stvg-predict`, and the best of what a long video's windows found."""

from __future__ import annotations

import heapq
from typing import Literal

import numpy as np
from pydantic import Field

from grounding.structures.tubes import prediction_boxes
from pipeline.records import FORMAT, Prediction, Span
from pipeline.validation import StrictModel

SAME = 0.5
"""Two windows found the same where one's span covers at least this share of the other's."""
OVERLAPPING = 4
"""Other windows that share frames with one, at most: two on either side."""


class AskedVideo(StrictModel):
    """The video's facts: `size` is `(width, height)` in pixels as shown, `fps` the mean rate."""

    path: str
    fps: float
    frame_count: int
    size: tuple[int, int]


class Found(StrictModel):
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


class Answer(Found):
    """The best tube, and in `others` the next best ones elsewhere in the video, where more were asked for."""

    others: list[Found] = Field(default_factory=list)


class Answers(StrictModel):
    """What `stvg-predict --json` writes: the video and the answers, in the order of the sentences."""

    format: Literal[1] = FORMAT
    video: AskedVideo
    queries: list[Answer]


class Best:
    """The `count` highest ranked of any number of predictions about one sentence, each of another event; its memory does not grow
    with them.

    Windows overlap, so an event is found by several. Of those that found the same the best counts. As one prediction shares frames
    with those of `OVERLAPPING` other windows at most, the best `count · (1 + OVERLAPPING)` are enough to choose from.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept: list[tuple[float, int, Prediction]] = []
        self._added = 0

    def add(self, rank: float, prediction: Prediction) -> None:
        self._added += 1
        entry = (rank, -self._added, prediction)  # of two equal ones the earlier
        if len(self._kept) < self.count * (1 + OVERLAPPING):
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def chosen(self) -> list[Prediction]:
        """The best first."""
        chosen: list[Prediction] = []
        for _, _, prediction in sorted(self._kept, reverse=True):
            if len(chosen) < self.count and not any(
                _same(prediction.span, other.span) for other in chosen
            ):
                chosen.append(prediction)
        return chosen


def _same(one: Span, other: Span) -> bool:
    """Whether either covers at least the share `SAME` of the other."""
    common = min(one[1], other[1]) - max(one[0], other[0])
    return common >= SAME * min(one[1] - one[0], other[1] - other[0])


def answer_of(text: str, predictions: list[Prediction], frame_edges: np.ndarray) -> Answer:
    """A sentence's predictions, the best first."""
    best, *others = (found(text, prediction, frame_edges) for prediction in predictions)
    return Answer(**dict(best), others=others)


def found(text: str, prediction: Prediction, frame_edges: np.ndarray) -> Found:
    """A prediction with its boxes interpolated to every frame of the span, and the span in seconds."""
    begin, end = prediction.span
    frames = np.arange(begin, end)
    boxes = prediction_boxes(prediction, frames).round(2).tolist()
    return Found(
        text=text,
        score=prediction.score,
        span_frames=prediction.span,
        span_seconds=(round(float(frame_edges[begin]), 3), round(float(frame_edges[end]), 3)),
        boxes=[
            (int(frame), x1, y1, x2, y2)
            for frame, (x1, y1, x2, y2) in zip(frames, boxes, strict=True)
        ],
    )

"""The records every stage reads and writes: queries, tubes of truth, predictions, failures.

Conventions (all files): frame numbers are 0-based positions in presentation order; spans are half-open
`[begin, end)`; boxes are `xyxy` in pixels of the original video. Every line of `index.jsonl` carries its
`format`; an unknown one is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.validation import StrictModel, _value_repr

FORMAT: Literal[1] = 1
MAX_FRAMES = 10**8
MAX_COORDINATE = 10**6
FrameIndex = Annotated[int, Field(ge=0, le=MAX_FRAMES)]
Coordinate = Annotated[float, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE)]
"""Pixels; far outside any picture is still a coordinate."""
Span = tuple[FrameIndex, FrameIndex]


class Truth(StrictModel):
    """When the event happens (`span`, frames `[begin, end)`) and the key of its boxes in `tracks.npz`.

    `track` is None where the boxes are not at hand (VidSTG without VidOR's trajectories).
    """

    span: Span
    track: str | None = None


class Query(StrictModel):
    """One sentence about one video: a line of `index.jsonl`.

    `path` is relative to the data set's root (absolute if it lies outside it), `segment` the frames
    `[begin, end)` the sentence is asked about, `size` the picture's `(width, height)` in pixels.
    """

    format: Literal[1] = FORMAT
    id: str
    video: str
    path: str
    fps: float
    frame_count: FrameIndex
    size: tuple[int, int]
    segment: Span
    text: str
    form: Literal["declarative", "interrogative"] | None = None
    split: str
    object: str | None = None
    truth: Truth | None = None
    tags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_spans(self) -> Query:
        begin, end = self.segment
        if not 0 <= begin < end <= self.frame_count:
            raise ValueError(f"segment [{begin}, {end}) does not lie in [0, {self.frame_count})")
        if self.truth is not None:
            first, last = self.truth.span
            if not begin <= first < last <= end:
                raise ValueError(
                    f"truth span [{first}, {last}) does not lie in the segment [{begin}, {end})"
                )
        return self


class Prediction(StrictModel):
    """The predicted tube of one query: a line of `predictions/<split>.jsonl`.

    `boxes` rows are `[frame, x1, y1, x2, y2]`; they may reach beyond `span` (m_sIoU judges them there).
    """

    id: str
    span: Span
    score: float
    boxes: list[tuple[FrameIndex, Coordinate, Coordinate, Coordinate, Coordinate]]

    @model_validator(mode="after")
    def _check_span(self) -> Prediction:
        if self.span[0] > self.span[1]:
            raise ValueError(f"span [{self.span[0]}, {self.span[1]}) ends before it begins")
        return self


class Failure(StrictModel):
    """A video that could not be used: a line of `failures.jsonl`, one per video, current failures only."""

    video: str
    path: str
    stage: str
    reason: str
    detail: str
    attempts: int = 1


_value_repr.maxstring = _value_repr.maxother = _value_repr.maxlong = (
    80  # and six levels deep, whatever was sent
)

"""Records that every stage reads and writes: queries, ground-truth tubes, predictions, failures.

Conventions of all files:

- Frame indices are 0-based positions in presentation order.
- Spans are half-open, `[begin, end)`, in frames.
- Boxes are `xyxy` in pixels of the original video.
- Every line of `index.jsonl` carries its `format`; an unknown format is an error that names it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.validation import StrictModel

FORMAT: Literal[1] = 1
MAX_FRAMES = 10**8
MAX_COORDINATE = 10**6
FrameIndex = Annotated[int, Field(ge=0, le=MAX_FRAMES)]
Coordinate = Annotated[float, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE)]
"""Pixels. A coordinate may lie far outside the frame."""
Span = tuple[FrameIndex, FrameIndex]


class Truth(StrictModel):
    """Ground truth of one query.

    Attributes:
        span: Frames `[begin, end)` of the event.
        track: Key of the object's boxes in `tracks.npz`; None if no boxes are available (VidSTG
            without VidOR's trajectories).
    """

    span: Span
    track: str | None = None


class Query(StrictModel):
    """One sentence about one video: a line of `index.jsonl`.

    Attributes:
        format: Version of the record.
        id: Identifier of the query, unique in the index.
        video: Identifier of the video.
        path: Path of the video, relative to the data set's root; absolute if the video lies
            outside the root.
        fps: Frames per second.
        frame_count: Number of frames of the video.
        size: `(width, height)` of a frame in pixels.
        segment: Frames `[begin, end)` that the sentence refers to.
        text: The sentence.
        form: Grammatical form of the sentence, if known.
        split: Name of the data set's split.
        object: Category of the object, if known.
        truth: Ground truth, if known.
        tags: Free labels.
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
        """Check that the segment lies in the video and the truth in the segment."""
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

    Attributes:
        id: Identifier of the query.
        span: Predicted frames `[begin, end)`.
        score: Confidence.
        boxes: Rows `[frame, x1, y1, x2, y2]`. Frames may lie outside `span`: m_sIoU also
            evaluates boxes outside the predicted span.
    """

    id: str
    span: Span
    score: float
    boxes: list[tuple[FrameIndex, Coordinate, Coordinate, Coordinate, Coordinate]]

    @model_validator(mode="after")
    def _check_span(self) -> Prediction:
        """Check the order of the span's ends."""
        begin, end = self.span
        if begin > end:
            raise ValueError(f"span [{begin}, {end}) ends before it begins")
        return self


class Failure(StrictModel):
    """A video that could not be used: a line of `failures.jsonl`.

    The file has one line per video, for current failures only.

    Attributes:
        video: Identifier of the video.
        path: Path of the video.
        stage: The failing step, as in `VideoError`.
        reason: A short fixed word, as in `VideoError`.
        detail: A sentence for people.
        attempts: Number of failed attempts.
    """

    video: str
    path: str
    stage: str
    reason: str
    detail: str
    attempts: int = 1

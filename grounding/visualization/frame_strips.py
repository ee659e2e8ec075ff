"""Picture strips: a few frames of one query with the true tube in green and the predicted ones dashed, in yellow and pink."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from grounding.structures.tubes import ground_truth_box, predicted_box
from pipeline.records import Prediction, Query
from pipeline.tracks import Tracks

TRUE_COLOR, PREDICTED_COLOR, OTHER_COLOR, EDGE_COLOR = (
    (46, 204, 113),
    (255, 214, 10),
    (255, 95, 210),
    (0, 0, 0),
)
NUM_FRAMES, THUMBNAIL_HEIGHT, GAP = 8, 132, 3
DASH_LENGTH = 7
OUTLINE_OFFSET = 2
"""Pixels from a box to the middle of the line around it."""
JPEG_QUALITY = 82


def select_strip_frames(query: Query, predictions: Sequence[Prediction | None]) -> list[int]:
    """Frames evenly over all spans and a little around them, inside the segment; ascending, each once."""
    spans = [
        span
        for span in (
            query.truth and query.truth.span,
            *(answer and answer.span for answer in predictions),
        )
        if span
    ]
    first = min((span[0] for span in spans), default=query.segment[0])
    last = max((span[1] for span in spans), default=query.segment[1])
    margin = max(1, round(0.12 * (last - first)))
    begin, end = max(query.segment[0], first - margin), min(query.segment[1], last + margin)
    return np.unique(np.linspace(begin, end - 1, NUM_FRAMES).round().astype(int)).tolist()


def draw_strip(
    query: Query,
    tracks: Tracks,
    predictions: Sequence[Prediction | None],
    frame_indices: Sequence[int],
    frames: Iterable[np.ndarray],
) -> Image.Image:
    """The frames side by side, each with the boxes that hold there: truth inside the true span, the run's answer and another run's
    inside their own.
    """
    thumbs = []
    for number, frame in zip(frame_indices, frames, strict=True):
        thumb = _make_thumbnail(frame)
        scale = (thumb.width / query.size[0], thumb.height / query.size[1])
        _draw_outline(
            thumb, ground_truth_box(query, tracks, number), scale, TRUE_COLOR, dashed=False
        )
        for answer, colour in reversed(
            list(zip(predictions, (PREDICTED_COLOR, OTHER_COLOR), strict=False))
        ):
            _draw_outline(thumb, predicted_box(answer, number), scale, colour, dashed=True)
        thumbs.append(thumb)
    width = sum(thumb.width for thumb in thumbs) + GAP * (len(thumbs) - 1)
    strip = Image.new("RGB", (width, THUMBNAIL_HEIGHT), (255, 255, 255))
    left = 0
    for thumb in thumbs:
        strip.paste(thumb, (left, 0))
        left += thumb.width + GAP
    return strip


def save_strip(strip: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    strip.save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)


def _make_thumbnail(frame: np.ndarray) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(frame, np.uint8))
    width = max(1, round(picture.width * THUMBNAIL_HEIGHT / picture.height))
    return picture.resize((width, THUMBNAIL_HEIGHT), Image.Resampling.BILINEAR)


def _draw_outline(
    thumbnail: Image.Image,
    box: np.ndarray | None,
    scale: tuple[float, float],
    color: tuple[int, int, int],
    dashed: bool,
) -> None:
    """A coloured frame with a dark edge, so that it shows on any ground; `box` is xyxy in pixels of the video.

    It lies around the box: on it, it would hide the outline of a small object.
    """
    if box is None:
        return
    x1, y1, x2, y2 = (
        float(box[i] * scale[i % 2]) + (OUTLINE_OFFSET if i > 1 else -OUTLINE_OFFSET)
        for i in range(4)
    )
    x1, x2 = (min(max(x, 0.0), thumbnail.width - 1.0) for x in (x1, x2))
    y1, y2 = (min(max(y, 0.0), thumbnail.height - 1.0) for y in (y1, y2))
    if x2 < x1 or y2 < y1:
        return
    pen = ImageDraw.Draw(thumbnail)
    for edge in ((x1, y1, x2, y1), (x2, y1, x2, y2), (x2, y2, x1, y2), (x1, y2, x1, y1)):
        for piece in _split_into_dashes(edge) if dashed else [edge]:
            pen.line(piece, fill=EDGE_COLOR, width=5)
            pen.line(piece, fill=color, width=3)


def _split_into_dashes(
    edge: tuple[float, float, float, float],
) -> list[tuple[float, float, float, float]]:
    """The drawn parts of a dashed line `(x1, y1, x2, y2)`: half of it, in pieces of about `DASH` pixels, both ends drawn."""
    x1, y1, x2, y2 = edge
    pieces = 2 * max(1, round(float(np.hypot(x2 - x1, y2 - y1)) / (2 * DASH_LENGTH))) + 1
    places = [(i / pieces, (i + 1) / pieces) for i in range(0, pieces, 2)]
    return [
        (x1 + a * (x2 - x1), y1 + a * (y2 - y1), x1 + b * (x2 - x1), y1 + b * (y2 - y1))
        for a, b in places
    ]

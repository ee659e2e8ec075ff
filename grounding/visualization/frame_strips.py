"""Frame strips: a few frames of one query with the ground-truth and the predicted tubes.

The ground truth is green; predictions are dashed, in yellow (the run) and pink (a second run).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from grounding.structures.tubes import ground_truth_box, predicted_box
from pipeline.records import Prediction, Query
from pipeline.tracks import Tracks

TRUE_COLOR = (46, 204, 113)
PREDICTED_COLOR = (255, 214, 10)
OTHER_COLOR = (255, 95, 210)
EDGE_COLOR = (0, 0, 0)

NUM_FRAMES = 8
"""Maximum number of frames of a strip."""
THUMBNAIL_HEIGHT = 132
"""Pixels."""
THUMBNAIL_GAP = 3
"""Pixels between two thumbnails."""
DASH_LENGTH = 7
"""Approximate length of a dash in pixels."""
OUTLINE_OFFSET = 2
"""Pixels from a box to the middle of the line around it."""
JPEG_QUALITY = 82

LineSegment = tuple[float, float, float, float]
"""A line `(x1, y1, x2, y2)` in pixels."""


def select_strip_frames(query: Query, predictions: Sequence[Prediction | None]) -> list[int]:
    """Select frames that evenly cover all spans and a margin around them, inside the segment.

    Args:
        query: The query.
        predictions: Predictions of one or two runs; None where a run has none.

    Returns:
        At most `NUM_FRAMES` distinct frame indices, ascending.
    """
    spans = []
    if query.truth:
        spans.append(query.truth.span)
    for prediction in predictions:
        if prediction:
            spans.append(prediction.span)

    # The hull of all spans; the whole segment without any.
    segment_begin, segment_end = query.segment
    first = min((span[0] for span in spans), default=segment_begin)
    last = max((span[1] for span in spans), default=segment_end)

    # A margin on both sides, clipped to the segment.
    margin = max(1, round(0.12 * (last - first)))
    begin = max(segment_begin, first - margin)
    end = min(segment_end, last + margin)

    frame_indices = np.linspace(begin, end - 1, NUM_FRAMES).round().astype(int)

    return np.unique(frame_indices).tolist()


def draw_strip(
    query: Query,
    tracks: Tracks,
    predictions: Sequence[Prediction | None],
    frame_indices: Sequence[int],
    frames: Iterable[np.ndarray],
) -> Image.Image:
    """Draw frames side by side, each with its boxes.

    The ground-truth box is drawn inside the true span, a predicted box inside the predicted span.

    Args:
        query: The query.
        tracks: Ground-truth tracks.
        predictions: Predictions of the run and of a second run; None where a run has none.
        frame_indices: Indices of the frames, ascending.
        frames: The frames, RGB uint8 `[h, w, 3]`.

    Returns:
        The strip, `THUMBNAIL_HEIGHT` pixels high.
    """
    predictions_with_colors = list(zip(predictions, (PREDICTED_COLOR, OTHER_COLOR), strict=False))

    thumbnails = []
    for frame_index, frame in zip(frame_indices, frames, strict=True):
        thumbnail = _make_thumbnail(frame)
        scale = (thumbnail.width / query.size[0], thumbnail.height / query.size[1])

        true_box = ground_truth_box(query, tracks, frame_index)
        _draw_thumbnail_outline(thumbnail, true_box, scale, TRUE_COLOR, dashed=False)

        # The run's box comes last, on top of the second run's.
        for prediction, color in reversed(predictions_with_colors):
            box = predicted_box(prediction, frame_index)
            _draw_thumbnail_outline(thumbnail, box, scale, color, dashed=True)

        thumbnails.append(thumbnail)

    return _join_horizontally(thumbnails)


def _join_horizontally(thumbnails: Sequence[Image.Image]) -> Image.Image:
    """Paste thumbnails side by side on white."""
    total_width = sum(thumbnail.width for thumbnail in thumbnails)
    total_width += THUMBNAIL_GAP * (len(thumbnails) - 1)
    strip = Image.new("RGB", (total_width, THUMBNAIL_HEIGHT), (255, 255, 255))

    left = 0
    for thumbnail in thumbnails:
        strip.paste(thumbnail, (left, 0))
        left += thumbnail.width + THUMBNAIL_GAP

    return strip


def save_strip(strip: Image.Image, path: Path) -> None:
    """Write a strip as JPEG, and its directory if needed.

    Args:
        strip: The strip.
        path: The file to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    # No chroma subsampling: the colored outlines are thin.
    strip.save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)


def _make_thumbnail(frame: np.ndarray) -> Image.Image:
    """Resize a frame `[h, w, 3]` to `THUMBNAIL_HEIGHT`."""
    image = Image.fromarray(np.ascontiguousarray(frame, np.uint8))
    width = max(1, round(image.width * THUMBNAIL_HEIGHT / image.height))

    return image.resize((width, THUMBNAIL_HEIGHT), Image.Resampling.BILINEAR)


def _draw_thumbnail_outline(
    thumbnail: Image.Image,
    box: np.ndarray | None,
    scale: tuple[float, float],
    color: tuple[int, int, int],
    dashed: bool,
) -> None:
    """Draw a colored outline around a box (xyxy in pixels of the video), with a dark edge.

    The dark edge keeps the outline visible on any background. The outline lies around the box: on
    the box's edges it would hide a small object.
    """
    if box is None:
        return

    # The box in pixels of the thumbnail, enlarged by the offset.
    scale_x, scale_y = scale
    x1 = float(box[0] * scale_x) - OUTLINE_OFFSET
    y1 = float(box[1] * scale_y) - OUTLINE_OFFSET
    x2 = float(box[2] * scale_x) + OUTLINE_OFFSET
    y2 = float(box[3] * scale_y) + OUTLINE_OFFSET

    # Clip to the thumbnail.
    x1 = min(max(x1, 0.0), thumbnail.width - 1.0)
    y1 = min(max(y1, 0.0), thumbnail.height - 1.0)
    x2 = min(max(x2, 0.0), thumbnail.width - 1.0)
    y2 = min(max(y2, 0.0), thumbnail.height - 1.0)
    if x2 < x1 or y2 < y1:
        return

    draw = ImageDraw.Draw(thumbnail)
    sides = ((x1, y1, x2, y1), (x2, y1, x2, y2), (x2, y2, x1, y2), (x1, y2, x1, y1))
    for side in sides:
        pieces = _split_into_dashes(side) if dashed else [side]

        for piece in pieces:
            draw.line(piece, fill=EDGE_COLOR, width=5)
            draw.line(piece, fill=color, width=3)


def _split_into_dashes(line: LineSegment) -> list[LineSegment]:
    """Return the dashes of a line: every second piece of about `DASH_LENGTH` pixels, both ends."""
    x1, y1, x2, y2 = line
    width = x2 - x1
    height = y2 - y1

    # An odd number of equal pieces, so that the line begins and ends with a dash.
    length = float(np.hypot(width, height))
    num_pieces = 2 * max(1, round(length / (2 * DASH_LENGTH))) + 1

    dashes = []
    for index in range(0, num_pieces, 2):
        begin = index / num_pieces
        end = (index + 1) / num_pieces
        dashes.append(
            (x1 + begin * width, y1 + begin * height, x1 + end * width, y1 + end * height)
        )

    return dashes

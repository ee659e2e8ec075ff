"""Clipping of annotated boxes to the picture, and storage of ground-truth tubes."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.parsed import DefectLog, ParsedDataset
from pipeline.records import Span


def clip_boxes(
    entry: str, frames: np.ndarray, boxes: np.ndarray, size: tuple[int, int], defects: DefectLog
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to the picture and drop boxes without an area.

    Args:
        entry: Name of the entry for the log.
        frames: `[n]`, frame indices of the boxes.
        boxes: `[n, 4]`, xyxy in pixels.
        size: (width, height) of the picture in pixels.
        defects: Log; clipped and dropped boxes are counted.

    Returns:
        `(frames, boxes)` of the remaining boxes, `[m]` and `[m, 4]`.
    """
    # Clip every box to the picture.
    limits = np.array([*size, *size], np.float64)  # [4]
    clipped = np.clip(boxes, 0, limits)  # [n, 4]
    is_outside = (clipped != boxes).any(1)  # [n]
    is_empty = (clipped[:, 2:] <= clipped[:, :2]).any(1)  # [n]

    # Count both defects, and name the first frame of each.
    num_outside = int(is_outside.sum())
    if num_outside:
        first_frame = int(frames[is_outside.argmax()])
        detail = (
            f"{num_outside} boxes, the first at frame {first_frame}, clipped to {size[0]}x{size[1]}"
        )
        defects.add("box outside picture", entry, detail, count=num_outside)

    num_empty = int(is_empty.sum())
    if num_empty:
        first_frame = int(frames[is_empty.argmax()])
        detail = f"{num_empty} boxes, the first at frame {first_frame}, dropped"
        defects.add("box without area", entry, detail, count=num_empty)

    return frames[~is_empty], clipped[~is_empty]


def add_tube(
    name: str,
    frames: np.ndarray,
    boxes: np.ndarray,
    span: Span,
    size: tuple[int, int],
    parsed_dataset: ParsedDataset,
) -> str | None:
    """Store the ground-truth tube of one query, clipped to the picture.

    Args:
        name: Id of the query, the key of the track.
        frames: `[n]`, frame indices of the boxes.
        boxes: `[n, 4]`, xyxy in pixels.
        span: Frames `[begin, end)` of the ground truth.
        size: (width, height) of the picture in pixels.
        parsed_dataset: Data set that receives the track and the defects.

    Returns:
        The key of the track, or None (and a defect) if no frame of the span has a box.
    """
    frames, boxes = clip_boxes(name, frames, boxes, size, parsed_dataset.defects)

    is_in_span = (frames >= span[0]) & (frames < span[1])  # [n]
    if not is_in_span.any():
        detail = f"no frame of [{span[0]}, {span[1]}) has a box; kept without boxes"
        parsed_dataset.defects.add("no box in the span", name, detail)
        return None

    parsed_dataset.tracks.add(name, frames, boxes)
    return name

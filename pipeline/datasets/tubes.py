"""Boxes on their way from a data set's files into the tracks: clipped to the picture, and each blemish counted."""

from __future__ import annotations

import numpy as np

from pipeline.datasets.parsed import DefectLog, ParsedDataset
from pipeline.records import Span


def clip_boxes(
    entry: str, frames: np.ndarray, boxes: np.ndarray, size: tuple[int, int], defects: DefectLog
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `[n, 4]` xyxy clipped to the picture `(width, height)`, without those that keep no area; each kind counted."""
    clipped = np.clip(boxes, 0, np.array([*size, *size], np.float64))
    outside = (clipped != boxes).any(1)
    flat = (clipped[:, 2:] <= clipped[:, :2]).any(1)
    if outside.any():
        first = int(frames[outside.argmax()])
        detail = f"{int(outside.sum())} boxes, the first at frame {first}, clipped to {size[0]}x{size[1]}"
        defects.add("box outside picture", entry, detail, count=int(outside.sum()))
    if flat.any():
        first = int(frames[flat.argmax()])
        defects.add(
            "box without area",
            entry,
            f"{int(flat.sum())} boxes, the first at frame {first}, dropped",
            count=int(flat.sum()),
        )
    return frames[~flat], clipped[~flat]


def add_tube(
    name: str,
    frames: np.ndarray,
    boxes: np.ndarray,
    span: Span,
    size: tuple[int, int],
    parsed_dataset: ParsedDataset,
) -> str | None:
    """Store the boxes of one query's own tube under the query's name, clipped to the picture; None where the span keeps none."""
    frames, boxes = clip_boxes(name, frames, boxes, size, parsed_dataset.defects)
    if not ((frames >= span[0]) & (frames < span[1])).any():
        parsed_dataset.defects.add(
            "no box in the span",
            name,
            f"no frame of [{span[0]}, {span[1]}) has a box; kept without boxes",
        )
        return None
    parsed_dataset.tracks.add(name, frames, boxes)
    return name

"""Box arithmetic on NumPy arrays. `xyxy` are corners in pixels; `cxcywh` is centre and size in [0, 1]."""

from __future__ import annotations

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of xyxy boxes row by row: `[..., 4]` × `[..., 4]` → `[...]`; 0 where the union is 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    union = area(a) + area(b) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def area(boxes: np.ndarray) -> np.ndarray:
    """Area of xyxy boxes `[..., 4]` → `[...]`; 0 for a box turned inside out."""
    boxes = np.asarray(boxes, np.float64)
    return np.maximum(boxes[..., 2] - boxes[..., 0], 0) * np.maximum(
        boxes[..., 3] - boxes[..., 1], 0
    )


def xyxy_to_cxcywh(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels of a `(width, height)` picture, xyxy `[..., 4]` → cxcywh in [0, 1]."""
    scaled = np.asarray(boxes, np.float64) / np.array([*size, *size], np.float64)
    return np.concatenate(
        [(scaled[..., :2] + scaled[..., 2:]) / 2, scaled[..., 2:] - scaled[..., :2]], -1
    )


def cxcywh_to_xyxy(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cxcywh in [0, 1], `[..., 4]` → xyxy in pixels of a `(width, height)` picture."""
    boxes = np.asarray(boxes, np.float64)
    corners = np.concatenate(
        [boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1
    )
    return corners * np.array([*size, *size], np.float64)


def interpolate_boxes(
    frames: np.ndarray, boxes: np.ndarray, target_frames: np.ndarray
) -> np.ndarray:
    """Boxes at the `wanted` frames `[m]` from samples at ascending `frames` `[n]`, boxes `[n, 4]` → `[m, 4]`.

    Linear between samples, held before the first and after the last; exact at samples.
    """
    boxes = np.asarray(boxes, np.float64)
    return np.stack([np.interp(target_frames, frames, boxes[:, side]) for side in range(4)], -1)

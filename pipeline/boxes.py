"""Box arithmetic on NumPy arrays.

`xyxy` boxes are corners in pixels. `cxcywh` boxes are center and size in [0, 1].
"""

from __future__ import annotations

import numpy as np


def box_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of boxes, row by row.

    Args:
        boxes_a: `[..., 4]`, xyxy.
        boxes_b: `[..., 4]`, xyxy.

    Returns:
        `[...]` float64 in [0, 1]; 0 where the union is empty.
    """
    boxes_a = np.asarray(boxes_a, np.float64)
    boxes_b = np.asarray(boxes_b, np.float64)

    width = np.minimum(boxes_a[..., 2], boxes_b[..., 2]) - np.maximum(
        boxes_a[..., 0], boxes_b[..., 0]
    )
    height = np.minimum(boxes_a[..., 3], boxes_b[..., 3]) - np.maximum(
        boxes_a[..., 1], boxes_b[..., 1]
    )
    intersection = np.maximum(width, 0) * np.maximum(height, 0)  # [...]
    union = box_area(boxes_a) + box_area(boxes_b) - intersection  # [...]

    result = np.zeros_like(intersection)
    return np.divide(intersection, union, out=result, where=union > 0)


def box_area(boxes: np.ndarray) -> np.ndarray:
    """Compute the area of boxes.

    Args:
        boxes: `[..., 4]`, xyxy.

    Returns:
        `[...]` float64; 0 for a box with swapped corners.
    """
    boxes = np.asarray(boxes, np.float64)
    width = np.maximum(boxes[..., 2] - boxes[..., 0], 0)
    height = np.maximum(boxes[..., 3] - boxes[..., 1], 0)
    return width * height


def xyxy_to_cxcywh(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Convert corners in pixels to relative centers and sizes.

    Args:
        boxes: `[..., 4]`, xyxy in pixels.
        size: `(width, height)` of the frame in pixels.

    Returns:
        `[..., 4]`, cxcywh in [0, 1].
    """
    scale = np.array([*size, *size], np.float64)  # [4]
    corners = np.asarray(boxes, np.float64) / scale

    centers = (corners[..., :2] + corners[..., 2:]) / 2
    sides = corners[..., 2:] - corners[..., :2]
    return np.concatenate([centers, sides], -1)


def cxcywh_to_xyxy(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Convert relative centers and sizes to corners in pixels.

    Args:
        boxes: `[..., 4]`, cxcywh in [0, 1].
        size: `(width, height)` of the frame in pixels.

    Returns:
        `[..., 4]`, xyxy in pixels.
    """
    boxes = np.asarray(boxes, np.float64)
    half_sides = boxes[..., 2:] / 2

    corners = np.concatenate([boxes[..., :2] - half_sides, boxes[..., :2] + half_sides], -1)
    return corners * np.array([*size, *size], np.float64)


def interpolate_boxes(
    frames: np.ndarray, boxes: np.ndarray, target_frames: np.ndarray
) -> np.ndarray:
    """Interpolate boxes linearly between frames.

    Args:
        frames: `[n]`, ascending frame indices of the samples.
        boxes: `[n, 4]`, boxes of the samples.
        target_frames: `[m]`, frame indices to interpolate at.

    Returns:
        `[m, 4]` float64: exact at samples, constant before the first and after the last sample.
    """
    boxes = np.asarray(boxes, np.float64)
    columns = [np.interp(target_frames, frames, boxes[:, column]) for column in range(4)]
    return np.stack(columns, -1)

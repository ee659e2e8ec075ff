"""Box arithmetic: formats, IoU and generalized IoU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert boxes from center and size to corners.

    Args:
        boxes: […, 4], cxcywh.

    Returns:
        […, 4], xyxy.
    """
    center, size = boxes.split(2, -1)
    return torch.cat([center - size / 2, center + size / 2], -1)


def full_frame_boxes(frame_positions: Tensor) -> Tensor:
    """Return the box of the whole picture for every frame.

    Args:
        frame_positions: [B, T]; gives shape and device.

    Returns:
        [B, T, 4], cxcywh (0.5, 0.5, 1, 1), float32.
    """
    center = torch.full_like(frame_positions, 0.5, dtype=torch.float32)
    size = torch.full_like(frame_positions, 1.0, dtype=torch.float32)
    return torch.stack([center, center, size, size], -1)


def box_iou(pred_boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """Return the IoU of pairs of boxes.

    Args:
        pred_boxes: […, 4], xyxy.
        target_boxes: […, 4], xyxy.

    Returns:
        […], in [0, 1].
    """
    areas = _pair_areas(pred_boxes, target_boxes)
    return areas.intersection / areas.union.clamp(min=1e-9)


def generalized_box_iou(pred_boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """Return the generalized IoU of pairs of boxes.

    Args:
        pred_boxes: […, 4], xyxy.
        target_boxes: […, 4], xyxy.

    Returns:
        […], in [−1, 1]; 0 for two boxes without area at the same point.
    """
    areas = _pair_areas(pred_boxes, target_boxes)

    iou = areas.intersection / areas.union.clamp(min=1e-9)
    uncovered = (areas.hull - areas.union) / areas.hull.clamp(min=1e-9)
    return iou - uncovered


@dataclass(frozen=True)
class _PairAreas:
    """Areas `[…]` of pairs of boxes: intersection, union and smallest enclosing box."""

    intersection: Tensor
    union: Tensor
    hull: Tensor


def _pair_areas(pred_boxes: Tensor, target_boxes: Tensor) -> _PairAreas:
    """Return the areas of pairs of boxes xyxy `[…, 4]`."""
    pred_x1, pred_y1, pred_x2, pred_y2 = pred_boxes.unbind(-1)
    target_x1, target_y1, target_x2, target_y2 = target_boxes.unbind(-1)

    # Sides of the intersection; negative without overlap.
    shared_width = torch.minimum(pred_x2, target_x2) - torch.maximum(pred_x1, target_x1)
    shared_height = torch.minimum(pred_y2, target_y2) - torch.maximum(pred_y1, target_y1)
    intersection = shared_width.clamp(min=0) * shared_height.clamp(min=0)

    pred_area = (pred_x2 - pred_x1) * (pred_y2 - pred_y1)
    target_area = (target_x2 - target_x1) * (target_y2 - target_y1)
    union = pred_area + target_area - intersection

    # Sides of the smallest box around both.
    hull_width = torch.maximum(pred_x2, target_x2) - torch.minimum(pred_x1, target_x1)
    hull_height = torch.maximum(pred_y2, target_y2) - torch.minimum(pred_y1, target_y1)

    return _PairAreas(intersection, union, hull_width * hull_height)

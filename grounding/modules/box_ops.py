"""Boxes on maps: which cells are a box's own, and how they are weighed in what lies in it (CG-STVG, sec. 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Cxcywh → xyxy, `[…, 4]`."""
    centre, size = boxes.split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def full_frame_boxes(frame_positions: Tensor) -> Tensor:
    """The box of the whole picture, cxcywh, for every frame, `[B, T]` → `[B, T, 4]`."""
    half, whole = (
        torch.full_like(frame_positions, side, dtype=torch.float32) for side in (0.5, 1.0)
    )
    return torch.stack([half, half, whole, whole], -1)


def box_iou(pred_boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """IoU of pairs of boxes xyxy, `[…, 4]` each → `[…]`."""
    shared, union, _ = _intersection_and_union(pred_boxes, target_boxes)
    return shared / union.clamp(min=1e-9)


def generalized_box_iou(pred_boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """Generalised IoU of pairs of boxes xyxy, `[…, 4]` each → `[…]` in [−1, 1]; of two without area at one place 0."""
    shared, union, hull = _intersection_and_union(pred_boxes, target_boxes)
    return shared / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


def _intersection_and_union(
    pred_boxes: Tensor, target_boxes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of pairs of boxes xyxy `[…, 4]`: what they share, what they cover together, and the least box around both."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = pred_boxes.unbind(-1), target_boxes.unbind(-1)
    shared = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0) * (
        torch.minimum(y2, v2) - torch.maximum(y1, v1)
    ).clamp(min=0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    return (
        shared,
        union,
        (torch.maximum(x2, u2) - torch.minimum(x1, u1))
        * (torch.maximum(y2, v2) - torch.minimum(y1, v1)),
    )

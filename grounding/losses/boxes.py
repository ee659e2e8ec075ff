"""Losses of boxes, and of what carries them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from grounding.modules.box_ops import cxcywh_to_xyxy, generalized_box_iou
from grounding.modules.frame_outputs import FramewiseOutputs
from grounding.modules.roi import cells_in_box
from grounding.structures.targets import Targets


def box_losses(boxes: Tensor, targets: Targets, total: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and GIoU of boxes `[layers, B, T_s, 4]` cxcywh, summed over layers and boxed samples, over `total` (at least 1)."""
    return _weighted_sums(boxes, targets.boxes, targets.box_mask.to(boxes.dtype), total)


def cell_box_losses(
    cell_boxes: Tensor, centers: Tensor, targets: Targets, total: Tensor
) -> tuple[Tensor, Tensor]:
    """L1 and GIoU of the boxes `[B, T_s, cells, 4]` that the object's own cells propose, each cell for itself.

    The mean over a sample's own cells, summed over boxed samples, over `total` (at least 1).
    """
    own = cells_in_box(targets.boxes, centers) & targets.box_mask[..., None]
    return _weighted_sums(
        cell_boxes, targets.boxes[:, :, None], own / own.sum(-1, keepdim=True).clamp(min=1), total
    )


class BoxSupervisionWeights(Protocol):
    """The weights of carriers and cells, and of L1; 0 for what is not wanted."""

    @property
    def box_attention(self) -> float: ...
    @property
    def cell_boxes(self) -> float: ...
    @property
    def l1(self) -> float: ...


def auxiliary_box_losses(
    outputs: FramewiseOutputs,
    targets: Targets,
    w: BoxSupervisionWeights,
    overlap: float,
    total: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    """What training from scratch adds (ours): the parts, and their weighted sum; `overlap` is the weight of GIoU beside `w.l1`."""
    parts, weighted = dict[str, Tensor](), total.new_zeros(())
    if w.box_attention:
        parts["box_attention"], parts["temporal_cell_attention"] = (
            box_attention_loss(cells, outputs.cell_centers, targets.boxes, targets.box_mask, total)
            for cells in (outputs.box_attention, outputs.temporal_attention)
        )
        weighted = weighted + w.box_attention * (
            parts["box_attention"] + parts["temporal_cell_attention"]
        )
    own_parts, from_cells = supervised_cell_losses(
        outputs.cell_boxes, outputs.cell_centers, targets, w, overlap, total
    )
    return parts | own_parts, weighted + from_cells


def supervised_cell_losses(
    cell_boxes: Tensor,
    centers: Tensor,
    targets: Targets,
    w: BoxSupervisionWeights,
    overlap: float,
    total: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    """`cell_box_losses` where they are wanted and cells propose boxes: the parts, and their weighted sum; else none, and 0."""
    if not (w.cell_boxes and len(cell_boxes)):
        return {}, total.new_zeros(())
    l1, giou = cell_box_losses(cell_boxes, centers, targets, total)
    return {"cells_l1": l1, "cells_giou": giou}, w.cell_boxes * (w.l1 * l1 + overlap * giou)


def _weighted_sums(
    boxes: Tensor, target_boxes: Tensor, share: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """L1 and GIoU loss of boxes `[…, 4]` cxcywh, each times its share (0 for those that no truth is known of), summed, over `total`.

    All are computed: to pick some out a GPU would have to be waited for.
    """
    l1, overlap = (
        (boxes - target_boxes).abs().sum(-1),
        1 - generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes)),
    )
    return (l1 * share).sum() / total.clamp(min=1), (overlap * share).sum() / total.clamp(min=1)


def box_attention_loss(
    box_attention: Tensor, centers: Tensor, boxes: Tensor, box_mask: Tensor, total: Tensor
) -> Tensor:
    """−log of the attention that lies on the object's own cells, summed over layers and boxed samples, over `total` (at least 1).

    `carriers` `[layers, B, T, cells]`, cell centres `[B, cells, 2]` in [0, 1], boxes `[B, T, 4]`, boxed `[B, T]`.
    """
    mass = (box_attention * cells_in_box(boxes, centers)).sum(-1).clamp(min=1e-6)
    return -(mass.log() * box_mask).sum() / total.clamp(min=1)

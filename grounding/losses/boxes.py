"""Losses of boxes, of the cells' box proposals and of box attention."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from grounding.modules.box_ops import cxcywh_to_xyxy, generalized_box_iou
from grounding.modules.frame_outputs import FramewiseOutputs
from grounding.modules.roi import cells_in_box
from grounding.structures.targets import Targets

MIN_ATTENTION = 1e-6
"""Lower bound of attention in logarithms."""


class BoxSupervisionWeights(Protocol):
    """Weights of the losses that supervise cells; 0 disables a loss."""

    @property
    def box_attention(self) -> float:
        """Weight of the attention losses."""

    @property
    def cell_boxes(self) -> float:
        """Weight of the losses of the cells' box proposals."""

    @property
    def l1(self) -> float:
        """Weight of L1 in the losses of boxes."""


def box_losses(boxes: Tensor, targets: Targets, total: Tensor) -> tuple[Tensor, Tensor]:
    """Return the L1 and GIoU losses of the predicted boxes.

    Args:
        boxes: [layers, B, T_s, 4], cxcywh in [0, 1].
        targets: Ground truth; frames without a box do not count.
        total: Number of frames with a box in the global batch; at least 1 is used.

    Returns:
        L1 and 1 − GIoU, each summed over layers and frames, divided by `total`.
    """
    frame_weights = targets.box_mask.to(boxes.dtype)  # [B, T_s]
    return _weighted_sums(boxes, targets.boxes, frame_weights, total)


def cell_box_losses(
    cell_boxes: Tensor, centers: Tensor, targets: Targets, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the L1 and GIoU losses of the boxes that the object's cells propose.

    Args:
        cell_boxes: [B, T_s, cells, 4], cxcywh in [0, 1].
        centers: [B, cells, 2], cell centers (x, y) in [0, 1].
        targets: Ground truth; frames without a box do not count.
        total: Number of frames with a box in the global batch; at least 1 is used.

    Returns:
        L1 and 1 − GIoU, each averaged over a frame's object cells, summed over frames, divided
        by `total`.
    """
    object_cells = cells_in_box(targets.boxes, centers)  # [B, T_s, cells]
    object_cells = object_cells & targets.box_mask[..., None]
    num_object_cells = object_cells.sum(-1, keepdim=True).clamp(min=1)
    cell_weights = object_cells / num_object_cells  # sums to 1 over a frame's object cells

    return _weighted_sums(cell_boxes, targets.boxes[:, :, None], cell_weights, total)


def box_attention_loss(
    box_attention: Tensor, centers: Tensor, boxes: Tensor, box_mask: Tensor, total: Tensor
) -> Tensor:
    """Return −log of the attention on the object's cells.

    Args:
        box_attention: [layers, B, T, cells], sums to at most 1 over cells.
        centers: [B, cells, 2], cell centers (x, y) in [0, 1].
        boxes: [B, T, 4], ground-truth boxes, cxcywh in [0, 1].
        box_mask: [B, T], True at frames (or clips) with a box.
        total: Number of frames (or clips) with a box in the global batch; at least 1 is used.

    Returns:
        The loss, summed over layers and frames, divided by `total`.
    """
    object_cells = cells_in_box(boxes, centers)  # [B, T, cells]
    attention = (box_attention * object_cells).sum(-1).clamp(min=MIN_ATTENTION)  # [layers, B, T]

    return -(attention.log() * box_mask).sum() / total.clamp(min=1)


def auxiliary_box_losses(
    outputs: FramewiseOutputs,
    targets: Targets,
    weights: BoxSupervisionWeights,
    giou_weight: float,
    total: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the additional losses for training from scratch (not in the papers).

    Args:
        outputs: Outputs of a frame-wise model.
        targets: Ground truth.
        weights: Weights of the losses; a weight of 0 disables a loss.
        giou_weight: Weight of GIoU beside `weights.l1`.
        total: Number of frames with a box in the global batch; at least 1 is used.

    Returns:
        The losses by name, and their weighted sum.
    """
    losses: dict[str, Tensor] = {}
    weighted = total.new_zeros(())

    # Attention of the box head, and of the temporal queries, to the object's cells.
    if weights.box_attention:
        losses["box_attention"] = box_attention_loss(
            outputs.box_attention, outputs.cell_centers, targets.boxes, targets.box_mask, total
        )
        losses["temporal_cell_attention"] = box_attention_loss(
            outputs.temporal_attention, outputs.cell_centers, targets.boxes, targets.box_mask, total
        )
        attention_losses = losses["box_attention"] + losses["temporal_cell_attention"]
        weighted = weighted + weights.box_attention * attention_losses

    # Box proposals of the object's cells.
    cell_losses, weighted_cells = supervised_cell_losses(
        outputs.cell_boxes, outputs.cell_centers, targets, weights, giou_weight, total
    )

    return losses | cell_losses, weighted + weighted_cells


def supervised_cell_losses(
    cell_boxes: Tensor,
    centers: Tensor,
    targets: Targets,
    w: BoxSupervisionWeights,
    giou_weight: float,
    total: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return `cell_box_losses` if they are enabled and the model has cell boxes.

    Args:
        cell_boxes: [B, T_s, cells, 4], cxcywh in [0, 1]; empty without an attention box head.
        centers: [B, cells, 2], cell centers (x, y) in [0, 1].
        targets: Ground truth.
        w: Weights of the losses.
        giou_weight: Weight of GIoU beside `w.l1`.
        total: Number of frames with a box in the global batch; at least 1 is used.

    Returns:
        The losses by name, and their weighted sum; no losses and 0 if disabled.
    """
    if not w.cell_boxes or not len(cell_boxes):
        return {}, total.new_zeros(())

    l1, giou = cell_box_losses(cell_boxes, centers, targets, total)
    weighted = w.cell_boxes * (w.l1 * l1 + giou_weight * giou)

    return {"cells_l1": l1, "cells_giou": giou}, weighted


def _weighted_sums(
    boxes: Tensor, target_boxes: Tensor, weights: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted sums of L1 and 1 − GIoU over boxes [..., 4] cxcywh, over `total`.

    Boxes without ground truth have weight 0. Selecting the others would make a GPU synchronize.
    """
    l1 = (boxes - target_boxes).abs().sum(-1)
    giou_loss = 1 - generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))

    normalizer = total.clamp(min=1)
    return (l1 * weights).sum() / normalizer, (giou_loss * weights).sum() / normalizer

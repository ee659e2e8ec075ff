"""Losses of CG-STVG (sec. 3.5), summed over the decoding stages."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from grounding.losses.boxes import auxiliary_box_losses
from grounding.losses.temporal import boundary_distributions, boundary_divergence, inside_loss
from grounding.models.cgstvg import CgstvgOutputs
from grounding.modules.box_ops import box_iou, cxcywh_to_xyxy, generalized_box_iou
from grounding.structures.targets import LossNormalizers, Targets
from pipeline.config import StrictModel


class CgstvgLossConfig(StrictModel):
    """Weights λ of the losses (sec. 4, Implementation)."""

    start: float = 10.0
    """λ_s, weight of the start frame's divergence."""
    end: float = 10.0
    """λ_e, weight of the end frame's divergence."""
    inside: float = 1.0
    """λ_t, weight of the temporal confidence s^t."""
    outside_weight: float = 1.0
    """Weight of the frames outside the span in the loss of s^t."""
    l1: float = 5.0
    """λ_l, weight of (smooth) L1 of the boxes."""
    iou: float = 3.0
    """λ_i, weight of (G)IoU of the boxes."""
    box_confidence: float = 1.0
    """λ_b, weight of the spatial confidence s^s; the target is the IoU of the stage's own boxes."""
    boundary_sigma: float = 2.0
    """Width of the Gaussian targets of start and end frames, in samples."""
    smooth_l1: bool = True
    """Smooth L1; false: L1, as in the released code."""
    use_giou: bool = False
    """GIoU instead of IoU, as in the released code."""
    box_attention: float = 0.0
    """Weight of the attention losses of the box head and of the temporal queries (not in the paper;
    for training from scratch)."""
    cell_boxes: float = 0.0
    """Weight of the losses of the object cells' box proposals (not in the paper; for `box_head`
    attention)."""


def cgstvg_loss(
    outputs: CgstvgOutputs,
    targets: Targets,
    weights: CgstvgLossConfig,
    normalizers: LossNormalizers,
) -> dict[str, Tensor]:
    """Return all losses of a batch or of a micro-batch.

    The losses of micro-batches sum to the loss of the global batch.

    Args:
        outputs: Outputs of the model.
        targets: Ground truth of the same queries.
        weights: Weights λ of the losses.
        normalizers: Totals of the global batch.

    Returns:
        The losses by name; `loss` is their weighted sum. `box_confidence` is absent without
        context.
    """
    w = weights
    batch_share = len(targets.span) / normalizers.num_queries

    # Boxes, and their confidence s^s.
    l1, overlap_loss, confidence_loss = _box_terms(
        outputs, targets, w, normalizers.num_boxed_frames
    )

    # Start and end frames, and the temporal confidence s^t.
    start_target, end_target = boundary_distributions(
        targets.span, outputs.frame_positions, w.boundary_sigma
    )
    start = batch_share * boundary_divergence(outputs.start_logits, start_target)
    end = batch_share * boundary_divergence(outputs.end_logits, end_target)
    inside = batch_share * inside_loss(
        outputs.inside_logits, targets.frame_labels, w.outside_weight
    )

    losses = {"l1": l1, "iou": overlap_loss, "start": start, "end": end, "inside": inside}
    loss = w.l1 * l1 + w.iou * overlap_loss + w.start * start + w.end * end + w.inside * inside

    # Without context the model predicts no confidence of boxes.
    if len(outputs.box_confidence):
        losses["box_confidence"] = confidence_loss
        loss = loss + w.box_confidence * confidence_loss

    # Additional losses for training from scratch.
    cell_losses, weighted_cells = auxiliary_box_losses(
        outputs, targets, w, w.iou, normalizers.num_boxed_frames
    )

    return {"loss": loss + weighted_cells, **losses, **cell_losses}


def _box_terms(
    outputs: CgstvgOutputs, targets: Targets, w: CgstvgLossConfig, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (smooth) L1, 1 − (G)IoU, and the BCE of s^s, summed over stages and boxed frames.

    The sums are divided by `total`, the number of frames with a box in the global batch.
    """
    frame_weights = targets.box_mask / total.clamp(min=1)  # [B, T]
    target_boxes = targets.boxes.expand_as(outputs.boxes)  # [K, B, T, 4]

    # Distance of the box coordinates.
    if w.smooth_l1:
        distance = functional.smooth_l1_loss(outputs.boxes, target_boxes, reduction="none")
    else:
        distance = (outputs.boxes - target_boxes).abs()
    l1 = (distance.sum(-1) * frame_weights).sum()

    # Overlap of the boxes. The target of s^s is the plain IoU in any case.
    pred_xyxy = cxcywh_to_xyxy(outputs.boxes)
    target_xyxy = cxcywh_to_xyxy(target_boxes)
    iou = box_iou(pred_xyxy, target_xyxy)  # [K, B, T]
    overlap = generalized_box_iou(pred_xyxy, target_xyxy) if w.use_giou else iou
    overlap_loss = ((1 - overlap) * frame_weights).sum()

    # Confidence s^s. Without context the model predicts none.
    confidence_loss = iou.new_zeros(())
    if len(outputs.box_confidence):
        # Clamping keeps the loss finite for confidences of exactly 0 and 1.
        confidence = outputs.box_confidence.clamp(1e-6, 1 - 1e-6)
        iou_target = iou.detach().clamp(0, 1)
        cross_entropy = functional.binary_cross_entropy(confidence, iou_target, reduction="none")
        confidence_loss = (cross_entropy * frame_weights).sum()

    return l1, overlap_loss, confidence_loss

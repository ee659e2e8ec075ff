"""CG-STVG's losses (sec. 3.5), summed over the decoding stages."""

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
    """The λ of sec. 4 (Implementation)."""

    start: float = 10.0
    end: float = 10.0
    inside: float = 1.0
    """Of the temporal confidence s^t."""
    outside_weight: float = 1.0
    """The weight of frames outside the span in it."""
    l1: float = 5.0
    iou: float = 3.0
    box_confidence: float = 1.0
    """Of the spatial confidence s^s, which learns the IoU of the stage's own boxes."""
    boundary_sigma: float = 2.0
    """Width of the Gaussian targets of first and last frames, in samples."""
    smooth_l1: bool = True
    """Smooth L1; false: L1, as the released code."""
    use_giou: bool = False
    """GIoU, as the released code, in the place of IoU."""
    box_attention: float = 0.0
    """Of the cells that carry the box, and of those that the temporal queries look at (ours; from scratch)."""
    cell_boxes: float = 0.0
    """Of the boxes that the cells on the object propose, each for itself (ours; for `box_head` attention)."""


def cgstvg_loss(
    outputs: CgstvgOutputs,
    targets: Targets,
    weights: CgstvgLossConfig,
    normalizers: LossNormalizers,
) -> dict[str, Tensor]:
    """All parts and their weighted sum `loss`, each this batch's share where `totals` are those of a larger one."""
    w, share = weights, len(targets.span) / normalizers.num_queries
    l1, overlap, quality = _box_terms(outputs, targets, w, normalizers.num_boxed_frames)
    first, last = boundary_distributions(targets.span, outputs.frame_positions, w.boundary_sigma)
    parts = {
        "l1": l1,
        "iou": overlap,
        "start": share * boundary_divergence(outputs.start_logits, first),
        "end": share * boundary_divergence(outputs.end_logits, last),
        "inside": share
        * inside_loss(outputs.inside_logits, targets.frame_labels, w.outside_weight),
    }
    loss = (
        w.l1 * l1
        + w.iou * overlap
        + w.start * parts["start"]
        + w.end * parts["end"]
        + w.inside * parts["inside"]
    )
    if len(outputs.box_confidence):
        parts["box_confidence"], loss = quality, loss + w.box_confidence * quality
    cell_parts, from_cells = auxiliary_box_losses(
        outputs, targets, w, w.iou, normalizers.num_boxed_frames
    )
    parts |= cell_parts
    return {"loss": loss + from_cells, **parts}


def _box_terms(
    outputs: CgstvgOutputs, targets: Targets, w: CgstvgLossConfig, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(Smooth) L1 and 1 − (G)IoU of the boxes and BCE of their confidence, summed over stages and boxed samples, over `total`."""
    share, truth = targets.box_mask / total.clamp(min=1), targets.boxes.expand_as(outputs.boxes)
    apart = (
        functional.smooth_l1_loss(outputs.boxes, truth, reduction="none")
        if w.smooth_l1
        else (outputs.boxes - truth).abs()
    )
    ours, theirs = cxcywh_to_xyxy(outputs.boxes), cxcywh_to_xyxy(truth)
    plain = box_iou(ours, theirs)
    overlap, quality = (
        1 - (generalized_box_iou(ours, theirs) if w.use_giou else plain),
        plain.new_zeros(()),
    )
    if len(outputs.box_confidence):
        sure = outputs.box_confidence.clamp(1e-6, 1 - 1e-6)
        quality = (
            functional.binary_cross_entropy(sure, plain.detach().clamp(0, 1), reduction="none")
            * share
        ).sum()
    return (apart.sum(-1) * share).sum(), (overlap * share).sum(), quality

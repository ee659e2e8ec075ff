"""CG-STVG's losses (sec. 3.5), summed over the decoding stages."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from grounding.losses.boxes import scratch_losses
from grounding.losses.temporal import divergence, gaussians, inside_loss
from grounding.models.cgstvg import Outputs
from grounding.modules.box_ops import corners, giou, iou
from grounding.structures.targets import Targets, Totals
from pipeline.config import StrictModel


class CgstvgLossConfig(StrictModel):
    """The λ of sec. 4 (Implementation)."""

    first: float = 10.0
    last: float = 10.0
    inside: float = 1.0
    """Of the temporal confidence s^t."""
    background: float = 1.0
    """The weight of frames outside the span in it."""
    l1: float = 5.0
    iou: float = 3.0
    quality: float = 1.0
    """Of the spatial confidence s^s, which learns the IoU of the stage's own boxes."""
    sigma: float = 2.0
    """Width of the Gaussian targets of first and last frames, in samples."""
    smooth: bool = True
    """Smooth L1; false: L1, as the released code."""
    generalised: bool = False
    """GIoU, as the released code, in the place of IoU."""
    carriers: float = 0.0
    """Of the cells that carry the box, and of those that the temporal queries look at (ours; from scratch)."""
    cells: float = 0.0
    """Of the boxes that the cells on the object propose, each for itself (ours; for `box_head` attention)."""


def cgstvg_loss(
    out: Outputs, targets: Targets, weights: CgstvgLossConfig, totals: Totals
) -> dict[str, Tensor]:
    """All parts and their weighted sum `loss`, each this batch's share where `totals` are those of a larger one."""
    w, share = weights, len(targets.span) / totals.queries
    l1, overlap, quality = _box_parts(out, targets, w, totals.boxed)
    first, last = gaussians(targets.span, out.frame_tau, w.sigma)
    parts = {
        "l1": l1,
        "iou": overlap,
        "first": share * divergence(out.first, first),
        "last": share * divergence(out.last, last),
        "inside": share * inside_loss(out.inside, targets.frames, w.background),
    }
    loss = (
        w.l1 * l1
        + w.iou * overlap
        + w.first * parts["first"]
        + w.last * parts["last"]
        + w.inside * parts["inside"]
    )
    if len(out.quality):
        parts["quality"], loss = quality, loss + w.quality * quality
    cell_parts, from_cells = scratch_losses(out, targets, w, w.iou, totals.boxed)
    parts |= cell_parts
    return {"loss": loss + from_cells, **parts}


def _box_parts(
    out: Outputs, targets: Targets, w: CgstvgLossConfig, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(Smooth) L1 and 1 − (G)IoU of the boxes and BCE of their confidence, summed over stages and boxed samples, over `total`."""
    share, truth = targets.boxed / total.clamp(min=1), targets.boxes.expand_as(out.boxes)
    apart = (
        functional.smooth_l1_loss(out.boxes, truth, reduction="none")
        if w.smooth
        else (out.boxes - truth).abs()
    )
    ours, theirs = corners(out.boxes), corners(truth)
    plain = iou(ours, theirs)
    overlap, quality = 1 - (giou(ours, theirs) if w.generalised else plain), plain.new_zeros(())
    if len(out.quality):
        sure = out.quality.clamp(1e-6, 1 - 1e-6)
        quality = (
            functional.binary_cross_entropy(sure, plain.detach().clamp(0, 1), reduction="none")
            * share
        ).sum()
    return (apart.sum(-1) * share).sum(), (overlap * share).sum(), quality

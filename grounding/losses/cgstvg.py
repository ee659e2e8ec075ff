"""CG-STVG's losses (sec. 3.5), summed over the decoding stages."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from grounding.losses.boxes import carrier_loss, cell_losses
from grounding.losses.targets import Targets, Totals
from grounding.models.cgstvg import Outputs
from grounding.modules.regions import corners, iou
from pipeline.config import Config


class CgstvgLossConfig(Config):
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


def cgstvg_loss(out: Outputs, targets: Targets, weights: CgstvgLossConfig, totals: Totals) -> dict[str, Tensor]:
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
    loss = w.l1 * l1 + w.iou * overlap + w.first * parts["first"] + w.last * parts["last"] + w.inside * parts["inside"]
    if len(out.quality):
        parts["quality"], loss = quality, loss + w.quality * quality
    if w.carriers:
        parts["carriers"], parts["heard"] = (
            carrier_loss(cells, out.cell_centres, targets.boxes, targets.boxed, totals.boxed) for cells in (out.carriers, out.heard)
        )
        loss = loss + w.carriers * (parts["carriers"] + parts["heard"])
    if w.cells and len(out.cell_boxes):
        cell_l1, cell_giou = cell_losses(out.cell_boxes, out.cell_centres, targets, totals.boxed)
        parts |= {"cells_l1": cell_l1, "cells_giou": cell_giou}
        loss = loss + w.cells * (w.l1 * cell_l1 + w.iou * cell_giou)
    return {"loss": loss, **parts}


def _box_parts(out: Outputs, targets: Targets, w: CgstvgLossConfig, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Smooth) L1 and 1 − (G)IoU of the boxes and BCE of their confidence, summed over stages and boxed samples, over `total`."""
    where, total = targets.boxed.expand(out.boxes.shape[:-1]), total.clamp(min=1)
    boxes, truth = out.boxes[where], targets.boxes.expand_as(out.boxes)[where]
    apart = functional.smooth_l1_loss(boxes, truth, reduction="none") if w.smooth else (boxes - truth).abs()
    ours, theirs = corners(boxes), corners(truth)
    plain = iou(ours, theirs)
    overlap = generalized_box_iou_loss(ours, theirs) if w.generalised else 1 - plain
    sure = out.quality[where].clamp(1e-6, 1 - 1e-6) if len(out.quality) else None
    quality = plain.new_zeros(()) if sure is None else functional.binary_cross_entropy(sure, plain.detach(), reduction="sum")
    return apart.sum() / total, overlap.sum() / total, quality / total


def gaussians(span: Tensor, frame_tau: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Targets `[B, T]` of the first and of the last frame: Gaussians over the samples, of `sigma` samples, that sum to 1.

    Each of a segment's n frames among the T samples at τ `[B, T]` (fewer where it stores fewer) stands for 1/n of it; the event's
    first one is half of that after its begin, its last one half before its end. `span` `[B, 2]` in τ.
    """
    count = frame_tau.shape[-1]
    distinct = 1 + (frame_tau.diff(dim=-1) > 0).sum(-1, keepdim=True)
    middles = count * (span + torch.tensor([0.5, -0.5], device=span.device) / distinct)
    apart = (frame_tau[:, None] * count - middles[..., None]) / sigma
    first, last = (-(apart**2) / 2).softmax(-1).unbind(1)
    return first, last


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target ‖ softmax) over frames, summed over stages, mean over queries; `[K, B, T]` × `[B, T]`."""
    entropy = torch.special.entr(target).sum(-1)
    return (-(target * logits.log_softmax(-1)).sum(-1) - entropy).mean(1).sum()


def inside_loss(logits: Tensor, inside: Tensor, background: float) -> Tensor:
    """BCE of the labels `[B, T]`, frames outside weighed with `background`, summed over stages, mean over frames; logits `[K, B, T]`."""
    weight = torch.where(inside > 0, 1.0, background)
    loss = functional.binary_cross_entropy_with_logits(logits, inside.expand_as(logits), weight.expand_as(logits), reduction="none")
    return loss.mean((1, 2)).sum()

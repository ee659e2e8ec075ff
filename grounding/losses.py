"""CSDVL's losses (eq. (4), (5); supplement B.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from grounding.models.csdvl import Outputs
from grounding.modules.proposals import iou_map, valid_cells
from pipeline.config import Config


class LossConfig(Config):
    """λ of eq. (4) and (5), and the weights of L_ta's two parts."""

    l1: float = 5.0
    giou: float = 2.0
    proposals: float = 5.0
    attentive: float = 1.0
    attentive_frame: float = 0.5
    attentive_clip: float = 1.0
    carriers: float = 0.0
    """Of the cells that carry the box, and of those a clip is heard from (ours; for `box_head` and `clip_pool` attention)."""
    every_layer: bool = True
    """Box losses after every layer, as in DETR (ours)."""


@dataclass
class Targets:
    """What is true of B queries: boxes `[B, T_s, 4]` cxcywh, where there is one `[B, T_s]` (inside the span only),
    span `[B, 2]` in τ, labels of frames `[B, T_s]` and clips `[B, T_d]` inside the span (float 0/1), and boxes at the
    middles of clips, `[B, T_d, 4]` and `[B, T_d]`."""

    boxes: Tensor
    boxed: Tensor
    span: Tensor
    frames: Tensor
    clips: Tensor
    clip_boxes: Tensor
    clip_boxed: Tensor


def box_losses(boxes: Tensor, targets: Targets, count: float | None = None) -> tuple[Tensor, Tensor]:
    """L1 and GIoU of boxes `[layers, B, T_s, 4]` cxcywh, summed over layers and boxed samples, over their number.

    `count` is that number in the whole batch where this is a part of it (at least 1).
    """
    where = targets.boxed.expand(boxes.shape[:-1])
    truth = targets.boxes.expand_as(boxes)[where]
    total = max(float(targets.boxed.sum()) if count is None else count, 1.0)
    l1 = (boxes[where] - truth).abs().sum()
    giou = generalized_box_iou_loss(corners(boxes[where]), corners(truth), reduction="sum")
    return l1 / total, giou / total


def carrier_loss(carriers: Tensor, centres: Tensor, boxes: Tensor, boxed: Tensor) -> Tensor:
    """−log of the attention that lies on cells of the true box, summed over layers and boxed samples, over their number.

    `carriers` `[layers, B, T, cells]`, cell centres `[B, cells, 2]` in [0, 1], boxes `[B, T, 4]`, boxed `[B, T]`. Where no
    centre lies in the box, the cell nearest to its centre counts.
    """
    centre, size = boxes[:, :, None].split(2, -1)
    apart = (centres[:, None] - centre).abs()
    own = (apart < size / 2).all(-1)
    nearest = torch.zeros_like(own).scatter_(-1, apart.pow(2).sum(-1).argmin(-1, keepdim=True), True)
    own = torch.where(own.any(-1, keepdim=True), own, nearest)
    mass = (carriers * own).sum(-1).clamp(min=1e-6)
    return -(mass.log() * boxed).sum() / boxed.sum().clamp(min=1)


def corners(boxes: Tensor) -> Tensor:
    """cxcywh → xyxy, `[…, 4]`."""
    centre, size = boxes.split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def proposal_loss(logits: Tensor, span_tau: Tensor) -> Tensor:
    """BCE between the score map and the proposals' IoU with the truth, mean over valid cells."""
    count = logits.shape[-1]
    loss = functional.binary_cross_entropy_with_logits(logits, iou_map(span_tau, count), reduction="none")
    return loss[:, valid_cells(count, logits.device)].mean()


def attentive_loss(logits: Tensor, inside: Tensor) -> Tensor:
    """−Σ m log p / Σ m with p the softmax over time, mean over queries; `[B, T]` × labels `[B, T]`."""
    return -((inside * logits.log_softmax(-1)).sum(-1) / inside.sum(-1).clamp(min=1)).mean()


def csdvl_loss(out: Outputs, targets: Targets, weights: LossConfig) -> dict[str, Tensor]:
    """All parts and their weighted sum `loss`."""
    layers = slice(None) if weights.every_layer else slice(-1, None)
    l1, giou = box_losses(out.boxes[layers], targets)
    parts = {
        "l1": l1,
        "giou": giou,
        "proposals": proposal_loss(out.proposals, targets.span),
        "frames": attentive_loss(out.frame_scores, targets.frames),
        "clips": attentive_loss(out.clip_scores, targets.clips),
    }
    spatial = weights.l1 * l1 + weights.giou * giou
    if weights.carriers:
        parts["heard"] = carrier_loss(out.heard[None], out.heard_centres, targets.clip_boxes, targets.clip_boxed)
        spatial = spatial + weights.carriers * parts["heard"]
    if weights.carriers and len(out.carriers):  # the dynamic stream alone has no boxes
        parts["carriers"] = carrier_loss(out.carriers[layers].flatten(3), out.cell_centres, targets.boxes, targets.boxed)
        spatial = spatial + weights.carriers * parts["carriers"]
    attentive = weights.attentive_frame * parts["frames"] + weights.attentive_clip * parts["clips"]
    return {"loss": spatial + weights.proposals * parts["proposals"] + weights.attentive * attentive, **parts}

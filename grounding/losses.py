"""CSDVL's losses (eq. (4), (5); supplement B.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

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
    every_layer: bool = True
    """Box losses after every layer, as in DETR (ours)."""


@dataclass
class Targets:
    """What is true of B queries: boxes `[B, T_s, 4]` cxcywh, where there is one `[B, T_s]` (inside the span only),
    span `[B, 2]` in τ, labels of frames `[B, T_s]` and clips `[B, T_d]` inside the span (float 0/1)."""

    boxes: Tensor
    boxed: Tensor
    span: Tensor
    frames: Tensor
    clips: Tensor


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


def csdvl_loss(boxes: Tensor, proposals: Tensor, frame_scores: Tensor, clip_scores: Tensor, targets: Targets, weights: LossConfig) -> dict[str, Tensor]:
    """All parts and their weighted sum `loss`. `boxes` `[layers, B, T_s, 4]`."""
    l1, giou = box_losses(boxes if weights.every_layer else boxes[-1:], targets)
    parts = {
        "l1": l1,
        "giou": giou,
        "proposals": proposal_loss(proposals, targets.span),
        "frames": attentive_loss(frame_scores, targets.frames),
        "clips": attentive_loss(clip_scores, targets.clips),
    }
    spatial = weights.l1 * l1 + weights.giou * giou
    attentive = weights.attentive_frame * parts["frames"] + weights.attentive_clip * parts["clips"]
    return {"loss": spatial + weights.proposals * parts["proposals"] + weights.attentive * attentive, **parts}

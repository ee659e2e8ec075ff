"""CSDVL's losses (eq. (4), (5); supplement B.2).

A batch may be cut into parts, over processes and over time: a part's loss is its share of the whole batch's, so that the
parts' losses, and their gradients, add up to it. That takes the whole batch's `Totals`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
    cells: float = 0.0
    """Of the boxes that the cells on the object propose, each for itself (ours; for `box_head` attention): sharper boxes."""
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


class Totals(NamedTuple):
    """How many queries, boxed samples and boxed clips a whole batch has; numbers as 0-dim float tensors."""

    queries: Tensor
    boxed: Tensor
    clip_boxed: Tensor

    @classmethod
    def of(cls, targets: Targets) -> Totals:
        """Those of targets that are the whole batch; those of parts add up."""
        queries = torch.tensor(float(len(targets.span)), device=targets.span.device)
        return cls(queries, targets.boxed.sum().float(), targets.clip_boxed.sum().float())


def box_losses(boxes: Tensor, targets: Targets, total: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and GIoU of boxes `[layers, B, T_s, 4]` cxcywh, summed over layers and boxed samples, over `total` (at least 1)."""
    where = targets.boxed.expand(boxes.shape[:-1])
    l1, giou = _apart(boxes[where], targets.boxes.expand_as(boxes)[where])
    return l1.sum() / total.clamp(min=1), giou.sum() / total.clamp(min=1)


def cell_losses(proposed: Tensor, centres: Tensor, targets: Targets, total: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and GIoU of the boxes `[B, T_s, cells, 4]` that the object's own cells propose, each cell for itself.

    The mean over a sample's own cells, summed over boxed samples, over `total` (at least 1).
    """
    own = own_cells(targets.boxes, centres) & targets.boxed[..., None]
    share = (own / own.sum(-1, keepdim=True).clamp(min=1))[own]
    l1, giou = _apart(proposed[own], targets.boxes[:, :, None].expand_as(proposed)[own])
    return (l1 * share).sum() / total.clamp(min=1), (giou * share).sum() / total.clamp(min=1)


def _apart(boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and GIoU loss of each of n boxes, `[n, 4]` cxcywh."""
    return (boxes - truth).abs().sum(-1), generalized_box_iou_loss(corners(boxes), corners(truth))


def carrier_loss(carriers: Tensor, centres: Tensor, boxes: Tensor, boxed: Tensor, total: Tensor) -> Tensor:
    """−log of the attention that lies on the object's own cells, summed over layers and boxed samples, over `total` (at least 1).

    `carriers` `[layers, B, T, cells]`, cell centres `[B, cells, 2]` in [0, 1], boxes `[B, T, 4]`, boxed `[B, T]`.
    """
    mass = (carriers * own_cells(boxes, centres)).sum(-1).clamp(min=1e-6)
    return -(mass.log() * boxed).sum() / total.clamp(min=1)


def own_cells(boxes: Tensor, centres: Tensor) -> Tensor:
    """Which cells are a box's own, `[B, T, cells]`: those whose centre lies in it; where none does, the nearest one.

    Boxes `[B, T, 4]` cxcywh, cell centres `[B, cells, 2]`, both in [0, 1].
    """
    centre, size = boxes[:, :, None].split(2, -1)
    apart = (centres[:, None] - centre).abs()
    own = (apart < size / 2).all(-1)
    nearest = torch.zeros_like(own).scatter_(-1, apart.pow(2).sum(-1).argmin(-1, keepdim=True), True)
    return torch.where(own.any(-1, keepdim=True), own, nearest)


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


def csdvl_loss(out: Outputs, targets: Targets, weights: LossConfig, totals: Totals) -> dict[str, Tensor]:
    """All parts and their weighted sum `loss`, each this batch's share where `totals` are those of a larger one."""
    layers = slice(None) if weights.every_layer else slice(-1, None)
    share = len(targets.span) / totals.queries
    l1, giou = box_losses(out.boxes[layers], targets, totals.boxed)
    parts = {
        "l1": l1,
        "giou": giou,
        "proposals": share * proposal_loss(out.proposals, targets.span),
        "frames": share * attentive_loss(out.frame_scores, targets.frames),
        "clips": share * attentive_loss(out.clip_scores, targets.clips),
    }
    spatial = weights.l1 * l1 + weights.giou * giou
    if weights.carriers:
        heard = carrier_loss(out.heard[None], out.heard_centres, targets.clip_boxes, targets.clip_boxed, totals.clip_boxed)
        parts["heard"], spatial = heard, spatial + weights.carriers * heard
    if weights.carriers and len(out.carriers):  # the dynamic stream alone has no boxes
        cells = out.carriers[layers].flatten(3)
        parts["carriers"] = carrier_loss(cells, out.cell_centres, targets.boxes, targets.boxed, totals.boxed)
        spatial = spatial + weights.carriers * parts["carriers"]
    if weights.cells and len(out.cell_boxes):
        cell_l1, cell_giou = cell_losses(out.cell_boxes, out.cell_centres, targets, totals.boxed)
        parts |= {"cells_l1": cell_l1, "cells_giou": cell_giou}
        spatial = spatial + weights.cells * (weights.l1 * cell_l1 + weights.giou * cell_giou)
    attentive = weights.attentive_frame * parts["frames"] + weights.attentive_clip * parts["clips"]
    return {"loss": spatial + weights.proposals * parts["proposals"] + weights.attentive * attentive, **parts}

"""CSDVL's losses (eq. (4), (5); supplement B.2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from grounding.losses.boxes import box_losses, carrier_loss, taught_cells
from grounding.models.csdvl import Outputs
from grounding.modules.proposal_map import iou_map, valid_cells
from grounding.structures.targets import Targets, Totals
from pipeline.config import StrictModel


class LossConfig(StrictModel):
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


def proposal_loss(logits: Tensor, span_tau: Tensor) -> Tensor:
    """BCE between the score map and the proposals' IoU with the truth, mean over valid cells."""
    count = logits.shape[-1]
    loss = functional.binary_cross_entropy_with_logits(
        logits, iou_map(span_tau, count), reduction="none"
    )
    return (loss * valid_cells(count, logits.device)).sum() / (
        len(logits) * count * (count + 1) / 2
    )


def attentive_loss(logits: Tensor, inside: Tensor) -> Tensor:
    """−Σ m log p / Σ m with p the softmax over time, mean over queries; `[B, T]` × labels `[B, T]`."""
    return -((inside * logits.log_softmax(-1)).sum(-1) / inside.sum(-1).clamp(min=1)).mean()


def csdvl_loss(
    out: Outputs, targets: Targets, weights: LossConfig, totals: Totals
) -> dict[str, Tensor]:
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
        heard = carrier_loss(
            out.heard[None],
            out.heard_centres,
            targets.clip_boxes,
            targets.clip_boxed,
            totals.clip_boxed,
        )
        parts["heard"], spatial = heard, spatial + weights.carriers * heard
    if weights.carriers and len(out.carriers):  # the dynamic stream alone has no boxes
        cells = out.carriers[layers].flatten(3)
        parts["carriers"] = carrier_loss(
            cells, out.cell_centres, targets.boxes, targets.boxed, totals.boxed
        )
        spatial = spatial + weights.carriers * parts["carriers"]
    own_parts, from_cells = taught_cells(
        out.cell_boxes, out.cell_centres, targets, weights, weights.giou, totals.boxed
    )
    parts, spatial = parts | own_parts, spatial + from_cells
    attentive = weights.attentive_frame * parts["frames"] + weights.attentive_clip * parts["clips"]
    return {
        "loss": spatial + weights.proposals * parts["proposals"] + weights.attentive * attentive,
        **parts,
    }

"""CSDVL's losses (eq. (4), (5); supplement B.2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from grounding.losses.boxes import box_attention_loss, box_losses, supervised_cell_losses
from grounding.models.csdvl import CsdvlOutputs
from grounding.modules.proposal_map import proposal_iou_map, valid_proposal_mask
from grounding.structures.targets import LossNormalizers, Targets
from pipeline.config import StrictModel


class CsdvlLossConfig(StrictModel):
    """λ of eq. (4) and (5), and the weights of L_ta's two parts."""

    l1: float = 5.0
    giou: float = 2.0
    proposals: float = 5.0
    temporal_attention: float = 1.0
    temporal_attention_frame: float = 0.5
    temporal_attention_clip: float = 1.0
    box_attention: float = 0.0
    """Of the cells that carry the box, and of those a clip is heard from (ours; for `box_head` and `clip_pool` attention)."""
    cell_boxes: float = 0.0
    """Of the boxes that the cells on the object propose, each for itself (ours; for `box_head` attention): sharper boxes."""
    every_layer: bool = True
    """Box losses after every layer, as in DETR (ours)."""


def proposal_loss(logits: Tensor, span_positions: Tensor) -> Tensor:
    """BCE between the score map and the proposals' IoU with the truth, mean over valid cells."""
    count = logits.shape[-1]
    loss = functional.binary_cross_entropy_with_logits(
        logits, proposal_iou_map(span_positions, count), reduction="none"
    )
    return (loss * valid_proposal_mask(count, logits.device)).sum() / (
        len(logits) * count * (count + 1) / 2
    )


def temporal_attention_loss(logits: Tensor, inside: Tensor) -> Tensor:
    """−Σ m log p / Σ m with p the softmax over time, mean over queries; `[B, T]` × labels `[B, T]`."""
    return -((inside * logits.log_softmax(-1)).sum(-1) / inside.sum(-1).clamp(min=1)).mean()


def csdvl_loss(
    outputs: CsdvlOutputs, targets: Targets, weights: CsdvlLossConfig, normalizers: LossNormalizers
) -> dict[str, Tensor]:
    """All parts and their weighted sum `loss`, each this batch's share where `totals` are those of a larger one."""
    layers = slice(None) if weights.every_layer else slice(-1, None)
    share = len(targets.span) / normalizers.num_queries
    l1, giou = box_losses(outputs.boxes[layers], targets, normalizers.num_boxed_frames)
    parts = {
        "l1": l1,
        "giou": giou,
        "proposals": share * proposal_loss(outputs.proposal_logits, targets.span),
        "frames": share * temporal_attention_loss(outputs.frame_logits, targets.frame_labels),
        "clips": share * temporal_attention_loss(outputs.clip_logits, targets.clip_labels),
    }
    spatial = weights.l1 * l1 + weights.giou * giou
    if weights.box_attention:
        heard = box_attention_loss(
            outputs.temporal_attention[None],
            outputs.temporal_cell_centers,
            targets.clip_boxes,
            targets.clip_box_mask,
            normalizers.num_boxed_clips,
        )
        parts["temporal_cell_attention"], spatial = heard, spatial + weights.box_attention * heard
    if weights.box_attention and len(
        outputs.box_attention
    ):  # the dynamic stream alone has no boxes
        cells = outputs.box_attention[layers].flatten(3)
        parts["box_attention"] = box_attention_loss(
            cells,
            outputs.cell_centers,
            targets.boxes,
            targets.box_mask,
            normalizers.num_boxed_frames,
        )
        spatial = spatial + weights.box_attention * parts["box_attention"]
    own_parts, from_cells = supervised_cell_losses(
        outputs.cell_boxes,
        outputs.cell_centers,
        targets,
        weights,
        weights.giou,
        normalizers.num_boxed_frames,
    )
    parts, spatial = parts | own_parts, spatial + from_cells
    attentive = (
        weights.temporal_attention_frame * parts["frames"]
        + weights.temporal_attention_clip * parts["clips"]
    )
    return {
        "loss": spatial
        + weights.proposals * parts["proposals"]
        + weights.temporal_attention * attentive,
        **parts,
    }

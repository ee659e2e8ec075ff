"""Losses of CSDVL (eq. (4), (5); supplement B.2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from grounding.losses.boxes import box_attention_loss, box_losses, supervised_cell_losses
from grounding.models.csdvl import CsdvlOutputs
from grounding.modules.proposal_map import proposal_iou_map, valid_proposal_mask
from grounding.structures.targets import LossNormalizers, Targets
from pipeline.config import StrictModel


class CsdvlLossConfig(StrictModel):
    """Weights λ of eq. (4) and (5), and of the two terms of L_ta."""

    l1: float = 5.0
    """Weight of L1 of the boxes."""
    giou: float = 2.0
    """Weight of GIoU of the boxes."""
    proposals: float = 5.0
    """Weight of the proposal map's loss."""
    temporal_attention: float = 1.0
    """Weight of L_ta, the temporal attention loss."""
    temporal_attention_frame: float = 0.5
    """Weight of the frame scores in L_ta."""
    temporal_attention_clip: float = 1.0
    """Weight of the clip scores in L_ta."""
    box_attention: float = 0.0
    """Weight of the attention losses of the box head and of the clip pooling (not in the paper; for
    `box_head` and `clip_pooling` attention)."""
    cell_boxes: float = 0.0
    """Weight of the losses of the object cells' box proposals (not in the paper; for `box_head`
    attention). The loss makes boxes sharper."""
    every_layer: bool = True
    """Apply box losses after every layer, as in DETR (not in the paper)."""


def proposal_loss(logits: Tensor, span_positions: Tensor) -> Tensor:
    """Return the binary cross-entropy between the proposal map and the proposals' IoU.

    Args:
        logits: [B, T_d, T_d].
        span_positions: [B, 2], ground-truth spans in τ.

    Returns:
        The mean over valid proposals and queries.
    """
    num_clips = logits.shape[-1]

    iou_map = proposal_iou_map(span_positions, num_clips)  # [B, T_d, T_d]
    loss = functional.binary_cross_entropy_with_logits(logits, iou_map, reduction="none")

    valid = valid_proposal_mask(num_clips, logits.device)  # [T_d, T_d]
    num_valid = len(logits) * num_clips * (num_clips + 1) / 2
    return (loss * valid).sum() / num_valid


def temporal_attention_loss(logits: Tensor, inside: Tensor) -> Tensor:
    """Return −Σ m log p / Σ m, with p the softmax over time.

    Args:
        logits: [B, T].
        inside: [B, T], labels m: 1 inside the event, 0 outside.

    Returns:
        The mean over queries.
    """
    log_probabilities = logits.log_softmax(-1)
    num_inside = inside.sum(-1).clamp(min=1)  # [B]

    return -((inside * log_probabilities).sum(-1) / num_inside).mean()


def csdvl_loss(
    outputs: CsdvlOutputs, targets: Targets, weights: CsdvlLossConfig, normalizers: LossNormalizers
) -> dict[str, Tensor]:
    """Return all losses of a batch or of a micro-batch.

    The losses of micro-batches sum to the loss of the global batch.

    Args:
        outputs: Outputs of the model.
        targets: Ground truth of the same queries.
        weights: Weights λ of the losses.
        normalizers: Totals of the global batch.

    Returns:
        The losses by name; `loss` is their weighted sum.
    """
    w = weights
    batch_share = len(targets.span) / normalizers.num_queries
    layers = slice(None) if w.every_layer else slice(-1, None)

    # Boxes.
    l1, giou = box_losses(outputs.boxes[layers], targets, normalizers.num_boxed_frames)

    # Temporal scores of proposals, frames and clips.
    proposals = batch_share * proposal_loss(outputs.proposal_logits, targets.span)
    frames = batch_share * temporal_attention_loss(outputs.frame_logits, targets.frame_labels)
    clips = batch_share * temporal_attention_loss(outputs.clip_logits, targets.clip_labels)

    # Additional losses for training from scratch.
    attention_losses = _attention_losses(outputs, targets, w, normalizers)
    cell_losses, weighted_cells = supervised_cell_losses(
        outputs.cell_boxes,
        outputs.cell_centers,
        targets,
        w,
        w.giou,
        normalizers.num_boxed_frames,
    )

    # Weighted sum, eq. (4) and (5).
    spatial = w.l1 * l1 + w.giou * giou
    for attention_loss in attention_losses.values():
        spatial = spatial + w.box_attention * attention_loss
    spatial = spatial + weighted_cells
    temporal_attention = w.temporal_attention_frame * frames + w.temporal_attention_clip * clips
    loss = spatial + w.proposals * proposals + w.temporal_attention * temporal_attention

    return {
        "loss": loss,
        "l1": l1,
        "giou": giou,
        "proposals": proposals,
        "frames": frames,
        "clips": clips,
        **attention_losses,
        **cell_losses,
    }


def _attention_losses(
    outputs: CsdvlOutputs,
    targets: Targets,
    w: CsdvlLossConfig,
    normalizers: LossNormalizers,
) -> dict[str, Tensor]:
    """Return the losses of attention to the object's cells, by name; none if disabled."""
    if not w.box_attention:
        return {}

    # Pooling of a clip's cells.
    losses = {
        "temporal_cell_attention": box_attention_loss(
            outputs.temporal_attention[None],
            outputs.temporal_cell_centers,
            targets.clip_boxes,
            targets.clip_box_mask,
            normalizers.num_boxed_clips,
        )
    }

    # Box head. The dynamic stream alone has none.
    if len(outputs.box_attention):
        layers = slice(None) if w.every_layer else slice(-1, None)
        losses["box_attention"] = box_attention_loss(
            outputs.box_attention[layers].flatten(3),
            outputs.cell_centers,
            targets.boxes,
            targets.box_mask,
            normalizers.num_boxed_frames,
        )

    return losses

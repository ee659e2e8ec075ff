"""Losses of CoSTA (eq. (6), (7), (8))."""

from __future__ import annotations

from torch import Tensor

from grounding.losses.boxes import auxiliary_box_losses, box_losses
from grounding.losses.temporal import boundary_distributions, boundary_divergence, inside_loss
from grounding.models.costa import CostaOutputs
from grounding.structures.targets import LossNormalizers, Targets
from pipeline.config import StrictModel


class CostaLossConfig(StrictModel):
    """Weights λ of the losses. The paper prints none: the defaults are STCAT's for HC-STVG."""

    l1: float = 5.0
    """Weight of L1 of the boxes."""
    giou: float = 4.0
    """Weight of GIoU of the boxes."""
    start: float = 10.0
    """Weight of the start frame's divergence."""
    end: float = 10.0
    """Weight of the end frame's divergence."""
    boundary_sigma: float = 2.0
    """Width of the Gaussian targets of start and end frames, in samples."""
    encoder_presence: float = 2.0
    """Weight of L_e, the object's presence by the encoder's [CLS]."""
    decoder_presence: float = 2.0
    """Weight of L_d, the object's presence by the temporal decoder's final queries."""
    outside_weight: float = 0.3
    """Weight of the frames outside the span in L_e and L_d."""
    every_layer: bool = True
    """Apply box and boundary losses after every decoder layer (not in the paper)."""
    box_attention: float = 0.0
    """Weight of the attention losses of the box head and of the temporal queries (not in the paper;
    for training from scratch)."""
    cell_boxes: float = 0.0
    """Weight of the losses of the object cells' box proposals (not in the paper; for `box_head`
    attention)."""


def costa_loss(
    outputs: CostaOutputs, targets: Targets, weights: CostaLossConfig, normalizers: LossNormalizers
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

    # Start and end frames.
    start_target, end_target = boundary_distributions(
        targets.span, outputs.frame_positions, w.boundary_sigma
    )
    start = batch_share * boundary_divergence(outputs.start_logits[layers], start_target)
    end = batch_share * boundary_divergence(outputs.end_logits[layers], end_target)

    # Presence of the object, L_e and L_d.
    encoder_presence = batch_share * inside_loss(
        outputs.encoder_presence_logits[None], targets.frame_labels, w.outside_weight
    )
    decoder_presence = batch_share * inside_loss(
        outputs.decoder_presence_logits[None], targets.frame_labels, w.outside_weight
    )

    # Additional losses for training from scratch.
    cell_losses, weighted_cells = auxiliary_box_losses(
        outputs, targets, w, w.giou, normalizers.num_boxed_frames
    )

    # Weighted sum.
    loss = w.l1 * l1 + w.giou * giou + w.start * start + w.end * end
    loss = loss + w.encoder_presence * encoder_presence
    loss = loss + w.decoder_presence * decoder_presence
    loss = loss + weighted_cells

    return {
        "loss": loss,
        "l1": l1,
        "giou": giou,
        "start": start,
        "end": end,
        "encoder_presence": encoder_presence,
        "decoder_presence": decoder_presence,
        **cell_losses,
    }

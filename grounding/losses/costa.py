"""CoSTA's losses (eq. (6), (7), (8))."""

from __future__ import annotations

from torch import Tensor

from grounding.losses.boxes import auxiliary_box_losses, box_losses
from grounding.losses.temporal import boundary_distributions, boundary_divergence, inside_loss
from grounding.models.costa import CostaOutputs
from grounding.structures.targets import LossNormalizers, Targets
from pipeline.config import StrictModel


class CostaLossConfig(StrictModel):
    """The paper prints no λ: these are STCAT's for HC-STVG."""

    l1: float = 5.0
    giou: float = 4.0
    start: float = 10.0
    end: float = 10.0
    boundary_sigma: float = 2.0
    """Width of the Gaussian targets of first and last frames, in samples."""
    encoder_presence: float = 2.0
    decoder_presence: float = 2.0
    """Of the object's attendance: L_e by the encoder's [CLS], L_d by the last queries."""
    outside_weight: float = 0.3
    """The weight of frames outside the span in both."""
    every_layer: bool = True
    """Boxes, and first and last frames, after every layer of the decoders (ours)."""
    box_attention: float = 0.0
    """Of the cells that carry the box, and of those that the temporal queries look at (ours; from scratch)."""
    cell_boxes: float = 0.0
    """Of the boxes that the cells on the object propose, each for itself (ours; for `box_head` attention)."""


def costa_loss(
    outputs: CostaOutputs, targets: Targets, weights: CostaLossConfig, normalizers: LossNormalizers
) -> dict[str, Tensor]:
    """All parts and their weighted sum `loss`, each this batch's share where `totals` are those of a larger one."""
    w, share = weights, len(targets.span) / normalizers.num_queries
    layers = slice(None) if w.every_layer else slice(-1, None)
    l1, giou = box_losses(outputs.boxes[layers], targets, normalizers.num_boxed_frames)
    first, last = boundary_distributions(targets.span, outputs.frame_positions, w.boundary_sigma)
    parts = {
        "l1": l1,
        "giou": giou,
        "start": share * boundary_divergence(outputs.start_logits[layers], first),
        "end": share * boundary_divergence(outputs.end_logits[layers], last),
        "encoder_presence": share
        * inside_loss(
            outputs.encoder_presence_logits[None], targets.frame_labels, w.outside_weight
        ),
        "decoder_presence": share
        * inside_loss(
            outputs.decoder_presence_logits[None], targets.frame_labels, w.outside_weight
        ),
    }
    from_cells, more = auxiliary_box_losses(
        outputs, targets, w, w.giou, normalizers.num_boxed_frames
    )
    loss = w.l1 * l1 + w.giou * giou + w.start * parts["start"] + w.end * parts["end"]
    return {
        "loss": loss
        + w.encoder_presence * parts["encoder_presence"]
        + w.decoder_presence * parts["decoder_presence"]
        + more,
        **parts,
        **from_cells,
    }

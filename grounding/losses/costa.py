"""CoSTA's losses (eq. (6), (7), (8))."""

from __future__ import annotations

from torch import Tensor

from grounding.losses.boxes import box_losses, scratch_losses
from grounding.losses.temporal import divergence, gaussians, inside_loss
from grounding.models.costa import Outputs
from grounding.structures.targets import Targets, Totals
from pipeline.config import StrictModel


class CostaLossConfig(StrictModel):
    """The paper prints no λ: these are STCAT's for HC-STVG."""

    l1: float = 5.0
    giou: float = 4.0
    first: float = 10.0
    last: float = 10.0
    sigma: float = 2.0
    """Width of the Gaussian targets of first and last frames, in samples."""
    fused: float = 2.0
    decoded: float = 2.0
    """Of the object's attendance: L_e by the encoder's [CLS], L_d by the last queries."""
    background: float = 0.3
    """The weight of frames outside the span in both."""
    every_layer: bool = True
    """Boxes, and first and last frames, after every layer of the decoders (ours)."""
    carriers: float = 0.0
    """Of the cells that carry the box, and of those that the temporal queries look at (ours; from scratch)."""
    cells: float = 0.0
    """Of the boxes that the cells on the object propose, each for itself (ours; for `box_head` attention)."""


def costa_loss(
    out: Outputs, targets: Targets, weights: CostaLossConfig, totals: Totals
) -> dict[str, Tensor]:
    """All parts and their weighted sum `loss`, each this batch's share where `totals` are those of a larger one."""
    w, share = weights, len(targets.span) / totals.queries
    layers = slice(None) if w.every_layer else slice(-1, None)
    l1, giou = box_losses(out.boxes[layers], targets, totals.boxed)
    first, last = gaussians(targets.span, out.frame_tau, w.sigma)
    parts = {
        "l1": l1,
        "giou": giou,
        "first": share * divergence(out.first[layers], first),
        "last": share * divergence(out.last[layers], last),
        "fused": share * inside_loss(out.fused[None], targets.frames, w.background),
        "decoded": share * inside_loss(out.decoded[None], targets.frames, w.background),
    }
    from_cells, more = scratch_losses(out, targets, w, w.giou, totals.boxed)
    loss = w.l1 * l1 + w.giou * giou + w.first * parts["first"] + w.last * parts["last"]
    return {
        "loss": loss + w.fused * parts["fused"] + w.decoded * parts["decoded"] + more,
        **parts,
        **from_cells,
    }

"""Losses of boxes, and of what carries them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from grounding.modules.box_ops import corners, giou
from grounding.modules.frame_outputs import FrameOutputs
from grounding.modules.roi import own_cells
from grounding.structures.targets import Targets


def box_losses(boxes: Tensor, targets: Targets, total: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and GIoU of boxes `[layers, B, T_s, 4]` cxcywh, summed over layers and boxed samples, over `total` (at least 1)."""
    return _summed(boxes, targets.boxes, targets.boxed.to(boxes.dtype), total)


def cell_losses(
    proposed: Tensor, centres: Tensor, targets: Targets, total: Tensor
) -> tuple[Tensor, Tensor]:
    """L1 and GIoU of the boxes `[B, T_s, cells, 4]` that the object's own cells propose, each cell for itself.

    The mean over a sample's own cells, summed over boxed samples, over `total` (at least 1).
    """
    own = own_cells(targets.boxes, centres) & targets.boxed[..., None]
    return _summed(
        proposed, targets.boxes[:, :, None], own / own.sum(-1, keepdim=True).clamp(min=1), total
    )


class CellWeights(Protocol):
    """The weights of carriers and cells, and of L1; 0 for what is not wanted."""

    @property
    def carriers(self) -> float: ...
    @property
    def cells(self) -> float: ...
    @property
    def l1(self) -> float: ...


def scratch_losses(
    out: FrameOutputs, targets: Targets, w: CellWeights, overlap: float, total: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """What training from scratch adds (ours): the parts, and their weighted sum; `overlap` is the weight of GIoU beside `w.l1`."""
    parts, weighted = dict[str, Tensor](), total.new_zeros(())
    if w.carriers:
        parts["carriers"], parts["heard"] = (
            carrier_loss(cells, out.cell_centres, targets.boxes, targets.boxed, total)
            for cells in (out.carriers, out.heard)
        )
        weighted = weighted + w.carriers * (parts["carriers"] + parts["heard"])
    own_parts, from_cells = taught_cells(
        out.cell_boxes, out.cell_centres, targets, w, overlap, total
    )
    return parts | own_parts, weighted + from_cells


def taught_cells(
    proposed: Tensor,
    centres: Tensor,
    targets: Targets,
    w: CellWeights,
    overlap: float,
    total: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    """`cell_losses` where they are wanted and cells propose boxes: the parts, and their weighted sum; else none, and 0."""
    if not (w.cells and len(proposed)):
        return {}, total.new_zeros(())
    l1, giou = cell_losses(proposed, centres, targets, total)
    return {"cells_l1": l1, "cells_giou": giou}, w.cells * (w.l1 * l1 + overlap * giou)


def _summed(boxes: Tensor, truth: Tensor, share: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and GIoU loss of boxes `[…, 4]` cxcywh, each times its share (0 for those that no truth is known of), summed, over `total`.

    All are computed: to pick some out a GPU would have to be waited for.
    """
    l1, overlap = (boxes - truth).abs().sum(-1), 1 - giou(corners(boxes), corners(truth))
    return (l1 * share).sum() / total.clamp(min=1), (overlap * share).sum() / total.clamp(min=1)


def carrier_loss(
    carriers: Tensor, centres: Tensor, boxes: Tensor, boxed: Tensor, total: Tensor
) -> Tensor:
    """−log of the attention that lies on the object's own cells, summed over layers and boxed samples, over `total` (at least 1).

    `carriers` `[layers, B, T, cells]`, cell centres `[B, cells, 2]` in [0, 1], boxes `[B, T, 4]`, boxed `[B, T]`.
    """
    mass = (carriers * own_cells(boxes, centres)).sum(-1).clamp(min=1e-6)
    return -(mass.log() * boxed).sum() / total.clamp(min=1)

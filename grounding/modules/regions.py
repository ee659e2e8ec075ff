"""Boxes on maps: which cells are a box's own, and what lies in it (CG-STVG, sec. 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align

BINS = 7
"""RoIAlign's output is 7×7."""
LEAST = 1e-3
"""Cells that a box is wide and high at least: RoIAlign takes no sample in one without area."""


def roi_tokens(maps: Tensor, boxes: Tensor, size: Tensor) -> Tensor:
    """RoIAlign, then the mean over its bins: maps `[n, C, H, W]`, boxes `[n, 4]` cxcywh in [0, 1] → `[n, C]`.

    `size` `[n, 2]` are the maps' rows and columns that are not padding, which repeats the last of them (`edge_filled`): boxes are
    shares of those. What of a box lies outside is cut off; a box of no area takes what is at its place. No gradient reaches boxes.
    """
    limit = size.flip(-1).repeat(1, 2).float()
    inside = torch.minimum((corners(boxes.detach().float()) * limit).clamp(min=0), limit)
    inside = torch.cat([inside[:, :2], torch.maximum(inside[:, 2:], inside[:, :2] + LEAST)], -1)
    number = torch.arange(len(maps), device=maps.device, dtype=torch.float32)[:, None]
    return roi_align(maps.float(), torch.cat([number, inside], -1), BINS, aligned=True).mean((2, 3)).to(maps.dtype)


def edge_filled(maps: Tensor, size: Tensor) -> Tensor:
    """Maps `[n, C, H, W]` whose padding, beyond `size` `[n, 2]` rows and columns, repeats their last row and column: RoIAlign mixes
    a box' edge with what lies half a cell beyond it."""
    rows, columns = (
        torch.minimum(torch.arange(side, device=maps.device), size[:, axis : axis + 1] - 1) for axis, side in enumerate(maps.shape[2:])
    )
    cells = (rows[:, :, None] * maps.shape[3] + columns[:, None]).flatten(1)
    return maps.flatten(2).gather(2, cells[:, None].expand(-1, maps.shape[1], -1)).unflatten(2, maps.shape[2:])


def mean_tokens(maps: Tensor, boxes: Tensor, centres: Tensor) -> Tensor:
    """The mean of the boxes' own cells: maps `[n, C, H, W]`, boxes `[n, 4]` cxcywh, cells' centres `[n, H·W, 2]` → `[n, C]`."""
    own = own_cells(boxes.detach()[:, None], centres)[:, 0].to(maps.dtype)
    return torch.einsum("nct,nt->nc", maps.flatten(2), own / own.sum(-1, keepdim=True))


def own_cells(boxes: Tensor, centres: Tensor) -> Tensor:
    """Which cells are a box's own, `[B, T, cells]`: those whose centre lies in it; where none does, the nearest one.

    Boxes `[B, T, 4]` cxcywh, cell centres `[B, cells, 2]`, both in [0, 1]; cells with centres beyond 1 are padding, and nobody's.
    """
    centres = centres.masked_fill((centres > 1).any(-1, keepdim=True), torch.inf)
    centre, size = boxes[:, :, None].split(2, -1)
    apart = (centres[:, None] - centre).abs()
    own = (apart < size / 2).all(-1)
    nearest = torch.zeros_like(own).scatter_(-1, apart.pow(2).sum(-1).argmin(-1, keepdim=True), True)
    return torch.where(own.any(-1, keepdim=True), own, nearest)


def corners(boxes: Tensor) -> Tensor:
    """cxcywh → xyxy, `[…, 4]`."""
    centre, size = boxes.split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def iou(ours: Tensor, theirs: Tensor) -> Tensor:
    """IoU of n pairs of boxes xyxy, `[n, 4]` each → `[n]`."""
    least, most = torch.maximum(ours[:, :2], theirs[:, :2]), torch.minimum(ours[:, 2:], theirs[:, 2:])
    shared = (most - least).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (ours, theirs)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-9)

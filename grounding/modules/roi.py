"""Weights that pool the cells of a feature map inside boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grounding.modules.box_ops import cxcywh_to_xyxy

ROI_BINS = 7
"""RoIAlign's output is 7×7."""


MIN_SIDE = 1e-3
"""Cells that a box is wide and high at least."""


def roi_align_weights(boxes: Tensor, size: Tensor, shape: tuple[int, int]) -> Tensor:
    """How much of each cell of maps of `shape` (rows, columns) is in the mean over the bins of RoIAlign: boxes `[n, 4]` cxcywh in
    [0, 1] → `[n, H·W]`, which sums to 1.

    RoIAlign takes its samples on a grid, each between four cells, so a cell's weight is its row's times its column's. `size` `[n, 2]`
    are the maps' rows and columns that are not padding: boxes are shares of those, and beyond the last of them it counts again. What
    of a box lies outside is cut off; a box of no area takes what is at its place. No gradient reaches boxes.
    """
    limit = size.flip(-1).float()
    low, high = (
        torch.minimum((corner * limit).clamp(min=0), limit)
        for corner in cxcywh_to_xyxy(boxes.detach().float()).split(2, -1)
    )
    columns, rows = (
        _side_weights(low[:, axis], high[:, axis], limit[:, axis], shape[1 - axis])
        for axis in (0, 1)
    )
    return (rows[:, :, None] * columns[:, None]).flatten(1)


def _side_weights(low: Tensor, high: Tensor, size: Tensor, cells: int) -> Tensor:
    """The weights of rows or columns `[n, cells]` in boxes from `low` to `high` `[n]`, in cells: samples are as many in every bin, and
    no further apart than cells are.
    """
    length = (high - low).clamp(min=MIN_SIDE)
    samples = ROI_BINS * (length / ROI_BINS).ceil()
    number = torch.arange(ROI_BINS * math.ceil(cells / ROI_BINS), device=low.device)
    at = (
        low[:, None] + (number + 0.5) * (length / samples)[:, None] - 0.5
    )  # cell c has its middle at c
    at = torch.minimum(at.clamp(min=0), size[:, None] - 1)
    near = (1 - (at[..., None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0)
    return (near * (number < samples[:, None])[..., None]).sum(1) / samples[:, None]


def mean_pool_weights(boxes: Tensor, centers: Tensor) -> Tensor:
    """The boxes' own cells, all alike: boxes `[n, 4]` cxcywh, cells' centres `[n, H·W, 2]` → `[n, H·W]`, which sums to 1."""
    own = cells_in_box(boxes.detach()[:, None], centers)[:, 0].float()
    return own / own.sum(-1, keepdim=True)


def cells_in_box(boxes: Tensor, centers: Tensor) -> Tensor:
    """Which cells are a box's own, `[B, T, cells]`: those whose centre lies in it; where none does, the nearest one.

    Boxes `[B, T, 4]` cxcywh, cell centres `[B, cells, 2]`, both in [0, 1]; cells with centres beyond 1 are padding, and nobody's.
    """
    centers = centers.masked_fill((centers > 1).any(-1, keepdim=True), torch.inf)
    centre, size = boxes[:, :, None].split(2, -1)
    apart = (centers[:, None] - centre).abs()
    own = (apart < size / 2).all(-1)
    nearest = torch.zeros_like(own).scatter_(
        -1, apart.pow(2).sum(-1).argmin(-1, keepdim=True), True
    )
    return torch.where(own.any(-1, keepdim=True), own, nearest)

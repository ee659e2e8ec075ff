"""Pooling weights of feature map cells inside boxes (CG-STVG, sec. 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grounding.modules.box_ops import cxcywh_to_xyxy

ROI_BINS = 7
"""RoIAlign's output has 7×7 bins."""

MIN_SIDE = 1e-3
"""Minimum width and height of a box, in cells."""


def roi_align_weights(boxes: Tensor, size: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the weight of each cell in the mean over RoIAlign's bins.

    RoIAlign samples a grid of points, each interpolated between four cells. A cell's weight is
    therefore the product of a row weight and a column weight. Parts of a box outside the picture
    are cut off. A box without area takes the feature at its position. Boxes get no gradient.

    Args:
        boxes: [n, 4], cxcywh in [0, 1] of the picture.
        size: [n, 2], (rows, columns) of each map that are no padding. Samples beyond the last
            row or column repeat the last one.
        shape: (H, W), rows and columns of the maps with padding.

    Returns:
        [n, H·W], sums to 1.
    """
    rows, columns = shape

    # Corners in cells, cut at the borders of the picture.
    limit = size.flip(-1).float()  # [n, 2], (columns, rows)
    low_share, high_share = cxcywh_to_xyxy(boxes.detach().float()).split(2, -1)
    low = torch.minimum((low_share * limit).clamp(min=0), limit)  # [n, 2], (x, y)
    high = torch.minimum((high_share * limit).clamp(min=0), limit)  # [n, 2], (x, y)

    column_weights = _axis_weights(low[:, 0], high[:, 0], limit[:, 0], columns)  # [n, W]
    row_weights = _axis_weights(low[:, 1], high[:, 1], limit[:, 1], rows)  # [n, H]

    return (row_weights[:, :, None] * column_weights[:, None]).flatten(1)


def _axis_weights(low: Tensor, high: Tensor, size: Tensor, cells: int) -> Tensor:
    """Return RoIAlign's weights `[n, cells]` along one axis, for boxes `[low, high)` in cells.

    All bins have the same number of samples, at most one cell apart.
    """
    length = (high - low).clamp(min=MIN_SIDE)  # [n]
    num_samples = ROI_BINS * (length / ROI_BINS).ceil()  # [n]

    # Sample positions; the center of cell c is at c.
    max_samples = ROI_BINS * math.ceil(cells / ROI_BINS)
    sample = torch.arange(max_samples, device=low.device)  # [S]
    spacing = (length / num_samples)[:, None]  # [n, 1]
    position = low[:, None] + (sample + 0.5) * spacing - 0.5  # [n, S]
    clamped = torch.minimum(position.clamp(min=0), size[:, None] - 1)

    # Linear interpolation between the two nearest cells.
    cell = torch.arange(cells, device=low.device)
    distance = (clamped[..., None] - cell).abs()  # [n, S, cells]
    weight = (1 - distance).clamp(min=0)

    is_sample = sample < num_samples[:, None]  # [n, S]
    return (weight * is_sample[..., None]).sum(1) / num_samples[:, None]


def mean_pool_weights(boxes: Tensor, centers: Tensor) -> Tensor:
    """Return equal weights for the cells inside each box; boxes get no gradient.

    Args:
        boxes: [n, 4], cxcywh in [0, 1].
        centers: [n, H·W, 2], cell centers (x, y) in [0, 1]; beyond 1 at padding.

    Returns:
        [n, H·W], sums to 1.
    """
    inside = cells_in_box(boxes.detach()[:, None], centers)[:, 0].float()
    return inside / inside.sum(-1, keepdim=True)


def cells_in_box(boxes: Tensor, centers: Tensor) -> Tensor:
    """Return which cells lie in each box.

    A cell lies in a box if its center does. A box without a cell center takes the nearest cell.

    Args:
        boxes: [B, T, 4], cxcywh in [0, 1].
        centers: [B, cells, 2], cell centers (x, y) in [0, 1]. Cells with a center beyond 1 are
            padding and lie in no box.

    Returns:
        [B, T, cells], bool.
    """
    # At infinity, padding is outside of every box and never the nearest cell.
    is_padding = (centers > 1).any(-1, keepdim=True)
    centers = centers.masked_fill(is_padding, torch.inf)

    box_center, box_size = boxes[:, :, None].split(2, -1)  # [B, T, 1, 2] each
    distance = (centers[:, None] - box_center).abs()  # [B, T, cells, 2]
    inside = (distance < box_size / 2).all(-1)  # [B, T, cells]

    nearest_index = distance.pow(2).sum(-1).argmin(-1, keepdim=True)  # [B, T, 1]
    nearest = torch.zeros_like(inside).scatter_(-1, nearest_index, True)

    has_cells = inside.any(-1, keepdim=True)  # [B, T, 1]
    return torch.where(has_cells, inside, nearest)

"""Sine position encodings of time, cells and boxes, and interpolated learned positions.

Sine encodings follow "Attention Is All You Need", and DETR in two dimensions. They fit any length
and any map size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0
"""Ratio of the longest wavelength to the shortest, in the limit of a large width."""

TIME_SCALE = 100.0
"""Length of a whole segment in steps of the classic sine positions."""


def sinusoidal(position: Tensor, hidden_dim: int) -> Tensor:
    """Encode positions by sines and cosines at d/2 wavelengths.

    Args:
        position: […], in radians at the shortest wavelength.
        hidden_dim: Width d of the encoding.

    Returns:
        […, d], float32, sine and cosine alternating.
    """
    index = torch.arange(hidden_dim, device=position.device)  # [d]
    pair = torch.div(index, 2, rounding_mode="floor")  # [d]: 0, 0, 1, 1, …
    frequency = TEMPERATURE ** (-2 * pair / hidden_dim)

    phase = position[..., None].float() * frequency  # […, d]
    sine = phase[..., 0::2].sin()  # […, d/2]
    cosine = phase[..., 1::2].cos()  # […, d/2]

    return torch.stack([sine, cosine], -1).flatten(-2)


def sinusoidal_time(positions: Tensor, hidden_dim: int) -> Tensor:
    """Encode positions in time.

    Args:
        positions: […], τ in the segment, in [0, 1).
        hidden_dim: Width d of the encoding.

    Returns:
        […, d].
    """
    return sinusoidal(positions * TIME_SCALE, hidden_dim)


def sinusoidal_2d(xy: Tensor, hidden_dim: int) -> Tensor:
    """Encode cells by DETR's normalized convention: row r of H has y = (r + 1)/H, times 2π.

    Args:
        xy: […, 2], far corners of cells as shares of the picture's width and height.
        hidden_dim: Width d of the encoding.

    Returns:
        […, d], the first half for y, the second half for x.
    """
    x, y = (2 * math.pi * xy).unbind(-1)
    half_dim = hidden_dim // 2

    return torch.cat([sinusoidal(y, half_dim), sinusoidal(x, half_dim)], -1)


def sinusoidal_box(boxes: Tensor, hidden_dim: int) -> Tensor:
    """Encode each of a box's four numbers at d/4 wavelengths, scaled as DETR scales cells.

    Args:
        boxes: […, 4], in [0, 1].
        hidden_dim: Width d of the encoding of a cell; a box gets twice the width.

    Returns:
        […, 2d].
    """
    return sinusoidal(2 * math.pi * boxes, hidden_dim // 2).flatten(-2)


def cell_corners(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Return the far (lower right) corners of a map's cells, in cells.

    Args:
        rows: Number of rows of the map.
        columns: Number of columns of the map.
        device: Device of the result; None for the default device.

    Returns:
        [rows, columns, 2], (x, y), float32.
    """
    y = torch.arange(1, rows + 1, device=device, dtype=torch.float32)
    x = torch.arange(1, columns + 1, device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def interpolate_learned_positions(table: Tensor, positions: Tensor) -> Tensor:
    """Interpolate learned positions linearly in time, so that no two frames share a position.

    Args:
        table: [T, d]; row k is the position at the middle of the k-th of T equal parts.
        positions: […], τ in the segment, in [0, 1).

    Returns:
        […, d].
    """
    last = len(table) - 1

    # Before the first and after the last middle, the outermost row is used.
    row = (positions * len(table) - 0.5).clamp(0, last)
    lower = row.long()
    upper = (lower + 1).clamp(max=last)

    weight = (row - lower)[..., None].to(table.dtype)
    return torch.lerp(table[lower], table[upper], weight)


def cell_positions(
    size: Tensor, rows: int, columns: int, hidden_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return position encodings, mask and centers of the cells of padded maps.

    Args:
        size: [B, 2], (rows, columns) of each map that are no batch padding.
        rows: Number of rows with batch padding.
        columns: Number of columns with batch padding.
        hidden_dim: Width d of the encoding.

    Returns:
        positions: [B, rows·columns, d], sine encodings.
        mask: [B, rows·columns], True at cells that are no padding.
        centers: [B, rows·columns, 2], (x, y) as shares of the picture; beyond 1 at padding.
    """
    corners = cell_corners(rows, columns, size.device)  # [rows, columns, 2]
    extent = size.flip(-1)[:, None, None, :].float()  # [B, 1, 1, 2], (columns, rows)

    positions = sinusoidal_2d(corners / extent, hidden_dim)  # [B, rows, columns, d]
    mask = (corners <= extent).all(-1)  # [B, rows, columns]
    centers = (corners - 0.5) / extent  # [B, rows, columns, 2]

    return positions.flatten(1, 2), mask.flatten(1, 2), centers.flatten(1, 2)

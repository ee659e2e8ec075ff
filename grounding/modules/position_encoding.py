"""Fixed sine positions (Attention is All You Need; DETR for two dimensions). They fit any length and map size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0
TIME_SCALE = 100.0
"""A whole segment is as long as this many steps of the classic sine positions."""


def sinusoidal(position: Tensor, hidden_dim: int) -> Tensor:
    """`[…]` → `[…, d]`: sin and cos, alternating, of the position at d/2 wavelengths."""
    wave = TEMPERATURE ** (
        -2
        * torch.div(torch.arange(hidden_dim, device=position.device), 2, rounding_mode="floor")
        / hidden_dim
    )
    phase = position[..., None].float() * wave
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], -1).flatten(-2)


def sinusoidal_time(positions: Tensor, hidden_dim: int) -> Tensor:
    """Places in a segment `[…]` in [0, 1) → `[…, d]`."""
    return sinusoidal(positions * TIME_SCALE, hidden_dim)


def sinusoidal_2d(xy: Tensor, hidden_dim: int) -> Tensor:
    """Far corners of cells `[…, 2]` as shares of the picture's width and height → `[…, d]`, first y, then x.

    This is DETR's normalised convention: the cell in row r of H has y = (r + 1)/H, times 2π.
    """
    x, y = (2 * math.pi * xy).unbind(-1)
    return torch.cat([sinusoidal(y, hidden_dim // 2), sinusoidal(x, hidden_dim // 2)], -1)


def sinusoidal_box(boxes: Tensor, hidden_dim: int) -> Tensor:
    """Boxes `[…, 4]` in [0, 1] → `[…, 2d]`: each of the four numbers at d/4 wavelengths, as DETR places cells."""
    return sinusoidal(2 * math.pi * boxes, hidden_dim // 2).flatten(-2)


def cell_corners(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Far corners of a map's cells, in cells: `[rows, columns, 2]` in (x, y)."""
    y, x = (
        torch.arange(1, side + 1, device=device, dtype=torch.float32) for side in (rows, columns)
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def interpolate_learned_positions(table: Tensor, positions: Tensor) -> Tensor:
    """Learned positions at places in a segment: row k of `table` `[T, d]` stands for the middle of the k-th of T equal parts, and
    between middles they are interpolated linearly, so that no two frames share one. τ `[…]` → `[…, d]`.
    """
    place = (positions * len(table) - 0.5).clamp(0, len(table) - 1)
    lower = place.long()
    upper = (lower + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[lower], table[upper], (place - lower)[..., None].to(table.dtype))


def cell_positions(
    size: Tensor, rows: int, columns: int, hidden_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The cells of maps of which `size` `[B, 2]` (rows, columns) is no padding: sine positions `[B, rows·columns, d]`, which
    are not padding `[B, rows·columns]`, and their centres `[B, rows·columns, 2]` (x, y) as shares of the picture.
    """
    corner = cell_corners(rows, columns, size.device)
    whole = size.flip(-1)[:, None, None, :].float()
    parts = (
        sinusoidal_2d(corner / whole, hidden_dim),
        (corner <= whole).all(-1),
        (corner - 0.5) / whole,
    )
    positions, mask, centres = (part.flatten(1, 2) for part in parts)
    return positions, mask, centres

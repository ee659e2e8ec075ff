"""Bringing the two streams' space and time together (supplement B.1): maps into the motion square, frames to clips."""

from __future__ import annotations

import torch
from torch import Tensor


def resize_matrix(target: int, valid: Tensor, padded: int, low: Tensor, high: Tensor) -> Tensor:
    """Bilinear resizing along one axis as a matrix `[B, target, padded]`, zeros outside the picture.

    The picture's `valid` `[B]` cells lie in `[low, high)` `[B]` of the square (shares of its side); the square, with
    zeros around the picture, is resized to `target` cells as torch's bilinear `interpolate` does without
    antialiasing. Columns at and beyond `valid` (batch padding) are zero.
    """
    device = low.device
    side = valid / (high - low)
    source = (torch.arange(target, device=device) + 0.5) / target * side[:, None] - 0.5
    source = torch.minimum(source.clamp(min=0), side[:, None] - 1) - (low * side)[:, None]
    cells = torch.arange(padded, device=device)
    weight = (1 - (source[..., None] - cells).abs()).clamp(min=0)
    return weight * (cells < valid[:, None])[:, None, :]


def to_square_grid(maps: Tensor, valid: Tensor, square: Tensor, rows: int, columns: int) -> Tensor:
    """Place maps `[B, T, H, W]` into their padded squares and resize to `[B, T, rows, columns]`.

    `valid` `[B, 2]` holds the (rows, columns) of each map that are not batch padding, `square` `[B, 4]` where the
    picture lies in its square (xyxy shares).
    """
    vertical = resize_matrix(rows, valid[:, 0], maps.shape[2], square[:, 1], square[:, 3])
    horizontal = resize_matrix(columns, valid[:, 1], maps.shape[3], square[:, 0], square[:, 2])
    return torch.einsum("brh,bthw,bcw->btrc", vertical, maps.float(), horizontal)


def from_square_grid(maps: Tensor, square: Tensor, size: Tensor, rows: int, columns: int) -> Tensor:
    """Motion maps `[B, T, h, w, C]` on the cells of the picture's own map, `[B, T, rows, columns, C]`: bilinear between the
    cells whose centres lie in the picture, which takes `square` `[B, 4]` (xyxy shares) of a motion map.

    `size` `[B, 2]` are the rows and columns that are not batch padding; the others are zero.
    """
    vertical = crop_resize_matrix(rows, size[:, 0], maps.shape[2], square[:, 1], square[:, 3])
    horizontal = crop_resize_matrix(columns, size[:, 1], maps.shape[3], square[:, 0], square[:, 2])
    return torch.einsum(
        "brh,bcw,bthwx->btrcx", vertical.to(maps.dtype), horizontal.to(maps.dtype), maps
    )


def crop_resize_matrix(target: int, valid: Tensor, count: int, low: Tensor, high: Tensor) -> Tensor:
    """Bilinear resizing of the part `[low, high)` `[B]` (shares) of `count` cells to `valid` `[B]` ones, as a matrix
    `[B, target, count]`. Only cells whose centre lies in the part are taken; where none does, the nearest one.
    """
    cell = (torch.arange(count, device=low.device) + 0.5) / count
    place = torch.arange(target, device=low.device)
    wanted = low[:, None] + (place + 0.5) / valid[:, None] * (high - low)[:, None]
    inside = (cell > low[:, None] - 1e-6) & (cell < high[:, None] - 1e-6)
    nearest = (cell - (low + high)[:, None] / 2).abs().argmin(-1)
    inside |= ~inside.any(-1, keepdim=True) & (
        torch.arange(count, device=low.device) == nearest[:, None]
    )
    first, last = cell[inside.int().argmax(-1)], cell[count - 1 - inside.flip(-1).int().argmax(-1)]
    wanted = torch.minimum(torch.maximum(wanted, first[:, None]), last[:, None])
    weight = (1 - (wanted[..., None] - cell).abs() * count).clamp(min=0)
    return weight * (place < valid[:, None])[..., None]


def square_cell_coordinates(
    square: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the cells of a map over the square lie in the picture: far corners and centres `[B, rows, columns, 2]` as
    shares of the picture, and whether a cell's centre lies in the picture, `[0, 1)` both ways, `[B, rows, columns]`.
    """
    y = torch.arange(rows, device=square.device)[:, None].expand(rows, columns)
    x = torch.arange(columns, device=square.device)[None, :].expand(rows, columns)
    extent = square[:, 2:] - square[:, :2]

    def in_picture(shift: float) -> Tensor:
        share = torch.stack([(x + shift) / columns, (y + shift) / rows], -1)
        return (share - square[:, None, None, :2]) / extent[:, None, None]

    centre = in_picture(0.5)
    return in_picture(1.0), centre, ((centre > -1e-6) & (centre < 1 - 1e-6)).all(-1)


def frame_clip_indices(frame_positions: Tensor, clips: int) -> Tensor:
    """The clip ⌊clips·τ⌋ each frame belongs to; `[B, T_s]` → `[B, T_s]`."""
    return (frame_positions * clips).long().clamp(0, clips - 1)


def frames_to_clips_matrix(frame_positions: Tensor, clips: int) -> Tensor:
    """The averaging matrix `[B, clips, T_s]`: the mean of a clip's frames, or its nearest frame where it has none."""
    own = (
        frame_clip_indices(frame_positions, clips)[:, None, :]
        == torch.arange(clips, device=frame_positions.device)[:, None]
    )
    middle = (torch.arange(clips, device=frame_positions.device) + 0.5) / clips
    nearest = (frame_positions[:, None, :] - middle[:, None]).abs().argmin(-1, keepdim=True)
    alone = torch.zeros_like(own).scatter_(-1, nearest, True)
    chosen = torch.where(own.any(-1, keepdim=True), own, alone).float()
    return chosen / chosen.sum(-1, keepdim=True)

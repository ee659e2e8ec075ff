"""Alignment of the appearance and motion streams in space and time (supplement B.1).

Motion maps cover a padded square around the picture. Appearance maps cover the picture alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resize_matrix(target: int, valid: Tensor, padded: int, low: Tensor, high: Tensor) -> Tensor:
    """Return the matrix that pads the cells of one axis to the square and resizes the square.

    The weights are those of torch's bilinear `interpolate` without antialiasing. Cells of the
    square outside the picture count as zeros. Columns at and beyond `valid` (batch padding) are
    zero.

    Args:
        target: Number of cells after resizing.
        valid: [B], cells of the axis that are no batch padding; they fill `[low, high)`.
        padded: Number of cells of the axis with batch padding.
        low: [B], where the picture begins in the square, as a share of the square's side.
        high: [B], where the picture ends in the square, as a share of the square's side.

    Returns:
        [B, target, padded], the weight of every input cell in every output cell.
    """
    device = low.device

    # Cells of the picture along a whole side of the square.
    side = valid / (high - low)  # [B]

    # Centers of the output cells in cells of the square, clamped as `interpolate` clamps.
    shares = (torch.arange(target, device=device) + 0.5) / target  # [target]
    source = shares * side[:, None] - 0.5  # [B, target]
    clamped = torch.minimum(source.clamp(min=0), side[:, None] - 1)

    # The same centers in cells of the picture.
    position = clamped - (low * side)[:, None]

    # Bilinear weights fall linearly to zero at a distance of one cell.
    cells = torch.arange(padded, device=device)  # [padded]
    distance = (position[..., None] - cells).abs()  # [B, target, padded]
    weight = (1 - distance).clamp(min=0)

    is_valid = cells < valid[:, None]  # [B, padded]
    return weight * is_valid[:, None, :]


def to_square_grid(maps: Tensor, valid: Tensor, square: Tensor, rows: int, columns: int) -> Tensor:
    """Place maps of the picture into padded squares and resize the squares.

    Args:
        maps: [B, T, H, W], zero-padded to the batch's largest map.
        valid: [B, 2], (rows, columns) of each map that are no batch padding.
        square: [B, 4], the picture in its square, xyxy as shares of the square's side.
        rows: Number of rows after resizing.
        columns: Number of columns after resizing.

    Returns:
        [B, T, rows, columns], float32.
    """
    height = maps.shape[2]
    width = maps.shape[3]

    vertical = resize_matrix(rows, valid[:, 0], height, square[:, 1], square[:, 3])
    horizontal = resize_matrix(columns, valid[:, 1], width, square[:, 0], square[:, 2])

    return torch.einsum("brh,bthw,bcw->btrc", vertical, maps.float(), horizontal)


def from_square_grid(maps: Tensor, square: Tensor, size: Tensor, rows: int, columns: int) -> Tensor:
    """Crop the picture from motion maps of the square and resize the crop to the picture's map.

    Args:
        maps: [B, T, h, w, C], motion maps of the padded square.
        square: [B, 4], the picture in its square, xyxy as shares of the square's side.
        size: [B, 2], (rows, columns) of each output map that are no batch padding.
        rows: Number of rows of the output with batch padding.
        columns: Number of columns of the output with batch padding.

    Returns:
        [B, T, rows, columns, C], bilinear between cells with a center inside the picture. Batch
        padding is zero.
    """
    height = maps.shape[2]
    width = maps.shape[3]

    vertical = crop_resize_matrix(rows, size[:, 0], height, square[:, 1], square[:, 3])
    horizontal = crop_resize_matrix(columns, size[:, 1], width, square[:, 0], square[:, 2])

    return torch.einsum(
        "brh,bcw,bthwx->btrcx", vertical.to(maps.dtype), horizontal.to(maps.dtype), maps
    )


def crop_resize_matrix(target: int, valid: Tensor, count: int, low: Tensor, high: Tensor) -> Tensor:
    """Return the matrix that crops one axis and resizes the crop bilinearly.

    Only input cells with a center inside the crop are used. If no center is inside, the cell
    nearest to the middle of the crop is used.

    Args:
        target: Number of output cells with batch padding.
        valid: [B], output cells that are no batch padding; they cover the crop.
        count: Number of input cells.
        low: [B], begin of the crop as a share of the axis.
        high: [B], end of the crop as a share of the axis.

    Returns:
        [B, target, count], the weight of every input cell in every output cell.
    """
    device = low.device
    cells = torch.arange(count, device=device)  # [count]
    centers = (cells + 0.5) / count  # [count]
    outputs = torch.arange(target, device=device)  # [target]

    # Centers of the output cells as shares of the input axis.
    output_centers = (outputs + 0.5) / valid[:, None]  # [B, target], shares of the crop
    position = low[:, None] + output_centers * (high - low)[:, None]  # [B, target]

    # Input cells inside the crop. The tolerance absorbs rounding of the shares.
    after_low = centers > low[:, None] - 1e-6  # [B, count]
    before_high = centers < high[:, None] - 1e-6  # [B, count]
    inside = after_low & before_high  # [B, count]

    # A crop without a cell center takes the nearest cell.
    middle = (low + high)[:, None] / 2  # [B, 1]
    nearest = (centers - middle).abs().argmin(-1)  # [B]
    is_nearest = cells == nearest[:, None]  # [B, count]
    is_empty = ~inside.any(-1, keepdim=True)  # [B, 1]
    inside |= is_empty & is_nearest

    # Positions beyond the outermost input cells take those cells' values.
    first_index = inside.int().argmax(-1)  # [B]
    last_index = count - 1 - inside.flip(-1).int().argmax(-1)  # [B]
    first = centers[first_index]  # [B]
    last = centers[last_index]  # [B]
    clamped = torch.minimum(torch.maximum(position, first[:, None]), last[:, None])

    # Bilinear weights fall linearly to zero at a distance of one cell.
    distance = (clamped[..., None] - centers).abs() * count  # [B, target, count], in cells
    weight = (1 - distance).clamp(min=0)

    is_valid = outputs < valid[:, None]  # [B, target]
    return weight * is_valid[..., None]


def square_cell_coordinates(
    square: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the coordinates of a square map's cells in the picture.

    Args:
        square: [B, 4], the picture in its square, xyxy as shares of the square's side.
        rows: Number of rows of the map.
        columns: Number of columns of the map.

    Returns:
        corners: [B, rows, columns, 2], far corners (x, y) as shares of the picture.
        centers: [B, rows, columns, 2], centers (x, y) as shares of the picture.
        inside: [B, rows, columns], True if the center lies in the picture, `[0, 1)` in x and y.
    """
    row_index = torch.arange(rows, device=square.device)[:, None]  # [rows, 1]
    column_index = torch.arange(columns, device=square.device)[None, :]  # [1, columns]
    y = row_index.expand(rows, columns)
    x = column_index.expand(rows, columns)

    origin = square[:, None, None, :2]  # [B, 1, 1, 2]
    extent = (square[:, 2:] - square[:, :2])[:, None, None]  # [B, 1, 1, 2]

    def in_picture(shift: float) -> Tensor:
        """Return picture coordinates of the point at `shift` of a cell's side."""
        shares = torch.stack([(x + shift) / columns, (y + shift) / rows], -1)
        return (shares - origin) / extent

    corners = in_picture(1.0)
    centers = in_picture(0.5)

    # The tolerance absorbs rounding of the shares.
    inside = ((centers > -1e-6) & (centers < 1 - 1e-6)).all(-1)
    return corners, centers, inside


def frame_clip_indices(frame_positions: Tensor, clips: int) -> Tensor:
    """Return the clip ⌊clips·τ⌋ of each frame.

    Args:
        frame_positions: [B, T_s], τ of each frame in its segment, in [0, 1).
        clips: Number of clips of a segment.

    Returns:
        [B, T_s], clip indices, int64.
    """
    return (frame_positions * clips).long().clamp(0, clips - 1)


def frames_to_clips_matrix(frame_positions: Tensor, clips: int) -> Tensor:
    """Return the matrix that averages the frames of each clip.

    A clip without frames takes the frame nearest to its middle.

    Args:
        frame_positions: [B, T_s], τ of each frame in its segment, in [0, 1).
        clips: Number of clips of a segment.

    Returns:
        [B, clips, T_s], rows sum to 1.
    """
    clip_index = torch.arange(clips, device=frame_positions.device)  # [clips]
    frame_clips = frame_clip_indices(frame_positions, clips)  # [B, T_s]
    in_clip = frame_clips[:, None, :] == clip_index[:, None]  # [B, clips, T_s]

    # The frame nearest to each clip's middle.
    middles = (clip_index + 0.5) / clips  # [clips]
    distance = (frame_positions[:, None, :] - middles[:, None]).abs()  # [B, clips, T_s]
    nearest = distance.argmin(-1, keepdim=True)  # [B, clips, 1]
    is_nearest = torch.zeros_like(in_clip).scatter_(-1, nearest, True)

    has_frames = in_clip.any(-1, keepdim=True)  # [B, clips, 1]
    selected = torch.where(has_frames, in_clip, is_nearest).float()
    return selected / selected.sum(-1, keepdim=True)

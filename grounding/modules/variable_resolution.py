"""Encoding of a batch of pictures with several sizes, each at its own resolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def encode_by_resolution(
    images: Tensor, sizes: Tensor, encode: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Encode pictures without their padding, all pictures of one size together.

    Args:
        images: [V, T, h, w, 3], zero-padded to the batch's largest picture.
        sizes: [V, 2], (rows, columns) of each picture that are no padding, in pixels.
        encode: Maps pictures of one size, [n, T, h', w', 3], to maps [n, T, H', W', C].

    Returns:
        maps: [V, T, H, W, C], zero-padded to the largest map.
        cells: [V, 2], (rows, columns) of each map that are no padding.
    """
    groups = []
    group_maps = []

    for height, width in sizes.unique(dim=0).tolist():
        size = torch.tensor([height, width], device=sizes.device)
        indices = (sizes == size).all(1).nonzero()[:, 0]  # [n], videos of this size

        groups.append(indices)
        group_maps.append(encode(images[indices, :, :height, :width]))

    # Pad all maps to the largest rows and columns.
    rows = max(maps.shape[2] for maps in group_maps)
    columns = max(maps.shape[3] for maps in group_maps)
    frames = group_maps[0].shape[1]
    channels = group_maps[0].shape[-1]
    padded = group_maps[0].new_zeros(len(sizes), frames, rows, columns, channels)
    cells = torch.zeros_like(sizes)

    for indices, maps in zip(groups, group_maps, strict=True):
        padded[indices, :, : maps.shape[2], : maps.shape[3]] = maps
        cells[indices] = torch.tensor(maps.shape[2:4], device=sizes.device)

    return padded, cells

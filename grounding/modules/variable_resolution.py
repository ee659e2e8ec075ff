"""Pictures of several sizes in one batch, each encoded at its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def encode_by_resolution(
    images: Tensor, sizes: Tensor, encode: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Maps `[V, T, H, W, C]`, zero-padded to the largest, and their rows and columns `[V, 2]`.

    Pictures `[V, T, h, w, 3]` of which `sizes` `[V, 2]` are no padding; `encode` is given those of one size alone,
    `[n, T, h, w, 3]` → `[n, T, H, W, C]`.
    """
    places, seen = [], []
    for height, width in sizes.unique(dim=0).tolist():
        own = (sizes == torch.tensor([height, width], device=sizes.device)).all(1).nonzero()[:, 0]
        places.append(own)
        seen.append(encode(images[own, :, :height, :width]))
    rows, columns = (max(maps.shape[axis] for maps in seen) for axis in (2, 3))
    padded = seen[0].new_zeros(len(sizes), seen[0].shape[1], rows, columns, seen[0].shape[-1])
    cells = torch.zeros_like(sizes)
    for own, maps in zip(places, seen, strict=True):
        padded[own, :, : maps.shape[2], : maps.shape[3]] = maps
        cells[own] = torch.tensor(maps.shape[2:4], device=sizes.device)
    return padded, cells

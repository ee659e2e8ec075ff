"""How a video's pictures are looked at: a part of them, at another size, in a mirror; and where their boxes are then."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.encoders.image_geometry import resize


@dataclass(frozen=True)
class ImageTransform:
    """One look for all frames of a pass: the part `[left, top, right, bottom)` of the pictures, in their pixels, brought to
    `size` (rows, columns), then mirrored or not.
    """

    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    flip: bool

    def apply_to_array(self, images: np.ndarray) -> np.ndarray:
        """RGB uint8 `[n, h, w, 3]` → `[n, *size, 3]`.

        By Pillow, not torch, whose threads would multiply with those of a loader (`grounding.data.collate.padded`).
        """
        from PIL import Image

        left, top, right, bottom = self.crop
        seen = images[:, top:bottom, left:right]
        if seen.shape[1:3] != self.size:
            pages = (Image.fromarray(np.ascontiguousarray(one)) for one in seen)
            seen = np.stack(
                [
                    np.asarray(page.resize(self.size[::-1], Image.Resampling.BILINEAR))
                    for page in pages
                ]
            )
        return seen[:, :, ::-1] if self.flip else seen

    def apply_to_tensor(self, images: Tensor) -> Tensor:
        """The same on any device, to a grey level."""
        left, top, right, bottom = self.crop
        seen = images[:, top:bottom, left:right]
        if tuple(seen.shape[1:3]) != self.size:
            sized = resize(seen.permute(0, 3, 1, 2).float(), self.size[::-1])
            seen = sized.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return seen.flip(2) if self.flip else seen

    def apply_to_boxes(self, boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
        """Boxes `[…, 4]` cxcywh, shares of a picture of (rows, columns) → shares of what is seen of it."""
        left, top, right, bottom = self.crop
        pixels = boxes.astype(np.float64) * [
            image_size[1],
            image_size[0],
            image_size[1],
            image_size[0],
        ] - [left, top, 0, 0]
        seen = pixels / [right - left, bottom - top, right - left, bottom - top]
        if self.flip:
            seen[..., 0] = 1 - seen[..., 0]
        return seen.astype(boxes.dtype)

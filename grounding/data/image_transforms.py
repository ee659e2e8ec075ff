"""Crop, resize and horizontal flip of a sample's frames, applied to its boxes too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.encoders.image_geometry import resize


@dataclass(frozen=True)
class ImageTransform:
    """One transform for all frames of a sample: crop, then resize, then flip.

    Attributes:
        crop: (left, top, right, bottom), in pixels of the images.
        size: Rows and columns after resizing.
        flip: Flip horizontally.
    """

    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    flip: bool

    def apply_to_array(self, images: np.ndarray) -> np.ndarray:
        """Transform images on the CPU.

        Pillow does the work: threads of torch would multiply with those of a loader
        (`grounding.data.collate.pad_and_stack`).

        Args:
            images: [n, h, w, 3], RGB, uint8.

        Returns:
            [n, *size, 3], RGB, uint8; possibly a view.
        """
        from PIL import Image

        left, top, right, bottom = self.crop
        result = images[:, top:bottom, left:right]

        if result.shape[1:3] != self.size:
            rows, columns = self.size
            resized = []
            for image in result:
                picture = Image.fromarray(np.ascontiguousarray(image))
                picture = picture.resize((columns, rows), Image.Resampling.BILINEAR)
                resized.append(np.asarray(picture))
            result = np.stack(resized)

        return result[:, :, ::-1] if self.flip else result

    def apply_to_tensor(self, images: Tensor) -> Tensor:
        """Transform images on any device.

        Args:
            images: [n, h, w, 3], RGB, uint8.

        Returns:
            [n, *size, 3], RGB, uint8; equal to `apply_to_array` to within one gray level.
        """
        left, top, right, bottom = self.crop
        result = images[:, top:bottom, left:right]

        if tuple(result.shape[1:3]) != self.size:
            channels_first = result.permute(0, 3, 1, 2).float()
            resized = resize(channels_first, self.size[::-1])
            result = resized.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

        return result.flip(2) if self.flip else result

    def apply_to_boxes(self, boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
        """Transform boxes.

        Args:
            boxes: […, 4], cxcywh in [0, 1] of the images.
            image_size: Rows and columns of the images before the transform.

        Returns:
            […, 4], cxcywh in [0, 1] of the transformed images.
        """
        rows, columns = image_size
        left, top, right, bottom = self.crop
        width = right - left
        height = bottom - top

        pixels = boxes.astype(np.float64) * [columns, rows, columns, rows]
        shifted = pixels - [left, top, 0, 0]
        result = shifted / [width, height, width, height]
        if self.flip:
            result[..., 0] = 1 - result[..., 0]
        return result.astype(boxes.dtype)

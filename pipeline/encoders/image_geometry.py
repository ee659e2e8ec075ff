"""Image sizes of the backbones, and resizing and padding of images."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

MAX_LONG_SIDE_RATIO = 1.8
"""Largest longer side, as a multiple of the short side N_short."""


def compute_appearance_size(size: tuple[int, int], short_side: float) -> tuple[int, int]:
    """Compute the input size of the appearance stream (CSDVL, supplement B.1).

    The aspect ratio is kept. The shorter side becomes `short_side`, unless the longer side would
    exceed 1.8 times `short_side`.

    Args:
        size: (width, height) of the video in pixels.
        short_side: N_short in pixels.

    Returns:
        (width, height) in pixels.
    """
    scale = min(short_side / min(size), MAX_LONG_SIDE_RATIO * short_side / max(size))
    width = max(1, round(size[0] * scale))
    height = max(1, round(size[1] * scale))
    return width, height


def picture_in_square(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Compute the position of an image in its centered, padded square.

    Args:
        size: (width, height) of the image in pixels.

    Returns:
        xyxy, as fractions of the square's side.
    """
    side = max(size)
    left = (side - size[0]) / 2 / side
    top = (side - size[1]) / 2 / side
    return left, top, 1 - left, 1 - top


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images by bilinear interpolation with antialiasing.

    uint8 values are rounded as Pillow rounds them for the networks whose weights are used here.
    This implementation is several times faster than Pillow's.

    Args:
        images: `[n, 3, h, w]`, RGB.
        size: (width, height) of the result in pixels.

    Returns:
        `[n, 3, height, width]` in the dtype of `images`.
    """
    width, height = size
    if tuple(images.shape[-2:]) == (height, width):
        return images
    return functional.interpolate(
        images, (height, width), mode="bilinear", antialias=True, align_corners=False
    )


def pad_to_square(images: Tensor) -> Tensor:
    """Pad images with zeros to centered squares (CSDVL, supplement B.1).

    Args:
        images: `[n, 3, h, w]`.

    Returns:
        `[n, 3, s, s]` with s = max(h, w). An odd margin is larger by one at the right or bottom.
    """
    height, width = images.shape[-2:]
    side = max(height, width)
    left = (side - width) // 2
    top = (side - height) // 2
    return functional.pad(images, (left, side - width - left, top, side - height - top))

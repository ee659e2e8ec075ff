"""How pictures are resized for the backbones, and where a picture lies in the motion stream's square."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

MAX_LONG_SIDE_RATIO = 1.8
"""The longer side is at most this many times N_short."""


def compute_appearance_size(size: tuple[int, int], short_side: float) -> tuple[int, int]:
    """`(width, height)` after scaling by min(short/shorter side, 1.8·short/longer side), aspect kept (supplement B.1)."""
    scale = min(short_side / min(size), MAX_LONG_SIDE_RATIO * short_side / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height


def picture_in_square(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Where a `(width, height)` picture lies in its centred padded square: xyxy as shares of the square's side."""
    side = max(size)
    left, top = (side - size[0]) / 2 / side, (side - size[1]) / 2 / side
    return left, top, 1 - left, 1 - top


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """RGB `[n, 3, h, w]` to `[n, 3, height, width]` of the same type, bilinear with antialiasing; `size` is (width, height).

    Bytes come out rounded, as Pillow rounds them for the networks whose weights are used here, and several times faster.
    """
    if tuple(images.shape[-2:]) == (size[1], size[0]):
        return images
    return functional.interpolate(
        images, (size[1], size[0]), mode="bilinear", antialias=True, align_corners=False
    )


def pad_to_square(images: Tensor) -> Tensor:
    """Zeros around `[n, 3, h, w]` so that the picture sits in the centre of a square (supplement B.1)."""
    height, width = images.shape[-2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return functional.pad(images, (left, side - width - left, top, side - height - top))

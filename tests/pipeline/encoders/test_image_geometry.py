"""How pictures are brought to size, and where they lie in the motion square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.encoders.image_geometry import (
    compute_appearance_size,
    pad_to_square,
    picture_in_square,
    resize,
)


@pytest.mark.parametrize(
    ("size", "short", "wanted"),
    [
        ((640, 480), 320, (427, 320)),
        ((480, 640), 320, (320, 427)),
        ((1920, 1080), 320, (569, 320)),
        ((2000, 500), 320, (576, 144)),
        ((500, 2000), 320, (144, 576)),
        ((16, 9), 320, (569, 320)),
        ((160, 96), 96, (160, 96)),
        ((1, 1), 320, (320, 320)),
        ((4000, 1), 320, (576, 1)),
    ],
)
def test_appearance_size(size: tuple[int, int], short: int, wanted: tuple[int, int]) -> None:
    """The shorter side becomes `short`, unless the longer one would pass 1.8 times that."""
    assert compute_appearance_size(size, short) == wanted


@pytest.mark.parametrize(("height", "width"), [(4, 10), (10, 4), (5, 10), (7, 7), (1, 2)])
def test_a_padded_picture_is_centred(height: int, width: int) -> None:
    picture = torch.rand(1, 3, height, width) + 1
    square = pad_to_square(picture)
    side = max(height, width)
    assert square.shape == (1, 3, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    assert torch.equal(square[..., top : top + height, left : left + width], picture)
    assert torch.isclose(square.sum(), picture.sum())


@pytest.mark.parametrize("size", [(10, 4), (4, 10), (7, 7), (640, 360)])
def test_picture_in_square_says_where_the_padded_picture_is(size: tuple[int, int]) -> None:
    width, height = size
    square = pad_to_square(torch.ones(1, 1, height, width))[0, 0]
    rows, columns = square.any(1).nonzero()[:, 0], square.any(0).nonzero()[:, 0]
    expected = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    assert [share * max(size) for share in picture_in_square(size)] == pytest.approx(expected)


def test_an_odd_margin_is_half_a_pixel_off_at_most() -> None:
    assert picture_in_square((10, 5)) == pytest.approx((0, 0.25, 1, 0.75))


def test_resize_keeps_pictures_of_that_size() -> None:
    picture = torch.randint(0, 256, (1, 3, 6, 8), dtype=torch.uint8)
    assert torch.equal(resize(picture, (8, 6)), picture)


def test_resize_keeps_a_flat_picture_flat() -> None:
    assert torch.equal(
        resize(torch.full((1, 3, 50, 90), 77, dtype=torch.uint8), (20, 11)),
        torch.full((1, 3, 11, 20), 77, dtype=torch.uint8),
    )


@pytest.mark.parametrize("size", [(569, 320), (97, 41), (300, 200)])
def test_bytes_are_resized_as_pillow_does(size: tuple[int, int]) -> None:
    """The published weights were trained on pictures that Pillow had resized."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 214, 3), np.uint8)
    expected = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    result = (
        resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).numpy()
    )
    assert np.abs(result.astype(int) - expected).max() <= 1

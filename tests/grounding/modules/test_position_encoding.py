"""Sine positions against DETR's formula and the classic one, written out again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from grounding.modules.position_encoding import (
    TIME_SCALE,
    cell_corners,
    sinusoidal,
    sinusoidal_2d,
    sinusoidal_time,
)


def detr(mask: Tensor, features: int) -> Tensor:
    """DETR's PositionEmbeddingSine(normalize=True) for a padding mask `[B, H, W]` → `[B, H, W,
    2·features]`.
    """
    valid = (~mask).float()
    y, x = valid.cumsum(1), valid.cumsum(2)
    y = y / (y[:, -1:, :] + 1e-6) * 2 * math.pi
    x = x / (x[:, :, -1:] + 1e-6) * 2 * math.pi
    wave = torch.tensor([10000 ** (2 * (i // 2) / features) for i in range(features)])
    halves = []
    for normalized in (y, x):
        phase = normalized[..., None] / wave
        halves.append(
            torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), dim=4).flatten(3)
        )
    return torch.cat(halves, dim=3)


def test_two_dimensions_are_detr_s() -> None:
    """Tolerance 2e-5: DETR adds 1e-6 to what it divides by."""
    expected = detr(torch.zeros(1, 5, 9, dtype=torch.bool), 16)[0]
    torch.testing.assert_close(
        sinusoidal_2d(cell_corners(5, 9) / torch.tensor([9, 5]), 32), expected, atol=2e-5, rtol=0
    )


def test_padding_moves_no_position() -> None:
    mask = torch.ones(1, 6, 9, dtype=torch.bool)
    mask[:, :4, :7] = False
    torch.testing.assert_close(
        sinusoidal_2d(cell_corners(4, 7) / torch.tensor([7, 4]), 32),
        detr(mask, 16)[0, :4, :7],
        atol=2e-5,
        rtol=0,
    )


def test_one_dimension_is_the_classic_formula() -> None:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i + 1) = cos of the same."""
    expected = torch.zeros(50, 8)
    for position in range(50):
        for i in range(4):
            phase = position / 10000 ** (2 * i / 8)
            expected[position, 2 * i], expected[position, 2 * i + 1] = (
                math.sin(phase),
                math.cos(phase),
            )
    torch.testing.assert_close(sinusoidal(torch.arange(50), 8), expected, atol=1e-5, rtol=0)


def test_a_segment_is_a_hundred_steps_whatever_its_length() -> None:
    torch.testing.assert_close(
        sinusoidal_time(torch.tensor([[0.25, 0.5]]), 8), sinusoidal(torch.tensor([[25.0, 50.0]]), 8)
    )
    assert TIME_SCALE == 100


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_any_shape_gains_one_dimension(shape: tuple[int, ...]) -> None:
    assert sinusoidal(torch.rand(shape), 8).shape == (*shape, 8)


def test_corners_are_the_far_ones_in_x_y_order() -> None:
    corners = cell_corners(2, 4)
    assert corners.shape == (2, 4, 2)
    assert corners[0, 0].tolist() == [1, 1]
    assert corners[1, 3].tolist() == [4, 2]

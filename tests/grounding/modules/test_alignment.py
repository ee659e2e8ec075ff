"""Maps into the motion square against torch's own padding and resizing; frames to clips by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from grounding.modules.alignment import clip_index, frames_to_clips, into_square, square_cells

TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}


def padded_and_resized(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Maps `[T, H, W]` with zeros around them to a centred square, then torch's bilinear resize."""
    height, width = maps.shape[1:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = functional.pad(maps[None], (left, side - width - left, top, side - height - top))
    return functional.interpolate(square, (rows, columns), mode="bilinear", align_corners=False)[0]


def square_of(height: int, width: int) -> list[float]:
    side = max(height, width)
    left, top = (side - width) / 2 / side, (side - height) / 2 / side
    return [left, top, 1 - left, 1 - top]


SHAPES = [(4, 8), (9, 15), (10, 18), (8, 4), (18, 10), (6, 6)]
"""Landscape, portrait, square; the difference of the sides is even, so the picture fills whole cells."""


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (4, 4), (16, 16), (5, 7)])
def test_placing_is_padding_and_resizing(height: int, width: int, rows: int, columns: int) -> None:
    maps = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    found = into_square(maps, torch.tensor([[height, width]]), torch.tensor([square_of(height, width)]), rows, columns)
    torch.testing.assert_close(found[0], padded_and_resized(maps[0], rows, columns), **TOLERANCE)


def test_batch_padding_is_not_looked_at() -> None:
    random = torch.Generator().manual_seed(0)
    padded = torch.full((len(SHAPES), 2, 20, 20), 1e3)
    maps = [torch.rand(2, *shape, generator=random) for shape in SHAPES]
    for place, one in zip(padded, maps, strict=True):
        place[:, : one.shape[1], : one.shape[2]] = one
    squares = torch.tensor([square_of(*shape) for shape in SHAPES])
    found = into_square(padded, torch.tensor(SHAPES), squares, 8, 8)
    for got, one in zip(found, maps, strict=True):
        torch.testing.assert_close(got, padded_and_resized(one, 8, 8), atol=1e-5, rtol=1e-5)


def test_a_picture_that_fills_no_whole_cells_is_placed_between_them() -> None:
    """A 9×16 map in a square of side 16 begins at row 3.5: twice as fine a grid of the same map gives the same ramp."""
    ramp = torch.arange(16.0).expand(1, 1, 9, 16)
    found = into_square(ramp, torch.tensor([[9, 16]]), torch.tensor([square_of(9, 16)]), 16, 16)[0, 0]
    torch.testing.assert_close(found[4:12], torch.arange(16.0).expand(8, 16), **TOLERANCE)
    torch.testing.assert_close(found[[3, 12]], 0.5 * torch.arange(16.0).expand(2, 16), **TOLERANCE)
    assert not found[:3].any()
    assert not found[13:].any()


def test_cells_of_the_square_as_shares_of_a_landscape_picture() -> None:
    """A picture in rows 1 and 2 of a 4×4 square: cell (1, 0)'s centre lies at x 1/8, y 1/4, its far corner at 1/4, 1/2."""
    corners, centres, inside = square_cells(torch.tensor([square_of(2, 4)]), 4, 4)
    assert inside[0].tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]
    assert centres[0, 1, 0].tolist() == pytest.approx([1 / 8, 1 / 4])
    assert corners[0, 1, 0].tolist() == pytest.approx([1 / 4, 1 / 2])
    assert corners[0, 2, 3].tolist() == pytest.approx([1, 1])


def test_cells_of_the_square_as_shares_of_a_portrait_picture() -> None:
    _, centres, inside = square_cells(torch.tensor([square_of(4, 2)]), 4, 4)
    assert inside[0, 0].tolist() == [False, True, True, False]
    assert centres[0, 0, 1].tolist() == pytest.approx([1 / 4, 1 / 8])


def test_the_picture_is_half_open_so_a_16_by_9_one_fills_9_of_16_rows() -> None:
    """It reaches from row 3.5 to 12.5: row 3's centre lies on its first edge, row 12's on its last; 7/16 = 44 % is padding."""
    _, _, inside = square_cells(torch.tensor([[0, 3.5 / 16, 1, 12.5 / 16]]), 16, 16)
    assert inside[0].all(1).nonzero()[:, 0].tolist() == list(range(3, 12))


def test_frames_belong_to_clips_half_open() -> None:
    tau = torch.tensor([[0.0, 0.2499, 0.25, 0.9999, 1.0]])
    assert clip_index(tau, 4).tolist() == [[0, 0, 1, 3, 3]]


def test_clips_take_the_mean_of_their_frames() -> None:
    matrix = frames_to_clips(torch.tensor([[0.1, 0.2, 0.6]]), 2)
    torch.testing.assert_close(matrix, torch.tensor([[[0.5, 0.5, 0], [0, 0, 1.0]]]))


def test_a_clip_without_frames_takes_the_nearest() -> None:
    """Four clips with middles .125, .375, .625, .875; frames at .1 and .7: clip 1 takes frame 0 (.275 away, .325), clip 3 frame 1."""
    matrix = frames_to_clips(torch.tensor([[0.1, 0.7]]), 4)
    assert matrix[0].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


def test_every_clip_s_weights_sum_to_one() -> None:
    matrix = frames_to_clips(torch.rand(5, 9, generator=torch.Generator().manual_seed(0)), 7)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(5, 7))

"""Maps into the motion square, and back, against torch's own padding and resizing; frames to clips
by hand.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from grounding.modules.alignment import (
    crop_resize_matrix,
    frame_clip_indices,
    frames_to_clips_matrix,
    from_square_grid,
    square_cell_coordinates,
    to_square_grid,
)

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
"""Landscape, portrait, square; the difference of the sides is even, so the picture fills whole
cells.
"""


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (4, 4), (16, 16), (5, 7)])
def test_placing_is_padding_and_resizing(height: int, width: int, rows: int, columns: int) -> None:
    maps = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    result = to_square_grid(
        maps,
        torch.tensor([[height, width]]),
        torch.tensor([square_of(height, width)]),
        rows,
        columns,
    )
    torch.testing.assert_close(result[0], padded_and_resized(maps[0], rows, columns), **TOLERANCE)


def test_batch_padding_is_not_looked_at() -> None:
    random = torch.Generator().manual_seed(0)
    padded = torch.full((len(SHAPES), 2, 20, 20), 1e3)
    maps = [torch.rand(2, *shape, generator=random) for shape in SHAPES]
    for slot, item in zip(padded, maps, strict=True):
        slot[:, : item.shape[1], : item.shape[2]] = item
    squares = torch.tensor([square_of(*shape) for shape in SHAPES])
    result = to_square_grid(padded, torch.tensor(SHAPES), squares, 8, 8)
    for resized, item in zip(result, maps, strict=True):
        torch.testing.assert_close(resized, padded_and_resized(item, 8, 8), atol=1e-5, rtol=1e-5)


def test_a_picture_that_fills_no_whole_cells_is_placed_between_them() -> None:
    """A 9×16 map in a square of side 16 begins at row 3.5: twice as fine a grid of the same map
    gives the same ramp.
    """
    ramp = torch.arange(16.0).expand(1, 1, 9, 16)
    result = to_square_grid(
        ramp, torch.tensor([[9, 16]]), torch.tensor([square_of(9, 16)]), 16, 16
    )[0, 0]
    torch.testing.assert_close(result[4:12], torch.arange(16.0).expand(8, 16), **TOLERANCE)
    torch.testing.assert_close(result[[3, 12]], 0.5 * torch.arange(16.0).expand(2, 16), **TOLERANCE)
    assert not result[:3].any()
    assert not result[13:].any()


def ramps_over_the_square(height: int, width: int, side: int) -> Tensor:
    """Motion maps `[1, 1, side, side, 2]` over the padded square of a `[height, width]` map: each
    cell in the picture holds the column and the row of that map where its centre lies; those
    outside hold 1e3.
    """
    left, top, right, bottom = square_of(height, width)
    cell = (torch.arange(side) + 0.5) / side
    column, row = (
        (cell - left) / (right - left) * width - 0.5,
        (cell - top) / (bottom - top) * height - 0.5,
    )
    outside = ((cell < left) | (cell > right)) | ((cell < top) | (cell > bottom))[:, None]
    ramps = torch.stack(torch.meshgrid(column, row, indexing="xy"), -1)
    return ramps.masked_fill(outside[..., None], 1e3)[None, None]


def held(count: int, first: float, last: float) -> Tensor:
    """0, 1, 2 …, not under `first` nor over `last`."""
    return torch.arange(float(count)).clamp(first, last)


@pytest.mark.parametrize(
    ("height", "width", "side", "first", "last"),
    [
        (4, 8, 8, (0, 0), (7, 3)),  # motion cells are the map's own
        (8, 4, 8, (0, 0), (3, 7)),
        (2, 4, 8, (0, 0), (3, 1)),  # twice as fine
        (4, 4, 8, (0, 0), (3, 3)),
        (
            8,
            16,
            8,
            (0.5, 0.5),
            (14.5, 6.5),
        ),  # half as fine: nothing is known beyond the outermost centres
        (
            9,
            16,
            8,
            (0.5, 1),
            (14.5, 7),
        ),  # rows 1.75 to 6.25 of 8: those from 2 to 5 are taken, centred at 1, 3, 5, 7
    ],
)
def test_a_ramp_over_the_square_comes_back_as_the_picture_s(
    height: int, width: int, side: int, first: tuple[float, float], last: tuple[float, float]
) -> None:
    maps = ramps_over_the_square(height, width, side)
    result = from_square_grid(
        maps,
        torch.tensor([square_of(height, width)]),
        torch.tensor([[height, width]]),
        height,
        width,
    )[0, 0]
    torch.testing.assert_close(
        result[..., 0], held(width, first[0], last[0]).expand(height, -1), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        result[..., 1],
        held(height, first[1], last[1])[:, None].expand(-1, width),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize(("height", "width"), [(9, 15), (10, 18), (18, 10), (5, 5)])
@pytest.mark.parametrize(("rows", "columns"), [(4, 7), (7, 7), (12, 3)])
def test_taking_from_a_map_of_the_whole_picture_is_torch_s_resizing(
    height: int, width: int, rows: int, columns: int
) -> None:
    maps = torch.rand(1, 2, rows, columns, 3, generator=torch.Generator().manual_seed(0))
    result = from_square_grid(
        maps, torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[height, width]]), height, width
    )
    expected = functional.interpolate(
        maps[0].permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(result[0].permute(0, 3, 1, 2), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(4, 7), (5, 10), (9, 16)])
def test_a_map_of_the_whole_picture_with_the_same_cells_stays(rows: int, columns: int) -> None:
    maps = torch.rand(1, 2, rows, columns, 3, generator=torch.Generator().manual_seed(0))
    result = from_square_grid(
        maps, torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[rows, columns]]), rows, columns
    )
    torch.testing.assert_close(result, maps, atol=1e-5, rtol=0)


def test_taken_from_one_batch_each_map_is_its_own_and_its_padding_zero() -> None:
    """Maps of the whole picture, 3×5 and 6×4 cells in one batch, brought to maps of 4×8 and 6×3."""
    random = torch.Generator().manual_seed(0)
    originals = [torch.rand(1, 2, *shape, 3, generator=random) for shape in ((3, 5), (6, 4))]
    padded = torch.full((2, 2, 6, 5, 3), 1e3)
    padded[0, :, :3], padded[1, :, :, :4] = originals[0][0], originals[1][0]
    squares, sizes = (
        torch.tensor([[0, 0, 1, 3 / 6], [0, 0, 4 / 5, 1]]),
        torch.tensor([[4, 8], [6, 3]]),
    )
    result = from_square_grid(padded, squares, sizes, 6, 8)
    for crop, maps, (height, width) in zip(result, originals, sizes.tolist(), strict=True):
        alone = from_square_grid(
            maps, torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[height, width]]), height, width
        )[0]
        torch.testing.assert_close(crop[:, :height, :width], alone, atol=1e-4, rtol=0)
        assert not crop[:, height:].any()
        assert not crop[:, :, width:].any()


def test_what_is_taken_along_one_axis_by_hand() -> None:
    """Of four cells with centres at 1/8, 3/8 … the halves: to two, to three cells (at 1/12, 3/12,
    5/12), and none of padding.
    """
    low, high = torch.tensor([0.0, 0.5, 0.0]), torch.tensor([0.5, 1.0, 0.5])
    matrix = crop_resize_matrix(4, torch.tensor([2, 2, 3]), 4, low, high)
    none = [0.0] * 4
    expected = [
        [[1, 0, 0, 0], [0, 1, 0, 0], none, none],
        [[0, 0, 1, 0], [0, 0, 0, 1], none, none],
        [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0], none],
    ]
    torch.testing.assert_close(matrix, torch.tensor(expected), **TOLERANCE)


def test_a_part_between_two_centres_takes_the_nearest_cell() -> None:
    """Of two cells, centred at .25 and .75, the parts [.3, .4) and [.6, .7)."""
    matrix = crop_resize_matrix(
        2, torch.tensor([2, 1]), 2, torch.tensor([0.3, 0.6]), torch.tensor([0.4, 0.7])
    )
    assert matrix.tolist() == [[[1, 0], [1, 0]], [[0, 1], [0, 0]]]


def test_cells_of_the_square_as_shares_of_a_landscape_picture() -> None:
    """A picture in rows 1 and 2 of a 4×4 square: cell (1, 0)'s centre lies at x 1/8, y 1/4, its far
    corner at 1/4, 1/2.
    """
    corners, centres, inside = square_cell_coordinates(torch.tensor([square_of(2, 4)]), 4, 4)
    assert inside[0].tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]
    assert centres[0, 1, 0].tolist() == pytest.approx([1 / 8, 1 / 4])
    assert corners[0, 1, 0].tolist() == pytest.approx([1 / 4, 1 / 2])
    assert corners[0, 2, 3].tolist() == pytest.approx([1, 1])


def test_cells_of_the_square_as_shares_of_a_portrait_picture() -> None:
    _, centres, inside = square_cell_coordinates(torch.tensor([square_of(4, 2)]), 4, 4)
    assert inside[0, 0].tolist() == [False, True, True, False]
    assert centres[0, 0, 1].tolist() == pytest.approx([1 / 4, 1 / 8])


def test_the_picture_is_half_open_so_a_16_by_9_one_fills_9_of_16_rows() -> None:
    """It reaches from row 3.5 to 12.5: row 3's centre lies on its first edge, row 12's on its last;
    7/16 = 44 % is padding.
    """
    _, _, inside = square_cell_coordinates(torch.tensor([[0, 3.5 / 16, 1, 12.5 / 16]]), 16, 16)
    assert inside[0].all(1).nonzero()[:, 0].tolist() == list(range(3, 12))


def test_frames_belong_to_clips_half_open() -> None:
    tau = torch.tensor([[0.0, 0.2499, 0.25, 0.9999, 1.0]])
    assert frame_clip_indices(tau, 4).tolist() == [[0, 0, 1, 3, 3]]


def test_clips_take_the_mean_of_their_frames() -> None:
    matrix = frames_to_clips_matrix(torch.tensor([[0.1, 0.2, 0.6]]), 2)
    torch.testing.assert_close(matrix, torch.tensor([[[0.5, 0.5, 0], [0, 0, 1.0]]]))


def test_a_clip_without_frames_takes_the_nearest() -> None:
    """Four clips with middles .125, .375, .625, .875; frames at .1 and .7: clip 1 takes frame 0
    (.275 away, .325), clip 3 frame 1.
    """
    matrix = frames_to_clips_matrix(torch.tensor([[0.1, 0.7]]), 4)
    assert matrix[0].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


def test_every_clip_s_weights_sum_to_one() -> None:
    matrix = frames_to_clips_matrix(torch.rand(5, 9, generator=torch.Generator().manual_seed(0)), 7)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(5, 7))

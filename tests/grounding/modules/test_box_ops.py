"""Boxes on maps: tokens against ramps and torchvision's RoIAlign, what padding and borders must not
do, IoU.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision import ops
from torchvision.ops import box_convert, roi_align

from grounding.modules.box_ops import box_iou, cxcywh_to_xyxy, generalized_box_iou
from grounding.modules.position_encoding import cell_positions
from grounding.modules.roi import cells_in_box, mean_pool_weights, roi_align_weights

ROWS, COLUMNS = 6, 10
SIZE = torch.tensor([[ROWS, COLUMNS]])
BORDERS = [
    [0.5, 0.5, 1.0, 1.0],
    [0.9, 0.5, 0.2, 0.4],
    [0.1, 0.5, 0.2, 0.4],
    [0.5, 0.9, 0.4, 0.2],
    [0.95, 0.95, 0.1, 0.1],
    [0.97, 0.5, 0.02, 0.02],
    [0.9, 0.9, 0.6, 0.8],
    [0.6, 0.4, 0.9, 1.4],
]
"""Boxes cxcywh that touch the picture's borders, or reach beyond."""


def roi_tokens(maps: Tensor, boxes: Tensor, size: Tensor) -> Tensor:
    """What is in boxes `[n, 4]`, of maps `[n, C, H, W]`: `[n, C]`."""
    return weighed(maps, roi_align_weights(boxes, size, (maps.shape[2], maps.shape[3])))


def mean_tokens(maps: Tensor, boxes: Tensor, centres: Tensor) -> Tensor:
    return weighed(maps, mean_pool_weights(boxes, centres))


def weighed(maps: Tensor, weights: Tensor) -> Tensor:
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
    return torch.einsum("nct,nt->nc", maps.flatten(2), weights)


def random_boxes(count: int, seed: int = 0) -> Tensor:
    """cxcywh inside [0, 1]."""
    values = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    return torch.cat([0.3 + 0.4 * values[:, :2], 0.05 + 0.5 * values[:, 2:]], -1)


def ramps() -> Tensor:
    """A map whose cells hold their column and their row, `[1, 2, ROWS, COLUMNS]`."""
    return torch.stack(torch.meshgrid(torch.arange(COLUMNS), torch.arange(ROWS), indexing="xy"))[
        None
    ].float()


def padded(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Maps in the corner of larger ones that are full of what must not be seen."""
    padded_map = torch.full((*maps.shape[:2], rows, columns), 1e3)
    padded_map[:, :, : maps.shape[2], : maps.shape[3]] = maps
    return padded_map


def centres_of(rows: int, columns: int) -> Tensor:
    """Centres of the cells of a `[rows, columns]` map of which `SIZE` is no padding, `[1, cells,
    2]`.
    """
    return cell_positions(SIZE, rows, columns, 8)[2]


@pytest.mark.parametrize(
    ("box", "column", "row"),
    [
        ([0.5, 0.5, 0.4, 0.5], 4.5, 2.5),  # columns 3 to 6
        ([0.35, 0.75, 0.3, 1 / 6], 3.0, 4.0),  # columns 2, 3, 4 of row 4
        ([0.33, 0.4, 0.24, 0.2], 2.8, 1.9),  # between cells: 10·0.33 − ½, 6·0.4 − ½
        ([0.25, 0.25, 0.01, 0.01], 2.0, 1.0),  # less than a cell
        ([0.5, 0.5, 1.0, 1.0], 4.5, 2.5),  # everything
    ],
)
def test_the_token_of_a_box_on_a_ramp_is_its_middle(
    box: list[float], column: float, row: float
) -> None:
    token = roi_tokens(ramps(), torch.tensor([box]), SIZE)
    torch.testing.assert_close(token, torch.tensor([[column, row]]), atol=1e-4, rtol=0)


def test_beyond_the_last_cells_centres_a_map_is_held() -> None:
    """The last column, [9, 10) cells: seven bins with middles at 8.57, 8.71, 8.86, 9, 9.14 …; what
    lies beyond 9 counts as 9. Their mean is 9 − (3 + 2 + 1)/7/7; of the first column so much more
    than 0.
    """
    last, first = ([x, 0.5, 0.1, 0.5] for x in (0.95, 0.05))
    token = roi_tokens(
        ramps().expand(2, -1, -1, -1), torch.tensor([last, first]), SIZE.expand(2, -1)
    )
    torch.testing.assert_close(token[:, 0], torch.tensor([9 - 6 / 49, 6 / 49]), atol=1e-4, rtol=0)


def test_a_token_is_the_mean_of_torchvision_s_aligned_regions() -> None:
    """In pixels of a picture with 32 to a cell, each box on its own map: small ones, and such that
    have more than a sample to a bin.
    """
    maps = torch.randn(40, 3, ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    boxes = torch.cat(
        [
            random_boxes(32),
            torch.tensor([*BORDERS[:6], [0.5, 0.5, 0.95, 0.9], [0.5, 0.5, 0.001, 0.001]]),
        ]
    )
    pixels = (
        box_convert(boxes, "cxcywh", "xyxy") * 32 * torch.tensor([COLUMNS, ROWS, COLUMNS, ROWS])
    )
    expected = roi_align(maps, [box[None] for box in pixels], 7, 1 / 32, aligned=True).mean((2, 3))
    torch.testing.assert_close(
        roi_tokens(maps, boxes, SIZE.expand(40, -1)), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("box", BORDERS)
@pytest.mark.parametrize(("rows", "columns"), [(9, 14)])
def test_batch_padding_never_enters_a_region(box: list[float], rows: int, columns: int) -> None:
    maps = torch.randn(1, 3, ROWS, COLUMNS, generator=torch.Generator().manual_seed(2))
    boxes = torch.tensor([box])
    token = roi_tokens(padded(maps, rows, columns), boxes, SIZE)
    torch.testing.assert_close(token, roi_tokens(maps, boxes, SIZE), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("box", BORDERS)
@pytest.mark.parametrize(("rows", "columns"), [(9, 14)])
def test_batch_padding_never_enters_a_mean(box: list[float], rows: int, columns: int) -> None:
    maps = torch.randn(1, 3, ROWS, COLUMNS, generator=torch.Generator().manual_seed(2))
    boxes = torch.tensor([box])
    alone = mean_tokens(maps, boxes, centres_of(ROWS, COLUMNS))
    torch.testing.assert_close(
        mean_tokens(padded(maps, rows, columns), boxes, centres_of(rows, columns)), alone
    )


def test_maps_of_one_batch_have_their_own_sizes() -> None:
    """The middle .3 of maps 10 and 5 columns wide: 3 − ½ and 1.5 − ½."""
    boxes = torch.tensor([[0.3, 0.5, 0.4, 0.5]]).expand(2, 4)
    size = torch.tensor([[6, 10], [6, 5]])
    tokens = roi_tokens(ramps().expand(2, -1, -1, -1), boxes, size)
    torch.testing.assert_close(tokens[:, 0], torch.tensor([2.5, 1.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ([0.9, 0.5, 0.6, 0.5], [0.8, 0.5, 0.4, 0.5]),
        ([0.1, 0.0, 0.4, 1.0], [0.15, 0.25, 0.3, 0.5]),
        ([0.5, 0.5, 3.0, 3.0], [0.5, 0.5, 1.0, 1.0]),
    ],
)
def test_boxes_are_cut_at_the_picture(box: list[float], cut: list[float]) -> None:
    maps = torch.randn(1, 3, ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))
    result, expected = (roi_tokens(maps, torch.tensor([item]), SIZE) for item in (box, cut))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_boxes_get_no_gradient_and_maps_get_it_where_the_box_lies() -> None:
    """A box in the left half."""
    for tokens in (
        lambda maps, boxes: roi_tokens(maps, boxes, SIZE),
        lambda maps, boxes: mean_tokens(maps, boxes, centres_of(ROWS, COLUMNS)),
    ):
        maps, boxes = (
            torch.randn(1, 3, ROWS, COLUMNS).requires_grad_(),
            torch.tensor([[0.25, 0.5, 0.2, 0.5]], requires_grad=True),
        )
        tokens(maps, boxes).sum().backward()
        assert boxes.grad is None
        assert maps.grad is not None
        assert maps.grad[..., :5].any()
        assert not maps.grad[..., 5:].any()
        torch.testing.assert_close(maps.grad.sum((2, 3)), torch.ones(1, 3))


@pytest.mark.parametrize(
    ("box", "column", "row"),
    [
        ([0.5, 0.5, 0.4, 0.5], 4.5, 2.5),
        (
            [0.33, 0.4, 0.22, 0.2],
            2.5,
            2.0,
        ),  # [.22, .44] × [.3, .5] has the centres .25 and .35 in x, 2.5/6 in y
        ([0.26, 0.26, 0.01, 0.01], 2.0, 1.0),  # no centre: the nearest cell
    ],
)
def test_a_mean_is_that_of_the_cells_whose_centre_lies_in_the_box(
    box: list[float], column: float, row: float
) -> None:
    token = mean_tokens(ramps(), torch.tensor([box]), centres_of(ROWS, COLUMNS))
    torch.testing.assert_close(token, torch.tensor([[column, row]]), atol=1e-4, rtol=0)


def test_own_cells_by_hand() -> None:
    """A 2×3 map has centres at x 1/6, 3/6, 5/6 and y 1/4, 3/4."""
    centres = torch.tensor([[[x, y] for y in (1 / 4, 3 / 4) for x in (1 / 6, 3 / 6, 5 / 6)]])
    boxes = torch.tensor(
        [
            [
                [0.25, 0.25, 0.5, 0.5],
                [0.7, 0.5, 0.5, 0.8],
                [0.6, 0.6, 0.02, 0.02],
                [1.4, -0.3, 0.1, 0.1],
            ]
        ]
    )
    assert cells_in_box(boxes, centres).int().tolist() == [
        [
            [1, 0, 0, 0, 0, 0],  # the middle column's centre lies on the edge
            [0, 1, 1, 0, 1, 1],
            [0, 0, 0, 0, 1, 0],  # between the cells: the nearest
            [0, 0, 1, 0, 0, 0],  # beside the picture: the nearest
        ]
    ]


def test_corners_are_torchvision_s() -> None:
    boxes = random_boxes(6).reshape(2, 3, 4)
    torch.testing.assert_close(cxcywh_to_xyxy(boxes), box_convert(boxes, "cxcywh", "xyxy"))


def test_iou_is_torchvision_s() -> None:
    pred, target = (cxcywh_to_xyxy(random_boxes(40, seed)) for seed in (0, 1))
    result = box_iou(pred, target)
    assert 0 < int((result > 0).sum()) < 40
    torch.testing.assert_close(result, ops.box_iou(pred, target).diagonal())


def test_giou_is_torchvision_s_for_whole_layers_of_boxes() -> None:
    pred, target = (cxcywh_to_xyxy(random_boxes(40, seed)) for seed in (0, 1))
    expected = ops.generalized_box_iou(pred, target).diagonal()
    assert (expected < 0).any()
    torch.testing.assert_close(
        generalized_box_iou(pred.view(2, 5, 4, 4), target.view(2, 5, 4, 4)), expected.view(2, 5, 4)
    )


def test_of_boxes_without_area_every_overlap_and_its_gradient_is_a_number() -> None:
    point, box = torch.tensor([[0.3, 0.3, 0.3, 0.3]]), torch.tensor([[0.1, 0.1, 0.2, 0.2]])
    for pred, target in (
        (point, point),
        (point, box),
        (box, torch.zeros(1, 4)),
        (torch.zeros(1, 4), torch.zeros(1, 4)),
    ):
        for overlap in (box_iou, generalized_box_iou):
            leaf = pred.clone().requires_grad_()
            overlap(leaf, target).sum().backward()
            assert leaf.grad is not None
            assert torch.isfinite(leaf.grad).all()
    assert generalized_box_iou(point, point).item() == 0


def test_iou_by_hand() -> None:
    """Halves of each other; a corner shared (.01 of .07); side by side; and two without area."""
    pred = torch.tensor(
        [[0.0, 0.0, 0.2, 0.4], [0.0, 0.0, 0.2, 0.2], [0.0, 0.0, 0.5, 0.5], [0.3, 0.3, 0.3, 0.3]]
    )
    target = torch.tensor(
        [[0.0, 0.0, 0.2, 0.2], [0.1, 0.1, 0.3, 0.3], [0.5, 0.0, 1.0, 0.5], [0.3, 0.3, 0.3, 0.3]]
    )
    torch.testing.assert_close(box_iou(pred, target), torch.tensor([1 / 2, 1 / 7, 0, 0]))


def test_a_box_of_no_area_takes_what_is_at_its_place() -> None:
    """In the middle of the map, and wholly outside it: the nearest edge."""
    boxes = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.5, 0.5, 0.1, 0.1], [-0.5, 0.5, 0.1, 0.1]])
    columns = roi_tokens(ramps().expand(3, -1, -1, -1), boxes, SIZE.expand(3, -1))[:, 0]
    torch.testing.assert_close(columns, torch.tensor([4.5, 9.0, 0.0]), atol=2e-3, rtol=0)

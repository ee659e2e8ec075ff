"""The losses against numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from grounding.losses.boxes import (
    box_attention_loss,
    box_losses,
    cell_box_losses,
    cells_in_box,
    cxcywh_to_xyxy,
)
from grounding.losses.csdvl import (
    CsdvlLossConfig,
    csdvl_loss,
    proposal_loss,
    temporal_attention_loss,
)
from grounding.models.csdvl import CsdvlOutputs
from grounding.structures.targets import LossNormalizers, Targets

FRAMES, CLIPS = 4, 3


def random_boxes(*shape: int, seed: int = 0) -> Tensor:
    """cxcywh in [0, 1]."""
    values = torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed))
    return torch.cat([0.3 + 0.4 * values[..., :2], 0.1 + 0.4 * values[..., 2:]], -1)


def make_targets(boxed: list[list[int]]) -> Targets:
    box_mask = torch.tensor(boxed, dtype=torch.bool)
    count = len(box_mask)
    return Targets(
        boxes=random_boxes(count, FRAMES),
        box_mask=box_mask,
        span=torch.tensor([[0.0, 0.5]]).expand(count, 2),
        frame_labels=box_mask.float(),
        clip_labels=torch.tensor([[1.0, 1.0, 0.0]]).expand(count, CLIPS),
        clip_boxes=random_boxes(count, CLIPS, seed=1),
        clip_box_mask=torch.tensor([[True, False, False]]).expand(count, CLIPS),
    )


def make_outputs(layers: int, count: int, cells: int = 4) -> CsdvlOutputs:
    random = torch.Generator().manual_seed(2)
    maps = torch.rand(layers, count, FRAMES, 2, cells // 2, generator=random)
    cell_weights = torch.rand(count, CLIPS, cells, generator=random)
    return CsdvlOutputs(
        boxes=random_boxes(layers, count, FRAMES, seed=3),
        proposal_logits=torch.randn(count, CLIPS, CLIPS, generator=random),
        frame_logits=torch.randn(count, FRAMES, generator=random),
        clip_logits=torch.randn(count, CLIPS, generator=random),
        guidance=maps,
        box_attention=maps / maps.sum((-1, -2), keepdim=True),
        cell_boxes=random_boxes(count, FRAMES, cells, seed=4),
        cell_centers=torch.rand(count, cells, 2, generator=random),
        temporal_attention=cell_weights / cell_weights.sum(-1, keepdim=True),
        temporal_cell_centers=torch.rand(count, cells, 2, generator=random),
    )


def batch_box_losses(boxes: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """The box losses of a whole batch."""
    return box_losses(boxes, targets, targets.box_mask.sum().float())


def batch_attention_loss(carriers: Tensor, centres: Tensor, boxes: Tensor, boxed: Tensor) -> Tensor:
    """The carrier loss of a whole batch."""
    return box_attention_loss(carriers, centres, boxes, boxed, boxed.sum().float())


def batch_loss(out: CsdvlOutputs, targets: Targets, weights: CsdvlLossConfig) -> dict[str, Tensor]:
    """The loss of a whole batch."""
    return csdvl_loss(out, targets, weights, LossNormalizers.from_targets(targets))


def test_corners_are_torchvision_s() -> None:
    boxes = random_boxes(3, 2)
    torch.testing.assert_close(cxcywh_to_xyxy(boxes), box_convert(boxes, "cxcywh", "xyxy"))


def test_l1_by_hand() -> None:
    """Boxes off by (.1, 0, 0, .2) and by (0, .05, 0, 0), a third one not boxed: (.3 + .05) / 2."""
    targets = make_targets([[1, 1, 0, 0]])
    boxes = targets.boxes.clone()[None]
    boxes[0, 0, 0] += torch.tensor([0.1, 0, 0, 0.2])
    boxes[0, 0, 1] += torch.tensor([0, 0.05, 0, 0])
    boxes[0, 0, 2] = 0.9
    l1, _ = batch_box_losses(boxes, targets)
    assert l1.item() == pytest.approx(0.35 / 2)


def test_giou_by_hand() -> None:
    """Unit squares of side .2, centres .4 apart: IoU 0, hull .6 × .2 = .12, union .08: GIoU
    −.04/.12, loss 4/3.
    """
    targets = replace(
        make_targets([[1, 0, 0, 0]]), boxes=torch.tensor([0.3, 0.5, 0.2, 0.2]).expand(1, FRAMES, 4)
    )
    boxes = torch.tensor([0.7, 0.5, 0.2, 0.2]).expand(1, 1, FRAMES, 4)
    assert batch_box_losses(boxes, targets)[1].item() == pytest.approx(4 / 3, abs=1e-5)


def test_giou_is_torchvision_s() -> None:
    targets = make_targets([[1, 1, 0, 1], [0, 1, 1, 0]])
    boxes = random_boxes(3, 2, FRAMES, seed=5)
    total = 0.0
    for layer in range(3):
        result = cxcywh_to_xyxy(boxes[layer][targets.box_mask])
        total += float(
            (
                1
                - generalized_box_iou(
                    result, cxcywh_to_xyxy(targets.boxes[targets.box_mask])
                ).diagonal()
            ).sum()
        )
    assert batch_box_losses(boxes, targets)[1].item() == pytest.approx(total / 5, rel=1e-5)


def test_layers_add_up() -> None:
    targets = make_targets([[1, 1, 0, 1]])
    boxes = random_boxes(3, 1, FRAMES, seed=5)
    expected_by_name = [batch_box_losses(boxes[layer : layer + 1], targets) for layer in range(3)]
    for part_losses, result in enumerate(batch_box_losses(boxes, targets)):
        torch.testing.assert_close(
            result,
            torch.stack([layer_losses[part_losses] for layer_losses in expected_by_name]).sum(),
        )


def test_without_boxes_box_losses_are_zero_and_finite() -> None:
    boxes = random_boxes(1, 1, FRAMES).requires_grad_()
    l1, giou = batch_box_losses(boxes, make_targets([[0, 0, 0, 0]]))
    assert (l1.item(), giou.item()) == (0, 0)
    (l1 + giou).backward()
    assert boxes.grad is not None
    assert not boxes.grad.any()


def select_rows(expected_value: CsdvlOutputs | Targets, rows: slice) -> Any:
    """Some queries of a batch: the second axis where layers come first."""
    per_layer = (
        {"boxes", "guidance", "box_attention"}
        if isinstance(expected_value, CsdvlOutputs)
        else set()
    )
    values = {field.name: getattr(expected_value, field.name) for field in fields(expected_value)}
    return replace(
        expected_value,
        **{
            name: tensor[:, rows] if name in per_layer else tensor[rows]
            for name, tensor in values.items()
        },
    )


@pytest.mark.parametrize(
    "weights",
    [
        CsdvlLossConfig(box_attention=1.0, cell_boxes=0.5),
        CsdvlLossConfig(every_layer=False, temporal_attention=0.3),
    ],
)
def test_the_losses_of_a_batch_s_parts_add_up_to_the_batch_s(weights: CsdvlLossConfig) -> None:
    """Parts of one and two queries with 3, 2 and no boxed samples; without totals of the whole they
    would not.
    """
    out, targets = make_outputs(2, 3), make_targets([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    totals = LossNormalizers(
        *(
            torch.stack(losses).sum()
            for losses in zip(
                *(LossNormalizers.from_targets(select_rows(targets, rows)) for rows in PARTS),
                strict=True,
            )
        )
    )
    assert totals == LossNormalizers.from_targets(targets)
    batch_losses = csdvl_loss(out, targets, weights, totals)
    losses = [
        csdvl_loss(select_rows(out, rows), select_rows(targets, rows), weights, totals)
        for rows in PARTS
    ]
    for name, expected_value in batch_losses.items():
        torch.testing.assert_close(sum(part_losses[name] for part_losses in losses), expected_value)


PARTS = (slice(0, 1), slice(1, 3))


def test_the_proposal_loss_by_hand() -> None:
    """Two clips, truth [0, .5): IoU (0, 0) 1, (0, 1) ½, (1, 1) 0; logits 0, 2, −1 there, 99 where i
    > j.

    BCE with logit x and target y is log(1 + eˣ) − xy: log 2; log(1 + e²) − 1; log(1 + e⁻¹). Their
    mean.
    """
    logits = torch.tensor([[[0.0, 2.0], [99.0, -1.0]]])
    expected = (math.log(2) - 0 * 1 + math.log(1 + math.e**2) - 1 + math.log(1 + math.e**-1)) / 3
    assert proposal_loss(logits, torch.tensor([[0.0, 0.5]])).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_the_attentive_loss_by_hand() -> None:
    """p = (1, 2, 1)/4 with labels 0 1 1: −(log ½ + log ¼)/2 = 1.5·log 2; p uniform over 3 with
    label 1 0 0: log 3. Their mean.
    """
    logits = torch.tensor([[0.0, math.log(2), 0.0], [5.0, 5.0, 5.0]])
    inside = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert temporal_attention_loss(logits, inside).item() == pytest.approx(
        (1.5 * math.log(2) + math.log(3)) / 2, rel=1e-5
    )


def test_the_attentive_loss_is_zero_without_labels() -> None:
    assert temporal_attention_loss(torch.randn(1, 3), torch.zeros(1, 3)).item() == 0


CENTRES = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]])
"""A 2×2 map."""


def test_the_carrier_loss_by_hand() -> None:
    """The box [.1, .9] × [.1, .5] holds cells 0 and 1 with .5 + .2 of the attention; the other
    frame is not boxed: −log .7.
    """
    carriers = torch.tensor([[[[0.5, 0.2, 0.2, 0.1], [0.0, 0.0, 0.0, 1.0]]]])
    boxes = torch.tensor([[[0.5, 0.3, 0.8, 0.4], [0.5, 0.3, 0.8, 0.4]]])
    result = batch_attention_loss(carriers, CENTRES, boxes, torch.tensor([[True, False]]))
    assert result.item() == pytest.approx(-math.log(0.7), rel=1e-5)


def test_a_box_between_the_cells_belongs_to_the_nearest() -> None:
    carriers = torch.tensor([[[[0.1, 0.2, 0.3, 0.4]]]])
    box = torch.tensor([[[0.6, 0.45, 0.02, 0.02]]])
    assert batch_attention_loss(
        carriers, CENTRES, box, torch.tensor([[True]])
    ).item() == pytest.approx(-math.log(0.2), rel=1e-5)


def test_the_carrier_loss_is_summed_over_layers_and_divided_by_boxed_samples() -> None:
    """Two layers, two boxed samples, masses .5 .25 and .125 .5: log 2 · (1 + 2 + 3 + 1) / 2."""
    carriers = torch.tensor(
        [[[[0.5, 0.5, 0, 0], [0.25, 0.75, 0, 0]]], [[[0.125, 0.875, 0, 0], [0.5, 0.5, 0, 0]]]]
    )
    boxes = torch.tensor([0.25, 0.25, 0.2, 0.2]).expand(1, 2, 4)
    result = batch_attention_loss(carriers, CENTRES, boxes, torch.tensor([[True, True]]))
    assert result.item() == pytest.approx(3.5 * math.log(2), rel=1e-5)


def test_without_boxes_and_without_mass_the_carrier_loss_is_finite() -> None:
    carriers = torch.tensor([[[[0.0, 0.0, 0.0, 1.0]]]], requires_grad=True)
    box = torch.tensor([[[0.25, 0.25, 0.2, 0.2]]])
    assert batch_attention_loss(carriers, CENTRES, box, torch.tensor([[False]])).item() == 0
    result = batch_attention_loss(carriers, CENTRES, box, torch.tensor([[True]]))
    assert result.item() == pytest.approx(-math.log(1e-6), rel=1e-5)


def test_own_cells_are_those_whose_centre_lies_in_the_box() -> None:
    boxes = torch.tensor([[[0.5, 0.3, 0.8, 0.4], [0.6, 0.45, 0.02, 0.02]]])
    assert cells_in_box(boxes, CENTRES).tolist() == [
        [[True, True, False, False], [False, True, False, False]]
    ]


def test_the_cell_losses_by_hand() -> None:
    """Both own cells' L1 are averaged (.1 and .3), the other cells do not count; one boxed sample:
    .2.
    """
    truth = torch.tensor([0.5, 0.3, 0.8, 0.4])
    targets = replace(make_targets([[1, 0, 0, 0]]), boxes=truth.expand(1, FRAMES, 4))
    cells = torch.stack(
        [
            truth + torch.tensor([0.1, 0, 0, 0]),
            truth - torch.tensor([0, 0, 0.3, 0]),
            truth * 0 + 9,
            truth * 0 + 9,
        ]
    )
    l1, giou = cell_box_losses(cells.expand(1, FRAMES, 4, 4), CENTRES, targets, torch.tensor(1.0))
    assert l1.item() == pytest.approx(0.2, rel=1e-5)
    expected = (
        sum(
            1 - generalized_box_iou(cxcywh_to_xyxy(cell[None]), cxcywh_to_xyxy(truth[None])).item()
            for cell in cells[:2]
        )
        / 2
    )
    assert giou.item() == pytest.approx(expected, rel=1e-5)


def test_cells_that_propose_the_pooled_box_lose_what_it_loses() -> None:
    out, targets = make_outputs(1, 2), make_targets([[1, 1, 0, 1], [0, 1, 1, 0]])
    same_boxes = replace(out, cell_boxes=out.boxes[0, :, :, None].expand(-1, -1, 4, -1))
    losses = batch_loss(same_boxes, targets, CsdvlLossConfig(cell_boxes=2.0))
    torch.testing.assert_close(losses["cells_l1"], losses["l1"])
    torch.testing.assert_close(losses["cells_giou"], losses["giou"])
    auxiliary = losses["loss"] - batch_loss(same_boxes, targets, CsdvlLossConfig())["loss"]
    torch.testing.assert_close(auxiliary, 2 * (5 * losses["cells_l1"] + 2 * losses["cells_giou"]))


def test_the_whole_loss_is_the_paper_s_weighted_sum() -> None:
    """5·L1 + 2·GIoU + 5·BCE + 1·(.5·frame + 1·clip)."""
    out, targets = make_outputs(2, 2), make_targets([[1, 1, 0, 1], [0, 1, 1, 0]])
    losses = batch_loss(out, targets, CsdvlLossConfig())
    expected = (
        5 * losses["l1"]
        + 2 * losses["giou"]
        + 5 * losses["proposals"]
        + 0.5 * losses["frames"]
        + losses["clips"]
    )
    torch.testing.assert_close(losses["loss"], expected)
    assert set(losses) == {"loss", "l1", "giou", "proposals", "frames", "clips"}


def test_every_weight_scales_its_part() -> None:
    out, targets = make_outputs(2, 2), make_targets([[1, 1, 0, 1], [0, 1, 1, 0]])
    zero_weights = CsdvlLossConfig(l1=0, giou=0, proposals=0, temporal_attention=0)
    losses = batch_loss(out, targets, CsdvlLossConfig(box_attention=1))
    expected_by_name = {
        "l1": losses["l1"],
        "giou": losses["giou"],
        "proposals": losses["proposals"],
        "temporal_attention": 0.5 * losses["frames"] + losses["clips"],
        "box_attention": losses["box_attention"] + losses["temporal_cell_attention"],
    }
    for name, expected_value in expected_by_name.items():
        result = batch_loss(out, targets, zero_weights.model_copy(update={name: 3.0}))["loss"]
        torch.testing.assert_close(result, 3 * expected_value)


def test_box_losses_after_every_layer_are_an_option() -> None:
    out, targets = make_outputs(3, 1), make_targets([[1, 1, 0, 1]])
    last = batch_loss(out, targets, CsdvlLossConfig(every_layer=False, box_attention=1.0))
    torch.testing.assert_close(last["l1"], batch_box_losses(out.boxes[-1:], targets)[0])
    expected = batch_attention_loss(
        out.box_attention[-1:].flatten(3), out.cell_centers, targets.boxes, targets.box_mask
    )
    torch.testing.assert_close(last["box_attention"], expected)
    assert batch_loss(out, targets, CsdvlLossConfig())["l1"] > last["l1"]


def test_parts_that_cells_carry_are_of_their_own_cells() -> None:
    out, targets = make_outputs(2, 2), make_targets([[1, 1, 0, 1], [0, 1, 1, 0]])
    losses = batch_loss(out, targets, CsdvlLossConfig(box_attention=1.0))
    expected = batch_attention_loss(
        out.temporal_attention[None],
        out.temporal_cell_centers,
        targets.clip_boxes,
        targets.clip_box_mask,
    )
    torch.testing.assert_close(losses["temporal_cell_attention"], expected)

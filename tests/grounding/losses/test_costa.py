"""CoSTA's losses against numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from grounding.losses.boxes import box_attention_loss, cell_box_losses
from grounding.losses.costa import CostaLossConfig, costa_loss
from grounding.losses.temporal import boundary_distributions, boundary_divergence, inside_loss
from grounding.models.costa import CostaOutputs
from grounding.structures.targets import LossNormalizers, Targets

FRAMES, CELLS, LAYERS = 4, 6, 3
TRUTH, FOUND = (0.5, 0.5, 0.4, 0.4), (0.6, 0.5, 0.4, 0.2)
"""[.3, .7] × [.3, .7] and [.4, .8] × [.4, .6]: .06 of .16 + .08 − .06 are shared, IoU 1/3; of the
hull .2 is .02 neither's, GIoU 7/30.
"""
ZERO_WEIGHTS = dict.fromkeys(
    ("start", "end", "encoder_presence", "decoder_presence", "l1", "giou"), 0.0
)
"""Every weight 0."""


def random_boxes(*shape: int, seed: int = 0) -> Tensor:
    """cxcywh in [0, 1]."""
    values = torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed))
    return torch.cat([0.3 + 0.4 * values[..., :2], 0.1 + 0.4 * values[..., 2:]], -1)


def make_targets(count: int, boxes: Tensor | None = None) -> Targets:
    """The span is the middle half of the segment; its frames are boxed."""
    inside = torch.tensor([0.0, 1.0, 1.0, 0.0]).expand(count, FRAMES)
    boxes_or_random = random_boxes(count, FRAMES) if boxes is None else boxes
    return Targets(
        boxes_or_random,
        inside > 0,
        torch.tensor([[0.25, 0.75]]).expand(count, 2),
        inside,
        inside,
        boxes_or_random,
        inside > 0,
    )


def make_outputs(count: int) -> CostaOutputs:
    random = torch.Generator().manual_seed(2)
    cells = torch.rand(2, LAYERS, count, FRAMES, CELLS, generator=random)
    return CostaOutputs(
        boxes=random_boxes(LAYERS, count, FRAMES, seed=3),
        start_logits=torch.randn(LAYERS, count, FRAMES, generator=random),
        end_logits=torch.randn(LAYERS, count, FRAMES, generator=random),
        encoder_presence_logits=torch.randn(count, FRAMES, generator=random),
        decoder_presence_logits=torch.randn(count, FRAMES, generator=random),
        event_mask=torch.ones(count, FRAMES, dtype=torch.bool),
        frame_positions=((torch.arange(FRAMES) + 0.5) / FRAMES).expand(count, FRAMES),
        box_attention=cells[0] / cells[0].sum(-1, keepdim=True),
        cell_boxes=random_boxes(count, FRAMES, CELLS, seed=4),
        cell_centers=torch.rand(count, CELLS, 2, generator=random),
        temporal_attention=cells[1] / cells[1].sum(-1, keepdim=True) / 2,
    )


def batch_loss(out: CostaOutputs, targets: Targets, **weights: Any) -> dict[str, Tensor]:
    """The loss of a whole batch."""
    return costa_loss(
        out, targets, CostaLossConfig(**weights), LossNormalizers.from_targets(targets)
    )


def test_boxes_by_hand() -> None:
    """L1 .1 + .2 and GIoU loss 1 − 7/30 of every boxed frame, in each of three layers, or in the
    last.
    """
    out = replace(make_outputs(2), boxes=torch.tensor(FOUND).expand(LAYERS, 2, FRAMES, 4))
    targets = make_targets(2, torch.tensor(TRUTH).expand(2, FRAMES, 4))
    for every_layer, layers in ((True, LAYERS), (False, 1)):
        losses = batch_loss(out, targets, every_layer=every_layer)
        assert losses["l1"].item() == pytest.approx(layers * 0.3, rel=1e-5)
        assert losses["giou"].item() == pytest.approx(layers * 23 / 30, rel=1e-5)


def test_boxes_outside_the_span_do_not_count() -> None:
    out, targets = make_outputs(2), make_targets(2)
    moved_boxes = out.boxes.clone()
    moved_boxes[:, :, [0, 3]] = 0.1
    for name in ("l1", "giou"):
        assert (
            batch_loss(replace(out, boxes=moved_boxes), targets)[name]
            == batch_loss(out, targets)[name]
        )


def test_boundaries_by_hand() -> None:
    """With very narrow Gaussians the target is one frame, and uniform logits over four cost log 4
    in each layer.
    """
    out = replace(
        make_outputs(2),
        start_logits=torch.zeros(LAYERS, 2, FRAMES),
        end_logits=torch.zeros(LAYERS, 2, FRAMES),
    )
    losses = batch_loss(out, make_targets(2), boundary_sigma=0.1)
    assert losses["start"].item() == pytest.approx(LAYERS * math.log(4), rel=1e-5)
    assert losses["end"].item() == pytest.approx(LAYERS * math.log(4), rel=1e-5)
    assert batch_loss(out, make_targets(2), boundary_sigma=0.1, every_layer=False)[
        "end"
    ].item() == pytest.approx(math.log(4), rel=1e-5)


def test_attendance_by_hand() -> None:
    """Logits 0 cost log 2 in each frame: two inside count in full, two outside by .3."""
    zeros = torch.zeros(2, FRAMES)
    losses = batch_loss(
        replace(make_outputs(2), encoder_presence_logits=zeros, decoder_presence_logits=zeros),
        make_targets(2),
    )
    for name in ("encoder_presence", "decoder_presence"):
        assert losses[name].item() == pytest.approx(math.log(2) * (2 + 2 * 0.3) / 4, rel=1e-5)
    assert (
        batch_loss(make_outputs(2), make_targets(2), outside_weight=1.0)["encoder_presence"]
        != batch_loss(make_outputs(2), make_targets(2))["encoder_presence"]
    )


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    """λ0 GIoU, λ1 L1, λ2 both KL, λ3 and λ4 attendance; the defaults are 4, 5, 10, 2, 2."""
    out, targets = make_outputs(2), make_targets(2)
    losses = batch_loss(out, targets)
    expected = {
        "start": boundary_divergence(
            out.start_logits, boundary_distributions(targets.span, out.frame_positions, 2.0)[0]
        ),
        "end": boundary_divergence(
            out.end_logits, boundary_distributions(targets.span, out.frame_positions, 2.0)[1]
        ),
        "encoder_presence": inside_loss(
            out.encoder_presence_logits[None], targets.frame_labels, 0.3
        ),
        "decoder_presence": inside_loss(
            out.decoder_presence_logits[None], targets.frame_labels, 0.3
        ),
    }
    assert losses.keys() == {"loss", "l1", "giou", *expected}
    for name, expected_value in expected.items():
        torch.testing.assert_close(losses[name], expected_value)
    boxes = 5 * losses["l1"] + 4 * losses["giou"]
    total = (
        boxes
        + 10 * (losses["start"] + losses["end"])
        + 2 * (losses["encoder_presence"] + losses["decoder_presence"])
    )
    torch.testing.assert_close(losses["loss"], total)


@pytest.mark.parametrize("name", ZERO_WEIGHTS)
def test_each_part_has_its_own_weight(name: str) -> None:
    losses = batch_loss(make_outputs(2), make_targets(2), **{**ZERO_WEIGHTS, name: 3.0})
    torch.testing.assert_close(losses["loss"], 3 * losses[name])


def test_from_scratch_cells_are_told_too() -> None:
    out, targets = make_outputs(2), make_targets(2)
    losses, boxed = (
        batch_loss(
            out,
            targets,
            **{**ZERO_WEIGHTS, "box_attention": 2.0, "cell_boxes": 3.0, "l1": 5.0, "giou": 7.0},
        ),
        targets.box_mask.sum(),
    )
    for name, cells in (
        ("box_attention", out.box_attention),
        ("temporal_cell_attention", out.temporal_attention),
    ):
        torch.testing.assert_close(
            losses[name],
            box_attention_loss(cells, out.cell_centers, targets.boxes, targets.box_mask, boxed),
        )
    l1, giou = cell_box_losses(out.cell_boxes, out.cell_centers, targets, boxed)
    expected = (
        2 * (losses["box_attention"] + losses["temporal_cell_attention"])
        + 3 * (5 * l1 + 7 * giou)
        + 5 * losses["l1"]
        + 7 * losses["giou"]
    )
    torch.testing.assert_close(losses["loss"], expected)
    assert "box_attention" not in batch_loss(out, targets)


def test_parts_of_a_batch_add_up_to_it() -> None:
    out, targets = make_outputs(3), make_targets(3)
    targets = replace(targets, box_mask=targets.box_mask & torch.tensor([[False], [True], [True]]))
    weights, totals = (
        CostaLossConfig(box_attention=1.0, cell_boxes=1.0),
        LossNormalizers.from_targets(targets),
    )
    by_layer = {"boxes", "start_logits", "end_logits", "box_attention", "temporal_attention"}

    def part_losses(rows: slice) -> dict[str, Tensor]:
        part_outputs = CostaOutputs(
            **{
                f.name: getattr(out, f.name)[(slice(None), rows) if f.name in by_layer else rows]
                for f in fields(CostaOutputs)
            }
        )
        part_targets = Targets(**{f.name: getattr(targets, f.name)[rows] for f in fields(Targets)})
        return costa_loss(part_outputs, part_targets, weights, totals)

    batch_losses, first, second = (
        costa_loss(out, targets, weights, totals),
        part_losses(slice(0, 1)),
        part_losses(slice(1, 3)),
    )
    for name, expected_value in batch_losses.items():
        torch.testing.assert_close(first[name] + second[name], expected_value)


def test_a_batch_without_boxes_has_a_finite_loss() -> None:
    targets = make_targets(2)
    targets = replace(targets, box_mask=torch.zeros_like(targets.box_mask))
    losses = batch_loss(make_outputs(2), targets, box_attention=1.0, cell_boxes=1.0)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["l1"] == losses["giou"] == 0

"""CG-STVG's losses against numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from grounding.losses.boxes import box_attention_loss, cell_box_losses
from grounding.losses.cgstvg import CgstvgLossConfig, cgstvg_loss
from grounding.losses.temporal import boundary_distributions, boundary_divergence, inside_loss
from grounding.models.cgstvg import CgstvgOutputs
from grounding.structures.span_scores import BoundaryPrediction
from grounding.structures.targets import LossNormalizers, Targets
from pipeline.sampling import compute_relative_positions, sample_bin_centers

FRAMES, CELLS = 4, 6
TRUTH, FOUND = (0.5, 0.5, 0.4, 0.4), (0.6, 0.5, 0.4, 0.2)
"""[.3, .7] × [.3, .7] and [.4, .8] × [.4, .6]: .06 of .16 + .08 − .06 are shared, IoU 1/3; of the
hull .2 is .02 neither's, GIoU 7/30.
"""
ZERO_WEIGHTS = dict.fromkeys(("start", "end", "inside", "l1", "iou", "box_confidence"), 0.0)
"""Every weight 0."""


def uniform_tau(count: int) -> Tensor:
    """Middles of `count` equal parts, `[1, count]`."""
    return (torch.arange(count)[None] + 0.5) / count


def random_boxes(*shape: int, seed: int = 0) -> Tensor:
    """cxcywh in [0, 1]."""
    values = torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed))
    return torch.cat([0.3 + 0.4 * values[..., :2], 0.1 + 0.4 * values[..., 2:]], -1)


def make_targets(boxed: list[list[int]], boxes: Tensor | None = None) -> Targets:
    """The span is the middle half of the segment."""
    box_mask, count = torch.tensor(boxed, dtype=torch.bool), len(boxed)
    boxes_or_random = random_boxes(count, FRAMES) if boxes is None else boxes
    inside = torch.tensor([0.0, 1.0, 1.0, 0.0]).expand(count, FRAMES)
    return Targets(
        boxes_or_random,
        box_mask,
        torch.tensor([[0.25, 0.75]]).expand(count, 2),
        inside,
        inside,
        boxes_or_random,
        box_mask,
    )


def make_outputs(stages: int, count: int) -> CgstvgOutputs:
    random = torch.Generator().manual_seed(2)
    cells = torch.rand(2, stages, count, FRAMES, CELLS, generator=random)
    return CgstvgOutputs(
        boxes=random_boxes(stages, count, FRAMES, seed=3),
        start_logits=torch.randn(stages, count, FRAMES, generator=random),
        end_logits=torch.randn(stages, count, FRAMES, generator=random),
        inside_logits=torch.randn(stages, count, FRAMES, generator=random),
        box_confidence=torch.rand(stages, count, FRAMES, generator=random),
        context_mask=torch.ones(stages, count, FRAMES, dtype=torch.bool),
        frame_positions=uniform_tau(FRAMES).expand(count, FRAMES),
        box_attention=cells[0] / cells[0].sum(-1, keepdim=True),
        cell_boxes=random_boxes(count, FRAMES, CELLS, seed=4),
        cell_centers=torch.rand(count, CELLS, 2, generator=random),
        temporal_attention=cells[1] / cells[1].sum(-1, keepdim=True) / 2,
    )


def batch_loss(out: CgstvgOutputs, targets: Targets, **weights: Any) -> dict[str, Tensor]:
    """The loss of a whole batch."""
    return cgstvg_loss(
        out, targets, CgstvgLossConfig(**weights), LossNormalizers.from_targets(targets)
    )


# First and last


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_gaussians_stand_on_the_event_s_first_and_last_sample(sigma: float) -> None:
    """The span [2/8, 5/8) holds samples 2, 3 and 4 of 8."""
    targets = boundary_distributions(torch.tensor([[2 / 8, 5 / 8]]), uniform_tau(8), sigma)
    for result, peak_frame in zip(targets, (2, 4), strict=True):
        heights = [math.exp(-((sample - peak_frame) ** 2) / (2 * sigma**2)) for sample in range(8)]
        assert result[0].argmax() == peak_frame
        assert result[0].tolist() == pytest.approx(
            [height / sum(heights) for height in heights], rel=1e-4
        )


def test_gaussians_sum_to_one_wherever_spans_and_samples_lie() -> None:
    """Also where no sample lies in the span, and at the segment's ends."""
    random = torch.Generator().manual_seed(0)
    spans = torch.cat(
        [
            torch.rand(6, 2, generator=random).sort(-1).values,
            torch.tensor([[0.0, 0.01], [0.99, 1.0], [0.0, 1.0]]),
        ]
    )
    tau = torch.rand(9, 16, generator=random).sort(-1).values
    for result in boundary_distributions(spans, tau, 2.0):
        torch.testing.assert_close(result.sum(-1), torch.ones(9))
        assert (result >= 0).all()


def test_an_event_of_one_sample_begins_and_ends_with_it() -> None:
    first, last = boundary_distributions(torch.tensor([[3 / 8, 4 / 8]]), uniform_tau(8), 1.0)
    assert first.argmax() == 3
    torch.testing.assert_close(first, last)


@pytest.mark.parametrize("stored", [5, 12, 16, 40])
def test_a_model_that_says_its_targets_finds_the_span(stored: int) -> None:
    """Where a segment stores fewer frames than a pass takes, and some are taken twice, too."""
    count, span = 16, (24, 72)
    frames = (np.arange(stored) * 120) // stored
    numbers = frames[sample_bin_centers(stored, count)]
    tau = torch.from_numpy(compute_relative_positions(numbers, (0, 120))).float()[None]
    targets = boundary_distributions(torch.tensor([span]) / 120, tau, 1.0)
    prediction = BoundaryPrediction(*(target[0].double().numpy() for target in targets))
    scores = prediction.init_scores((0, 120), np.unique(numbers))
    scores.add(prediction, numbers)
    begin, end, _ = scores.best_span(subframe_boundaries=True)
    spacing = 120 / min(stored, count)
    assert (begin, end) == (
        pytest.approx(span[0], abs=spacing / 4),
        pytest.approx(span[1], abs=spacing / 4),
    )


def test_the_divergence_of_equal_distributions_is_zero() -> None:
    target = torch.tensor([[0.1, 0.2, 0.7], [0.0, 0.5, 0.5]])
    logits = target.clamp(min=1e-12).log() + 3
    assert boundary_divergence(logits.expand(2, 2, 3), target).item() == pytest.approx(0, abs=1e-6)


def test_the_divergence_by_hand() -> None:
    """From (½, ½, 0) to the uniform one log 3 − log 2, from a certain sample to it log 3: their
    mean, in each of two stages.
    """
    target = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    result = boundary_divergence(torch.full((2, 2, 3), 5.0), target)
    assert result.item() == pytest.approx(2 * (math.log(3) - math.log(2) / 2), rel=1e-5)


def test_the_divergence_is_torch_s() -> None:
    random = torch.Generator().manual_seed(1)
    logits, target = (
        torch.randn(3, 2, 5, generator=random),
        torch.rand(2, 5, generator=random).softmax(-1),
    )
    expected = sum(
        functional.kl_div(stage.log_softmax(-1), target, reduction="batchmean") for stage in logits
    )
    torch.testing.assert_close(boundary_divergence(logits, target), expected)


# Inside


@pytest.mark.parametrize("background", [1.0, 0.3])
def test_the_inside_loss_by_hand(background: float) -> None:
    """Probabilities ½, ¾ of frames inside: log 2 + log 4/3; ¾, ¼ of frames outside: log 4 + log
    4/3, weighed. A second stage says ½ to all: 2 log 2 + 2 log 2, half of it weighed. The mean is
    over four frames.
    """
    logits = torch.tensor([[[0.0, math.log(3), math.log(3), -math.log(3)]], [[0.0] * 4]])
    result = inside_loss(logits, torch.tensor([[1.0, 1.0, 0.0, 0.0]]), background)
    first = math.log(2) + math.log(4 / 3) + background * (math.log(4) + math.log(4 / 3))
    assert result.item() == pytest.approx(
        (first + 2 * math.log(2) * (1 + background)) / 4, rel=1e-5
    )


# Boxes


def make_one_box(stages: int = 1, confidence: float = 0.25) -> tuple[CgstvgOutputs, Targets]:
    """One query; in frames 1 and 2 `FOUND` stands for `TRUTH`, in the others, which are not boxed,
    something else.
    """
    out, targets = (
        make_outputs(stages, 1),
        make_targets([[0, 1, 1, 0]], torch.tensor(TRUTH).expand(1, FRAMES, 4)),
    )
    out.boxes[:, :, 1:3] = torch.tensor(FOUND)
    return replace(out, box_confidence=torch.full_like(out.box_confidence, confidence)), targets


@pytest.mark.parametrize("stages", [1, 3])
def test_the_box_losses_by_hand(stages: int) -> None:
    """Off by (.1, 0, 0, −.2): smooth L1 (.01 + .04)/2, IoU 1/3. Each stage adds the mean over its
    boxed frames.
    """
    losses = batch_loss(*make_one_box(stages))
    assert losses["l1"].item() == pytest.approx(stages * 0.025, rel=1e-4)
    assert losses["iou"].item() == pytest.approx(stages * 2 / 3, rel=1e-4)


def test_as_in_the_released_code_l1_and_giou() -> None:
    losses = batch_loss(*make_one_box(), smooth_l1=False, use_giou=True)
    assert losses["l1"].item() == pytest.approx(0.3, rel=1e-4)
    assert losses["iou"].item() == pytest.approx(23 / 30, rel=1e-4)


@pytest.mark.parametrize(("stages", "confidence"), [(1, 0.25), (1, 0.5), (3, 0.25)])
def test_the_spatial_confidence_learns_the_iou(stages: int, confidence: float) -> None:
    """BCE with target 1/3."""
    expected = -(math.log(confidence) / 3 + 2 * math.log(1 - confidence) / 3)
    assert batch_loss(*make_one_box(stages, confidence))["box_confidence"].item() == pytest.approx(
        stages * expected, rel=1e-4
    )


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_a_confidence_that_is_certain_and_wrong_costs_a_finite_loss(confidence: float) -> None:
    assert 4 < batch_loss(*make_one_box(confidence=confidence))["box_confidence"].item() < 14


def test_the_spatial_confidence_learns_on_boxed_frames_alone_and_teaches_no_boxes() -> None:
    out, targets = make_one_box(stages=2)
    out.box_confidence.requires_grad_()
    out.boxes.requires_grad_()
    batch_loss(out, targets, **ZERO_WEIGHTS | {"box_confidence": 1.0})["loss"].backward()
    assert out.box_confidence.grad is not None
    assert out.box_confidence.grad.ne(0).tolist() == [[[False, True, True, False]]] * 2
    assert out.boxes.grad is None or not out.boxes.grad.any()


def test_boxes_learn_on_boxed_frames_alone() -> None:
    out, targets = make_one_box(stages=2)
    out.boxes.requires_grad_()
    batch_loss(out, targets)["loss"].backward()
    assert out.boxes.grad is not None
    assert out.boxes.grad.abs().sum(-1).ne(0).tolist() == [[[False, True, True, False]]] * 2


def test_without_boxes_their_losses_are_zero_and_finite() -> None:
    out, targets = make_outputs(2, 2), make_targets([[0] * 4] * 2)
    out.boxes.requires_grad_()
    out.box_confidence.requires_grad_()
    losses = batch_loss(out, targets, box_attention=1.0, cell_boxes=1.0)
    assert [
        losses[name].item()
        for name in (
            "l1",
            "iou",
            "box_confidence",
            "box_attention",
            "temporal_cell_attention",
            "cells_l1",
            "cells_giou",
        )
    ] == [0] * 7
    losses["loss"].backward()
    for tensor in (out.boxes, out.box_confidence):
        assert tensor.grad is not None
        assert not tensor.grad.any()


# All together


def test_the_whole_loss_is_the_paper_s_weighted_sum() -> None:
    """λ_s λ_e λ_t λ_l λ_i λ_b = 10 10 1 5 3 1; Gaussians of two samples, every frame as heavy as
    any.
    """
    out, targets = make_outputs(2, 2), make_targets([[1, 1, 0, 1], [0, 1, 1, 0]])
    losses = batch_loss(out, targets)
    first, last = boundary_distributions(targets.span, out.frame_positions, 2.0)
    torch.testing.assert_close(losses["start"], boundary_divergence(out.start_logits, first))
    torch.testing.assert_close(losses["end"], boundary_divergence(out.end_logits, last))
    torch.testing.assert_close(
        losses["inside"], inside_loss(out.inside_logits, targets.frame_labels, 1.0)
    )
    expected = (
        10 * losses["start"]
        + 10 * losses["end"]
        + losses["inside"]
        + 5 * losses["l1"]
        + 3 * losses["iou"]
        + losses["box_confidence"]
    )
    torch.testing.assert_close(losses["loss"], expected)
    assert set(losses) == {"loss", "l1", "iou", "start", "end", "inside", "box_confidence"}


@pytest.mark.parametrize("name", ["start", "end", "inside", "l1", "iou", "box_confidence"])
def test_every_weight_scales_its_part(name: str) -> None:
    out, targets = make_outputs(2, 2), make_targets([[1, 1, 0, 1], [0, 1, 1, 0]])
    losses = batch_loss(out, targets, **ZERO_WEIGHTS | {name: 3.0})
    torch.testing.assert_close(losses["loss"], 3 * losses[name])
    assert losses[name] > 0


def test_without_context_there_is_no_confidence_to_learn() -> None:
    out, targets = make_outputs(2, 2), make_targets([[1, 1, 0, 1], [0, 1, 1, 0]])
    with_it = batch_loss(out, targets)
    losses = batch_loss(
        replace(out, box_confidence=torch.zeros(0), context_mask=torch.zeros(0, dtype=torch.bool)),
        targets,
    )
    assert "box_confidence" not in losses
    torch.testing.assert_close(losses["loss"], with_it["loss"] - with_it["box_confidence"])


def test_what_cells_carry_is_taught_by_the_true_boxes() -> None:
    out, targets = make_outputs(2, 2), make_targets([[1, 1, 0, 1], [0, 1, 1, 0]])
    losses, default_losses = (
        batch_loss(out, targets, box_attention=2.0, cell_boxes=0.5),
        batch_loss(out, targets),
    )
    total = targets.box_mask.sum().float()
    for name, cells in (
        ("box_attention", out.box_attention),
        ("temporal_cell_attention", out.temporal_attention),
    ):
        expected = box_attention_loss(
            cells, out.cell_centers, targets.boxes, targets.box_mask, total
        )
        torch.testing.assert_close(losses[name], expected)
    l1, giou = cell_box_losses(out.cell_boxes, out.cell_centers, targets, total)
    auxiliary = 2 * (losses["box_attention"] + losses["temporal_cell_attention"]) + 0.5 * (
        5 * l1 + 3 * giou
    )
    torch.testing.assert_close(losses["loss"], default_losses["loss"] + auxiliary)


def test_without_boxes_of_cells_there_is_nothing_to_teach_them() -> None:
    out, targets = (
        replace(make_outputs(1, 1), cell_boxes=torch.zeros(0)),
        make_targets([[1, 1, 0, 1]]),
    )
    torch.testing.assert_close(batch_loss(out, targets, cell_boxes=1.0), batch_loss(out, targets))


PARTS = (slice(0, 1), slice(1, 3))


def select_rows(expected_value: CgstvgOutputs | Targets, rows: slice) -> Any:
    """Some queries of a batch: the second axis where stages come first."""
    per_stage = (
        {
            "boxes",
            "start_logits",
            "end_logits",
            "inside_logits",
            "box_confidence",
            "context_mask",
            "box_attention",
            "temporal_attention",
        }
        if isinstance(expected_value, CgstvgOutputs)
        else set()
    )
    values = {field.name: getattr(expected_value, field.name) for field in fields(expected_value)}
    return replace(
        expected_value,
        **{
            name: tensor[:, rows] if name in per_stage else tensor[rows]
            for name, tensor in values.items()
        },
    )


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"box_attention": 1.0, "cell_boxes": 0.5},
        {"smooth_l1": False, "use_giou": True, "outside_weight": 0.3},
    ],
)
def test_the_losses_of_a_batch_s_parts_add_up_to_the_batch_s(weights: dict[str, Any]) -> None:
    """Parts of one and two queries with 3, 2 and no boxed samples; without totals of the whole they
    would not.
    """
    out, targets = make_outputs(2, 3), make_targets([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    config, totals = CgstvgLossConfig(**weights), LossNormalizers.from_targets(targets)
    batch_losses = cgstvg_loss(out, targets, config, totals)
    losses = [
        cgstvg_loss(select_rows(out, rows), select_rows(targets, rows), config, totals)
        for rows in PARTS
    ]
    for name, expected_value in batch_losses.items():
        torch.testing.assert_close(sum(part_losses[name] for part_losses in losses), expected_value)

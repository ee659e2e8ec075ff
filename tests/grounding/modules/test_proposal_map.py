"""The proposal map and its convolutions against plain loops."""

from __future__ import annotations

import pytest
import torch

from grounding.modules.proposal_map import (
    ProposalHead,
    build_proposal_map,
    proposal_iou_map,
    valid_proposal_mask,
)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_map_holds_the_means_of_clips(count: int) -> None:
    clips = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, count, count, 3)
    for i in range(count):
        for j in range(i, count):
            expected[:, i, j] = clips[:, i : j + 1].mean(1)
    torch.testing.assert_close(build_proposal_map(clips), expected, atol=1e-6, rtol=1e-5)


def test_a_map_keeps_its_type() -> None:
    assert build_proposal_map(torch.randn(1, 4, 2).bfloat16()).dtype == torch.bfloat16


def test_valid_cells_begin_before_they_end() -> None:
    assert valid_proposal_mask(3).tolist() == [
        [True, True, True],
        [False, True, True],
        [False, False, True],
    ]


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.25, 0.5), (0.1, 0.33), (0.9, 1.0)])
def test_the_iou_map_by_a_loop(span: tuple[float, float]) -> None:
    count = 4
    expected = torch.zeros(count, count)
    for i in range(count):
        for j in range(i, count):
            begin, end = i / count, (j + 1) / count
            overlap = max(0.0, min(end, span[1]) - max(begin, span[0]))
            expected[i, j] = overlap / ((end - begin) + (span[1] - span[0]) - overlap)
    torch.testing.assert_close(
        proposal_iou_map(torch.tensor([span]), count)[0], expected, atol=1e-6, rtol=1e-5
    )


def test_the_true_cell_has_iou_one() -> None:
    iou = proposal_iou_map(torch.tensor([[0.25, 0.75], [0.0, 0.25]]), 4)
    assert iou[0, 1, 2] == pytest.approx(1.0)
    assert iou[1, 0, 0] == pytest.approx(1.0)


def constant_head(kernel: int) -> ProposalHead:
    """Every clip feature is widened to 2, every convolution sums its window with weight 1/kernel²,
    the score passes it on.
    """
    head = ProposalHead(3, 1, kernel, 1)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(head.residual_projection.bias, 2.0)
    torch.nn.init.constant_(head.convs[0].weight, 1 / kernel**2)
    torch.nn.init.ones_(head.score.weight)
    return head


@pytest.mark.parametrize(("count", "kernel"), [(5, 3), (4, 5)])
def test_the_triangle_s_border_is_not_dimmed(count: int, kernel: int) -> None:
    """A window over v valid cells of value 2 sums to 2v/k²; times k²/v that is 2 in every valid
    cell.
    """
    logits = constant_head(kernel)(torch.zeros(1, count, 3))[0]
    torch.testing.assert_close(
        logits[valid_proposal_mask(count)], torch.full((count * (count + 1) // 2,), 2.0)
    )


def test_values_are_divided_by_the_share_of_valid_cells_beneath() -> None:
    """Three clips, kernel 3, bias 1: cell (0, 0) sees (0,0), (0,1), (1,1): (2·3/9 + 1)·9/3 = 5; (1,
    1) sees six: 3.5.
    """
    head = constant_head(3)
    torch.nn.init.ones_(head.convs[0].bias)
    logits = head(torch.zeros(1, 3, 3))[0]
    assert logits[0, 0].item() == pytest.approx(5.0)
    assert logits[1, 1].item() == pytest.approx((2 * 6 / 9 + 1) * 9 / 6)


def test_invalid_cells_stay_zero_between_convolutions() -> None:
    """After the first of two convolutions cells i > j are zero, so a second one hears nothing from
    them.
    """
    torch.manual_seed(0)
    head = ProposalHead(3, 4, 3, 2)
    inputs = []
    head.convs[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    head(torch.randn(2, 5, 3))
    assert not inputs[0].permute(2, 3, 0, 1)[~valid_proposal_mask(5)].any()


def test_any_number_of_clips_fits() -> None:
    head = ProposalHead(3, 4, 5, 2)
    assert [head(torch.randn(2, count, 3)).shape for count in (1, 3, 16)] == [
        (2, 1, 1),
        (2, 3, 3),
        (2, 16, 16),
    ]

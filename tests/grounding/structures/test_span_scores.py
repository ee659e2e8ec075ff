"""When the event happens: the best span of proposal maps and of first and last frames, over passes,
models and two looks.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grounding.modules.frame_outputs import FramewiseOutputs
from grounding.structures.span_scores import (
    BoundaryPrediction,
    BoundaryScores,
    ProposalPrediction,
    ProposalScores,
    highest_span,
    interpolate_scores,
    interval_edges,
)
from pipeline import sampling
from pipeline.records import Span


def map_of(count: int, fill: float = 0.1, **cells: float) -> np.ndarray:
    """A map of scores; `c12=0.5` is the proposal from clip 1 to clip 2."""
    scores = np.where(np.triu(np.ones((count, count), dtype=bool)), fill, -1.0)
    for name, value in cells.items():
        scores[int(name[1]), int(name[2])] = value
    return scores


def test_without_between_the_best_cell_is_the_span() -> None:
    assert highest_span(map_of(5, c12=0.9, c02=0.8, c13=0.8), subframe_boundaries=False) == (
        1 / 5,
        3 / 5,
        0.9,
    )


def test_begin_and_end_are_where_parabolas_are_highest() -> None:
    """Scores of a parabola with its top at a begin of 1.75 and an end of 4.6, in clips."""
    begins, ends = np.meshgrid(np.arange(6), np.arange(6) + 1, indexing="ij")
    scores = np.where(
        begins < ends, 0.9 - 0.02 * (begins - 1.75) ** 2 - 0.03 * (ends - 4.6) ** 2, -1.0
    )
    begin, end, score = highest_span(scores, subframe_boundaries=True)
    assert (begin * 6, end * 6) == (pytest.approx(1.75), pytest.approx(4.6))
    assert score == scores[2, 4]


@pytest.mark.parametrize(
    ("scores", "span"),
    [
        (map_of(5, c12=0.9), (1, 3)),  # as high on both sides
        (
            map_of(5, c12=0.9, c02=0.9 - 1e-9, c13=0.5),
            (0.5, 3 + 1 / 6),
        ),  # never more than half a clip away
        (map_of(5, c02=0.9, c01=0.5), (0, 3 - 1 / 6)),  # nothing begins earlier
        (map_of(5, c24=0.9, c14=0.5), (2 - 1 / 6, 5)),  # nothing ends later
        (map_of(5, c22=0.9, c12=0.5, c23=0.5), (2, 3)),  # one clip cannot lose a part of itself
        (map_of(5, fill=0.5), (0, 1)),  # all alike
        (map_of(1, fill=0.5), (0, 1)),
    ],
)
def test_the_edges_of_a_map_and_flat_tops(scores: np.ndarray, span: tuple[float, float]) -> None:
    result = highest_span(scores, subframe_boundaries=True)
    assert result[:2] == pytest.approx(tuple(edge / len(scores) for edge in span), abs=1e-6)


def test_proposals_are_averaged_and_found_in_frames_of_the_video() -> None:
    """Five clips of four frames from frame 50 on; what stands below the diagonal is no proposal."""
    predictions = [
        ProposalPrediction(map_of(5, c12=0.9, c30=1.0)),
        ProposalPrediction(map_of(5, c23=0.95, c12=0.5, c30=1.0)),
    ]
    scores = predictions[0].init_scores((50, 70), np.arange(50, 70))
    for prediction in predictions:
        scores.add(prediction, np.arange(50, 70))
    assert scores.best_span(subframe_boundaries=False) == (54, 62, pytest.approx(0.7))
    np.testing.assert_array_equal(scores.mean == -1, np.tril(np.ones((5, 5)), -1) > 0)


def test_two_looks_at_proposals_are_averaged_on_the_windows_clips() -> None:
    """The window [54, 66) has clips of three frames; the first look's map is read at those."""
    first = ProposalPrediction(map_of(4, c12=0.8)).init_scores((50, 66), np.arange(50, 66))
    first.add(ProposalPrediction(map_of(4, c12=0.8)), np.arange(50, 66))
    second = ProposalPrediction(map_of(4, c12=0.4)).init_scores((54, 66), np.arange(54, 66))
    second.add(ProposalPrediction(map_of(4, c12=0.4)), np.arange(54, 66))
    both = first.combine_refined(second)
    edges = np.array([4, 7, 10, 13, 16]) / 16
    valid = np.triu(np.ones((4, 4), dtype=bool))
    np.testing.assert_allclose(
        both.mean[valid],
        ((second.mean + interpolate_scores(first.mean, edges[:-1], edges[1:])) / 2)[valid],
    )
    assert (both.mean[~valid] == -1).all()
    assert both.best_span(subframe_boundaries=False) == (
        54,
        63,
        pytest.approx(float(both.mean[0, 2])),
    )


def make_scores(
    segment: Span,
    frames: list[int] | np.ndarray,
    *answers: tuple[list[int] | np.ndarray, object, object],
) -> BoundaryScores:
    """What answers of (numbers, first, last) say of a segment in which `frames` are stored."""
    nothing = BoundaryPrediction(np.zeros(0), np.zeros(0))
    scores = nothing.init_scores(segment, np.asarray(frames))
    for numbers, first, last in answers:
        scores.add(
            BoundaryPrediction(np.asarray(first, float), np.asarray(last, float)),
            np.asarray(numbers),
        )
    return scores


def test_a_frame_stands_for_what_is_nearer_to_its_middle_than_to_anothers() -> None:
    assert interval_edges(np.array([3, 4, 10]), (2, 20)).tolist() == [2, 4, 7.5, 20]
    assert interval_edges(np.array([30]), (31, 33)).tolist() == [31, 33]


def test_the_event_begins_where_its_first_frames_interval_does_and_ends_where_its_lasts_does() -> (
    None
):
    scores = make_scores(
        (100, 140),
        [100, 110, 120, 130],
        ([100, 110, 120, 130], [0.1, 0.6, 0.2, 0.1], [0.0, 0.2, 0.7, 0.1]),
    )
    assert scores.edges.tolist() == [100, 105.5, 115.5, 125.5, 140]
    assert scores.best_span(subframe_boundaries=False) == (105.5, 125.5, pytest.approx(0.42))


@pytest.mark.parametrize("index", [0, 1, 3])
@pytest.mark.parametrize("between", [False, True])
def test_an_event_may_be_one_frame_long(index: int, between: bool) -> None:
    certain = np.eye(4)[index]
    begin, end = [(100, 105.5), (105.5, 115.5), (115.5, 125.5), (125.5, 140)][index]
    frames = [100, 110, 120, 130]
    assert make_scores((100, 140), frames, (frames, certain, certain)).best_span(between) == (
        begin,
        end,
        1,
    )


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize(("segment", "frame"), [((30, 60), 40), ((31, 33), 30), ((30, 31), 30)])
def test_one_stored_frame_is_the_whole_segment(segment: Span, frame: int, between: bool) -> None:
    """Also where the nearest one lies outside; a pass repeats it."""
    scores = make_scores(segment, [frame], ([frame] * 3, [0.2, 0.5, 0.3], [0.5, 0.5, 0.0]))
    assert scores.best_span(between) == (*segment, pytest.approx(1))


def test_repeated_frames_count_as_if_all_were_repeated_as_often() -> None:
    """Of five samples two frames take two each, one takes one: means, times 5/3."""
    repeated = make_scores(
        (0, 30),
        [0, 10, 20],
        ([0, 0, 10, 10, 20], [0.1, 0.2, 0.3, 0.1, 0.3], [0.0, 0.1, 0.2, 0.2, 0.5]),
    )
    once = make_scores(
        (0, 30), [0, 10, 20], ([0, 10, 20], [0.25, 1 / 3, 0.5], [1 / 12, 1 / 3, 5 / 6])
    )
    np.testing.assert_allclose(repeated.start_probabilities, once.start_probabilities)
    np.testing.assert_allclose(repeated.end_probabilities, once.end_probabilities)
    assert repeated.best_span(subframe_boundaries=False) == (15.5, 30, pytest.approx(5 / 12))


def test_of_a_begin_that_is_likeliest_after_the_end_the_best_ordered_pair_is_found() -> None:
    """.6 · .9 would end before it begins; .3 · .9 is higher than .6 · .06."""
    frames = [0, 10, 20, 30]
    scores = make_scores((0, 40), frames, (frames, [0.3, 0.06, 0.6, 0.04], [0.02, 0.9, 0.06, 0.02]))
    assert scores.best_span(subframe_boundaries=False) == (0, 15.5, pytest.approx(0.27))


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_no_ordered_pair_has_a_higher_product(count: int) -> None:
    random = np.random.default_rng(count)
    frames = np.arange(count) * 3
    for _ in range(50):
        first, last = random.dirichlet(np.full(count, 0.3), 2)
        begin, end, score = make_scores((0, 3 * count), frames, (frames, first, last)).best_span(
            subframe_boundaries=False
        )
        products = np.triu(np.outer(first, last))
        edges = interval_edges(frames, (0, 3 * count))
        i, j = np.unravel_index(products.argmax(), products.shape)
        assert (begin, end) == (edges[i], edges[j + 1])
        assert score == pytest.approx(products.max())


def test_where_all_frames_are_alike_the_span_is_a_span() -> None:
    frames = [0, 10, 20, 30]
    for between in (False, True):
        assert make_scores((0, 40), frames, (frames, [0.25] * 4, [0.25] * 4)).best_span(
            between
        ) == (
            0,
            5.5,
            0.0625,
        )


def test_passes_are_interpolated_at_the_edges_of_all_frames_and_averaged() -> None:
    """Begins at 0, 5.5, 15.5, 25.5; the first pass' are at 0 and 10.5, the second's at 0 and 20.5;
    beyond, they are held.
    """
    scores = make_scores(
        (0, 40),
        [0, 10, 20, 30],
        ([0, 20], [0.2, 0.8], [0.4, 0.6]),
        ([10, 30], [1.0, 0.0], [0.5, 0.5]),
    )
    ones = np.array([0.2, 0.2 + 0.6 * 5.5 / 10.5, 0.8, 0.8])
    others = np.array([1.0, 1 - 5.5 / 20.5, 1 - 15.5 / 20.5, 0.0])
    np.testing.assert_allclose(scores.start_probabilities, (ones + others) / 2)
    ones = np.array([0.4, 0.4 + 0.2 * 5 / 29.5, 0.4 + 0.2 * 15 / 29.5, 0.6])
    np.testing.assert_allclose(scores.end_probabilities, (ones + 0.5) / 2)


def test_models_are_averaged() -> None:
    """Alone the one begins at 0 and the other at 15.5; what both think possible is highest in the
    mean.
    """
    frames = [0, 10, 20]
    scores, other = (
        (frames, [0.5, 0.4, 0.1], [0.0, 0.0, 1.0]),
        (frames, [0.0, 0.4, 0.6], [0.0, 0.2, 0.8]),
    )
    assert make_scores((0, 30), frames, scores).best_span(subframe_boundaries=False)[0] == 0
    assert make_scores((0, 30), frames, other).best_span(subframe_boundaries=False)[0] == 15.5
    assert make_scores((0, 30), frames, scores, other).best_span(subframe_boundaries=False) == (
        5.5,
        30,
        pytest.approx(0.4 * 0.9),
    )
    assert make_scores((0, 30), frames, scores, scores).best_span(
        subframe_boundaries=True
    ) == make_scores((0, 30), frames, scores).best_span(subframe_boundaries=True)


def test_boundaries_lie_where_parabolas_over_uneven_edges_are_highest() -> None:
    """Probabilities of parabolas with their tops at 21 and 47.5, near the edges at 20.5 and 49."""
    frames = np.array([2, 9, 14, 26, 30, 44, 53, 58])
    edges = interval_edges(frames, (0, 64))
    assert edges[3], edges[6] == (20.5, 49)
    first, last = 0.5 - (edges[:-1] - 21) ** 2 / 5000, 0.5 - (edges[1:] - 47.5) ** 2 / 5000
    scores = make_scores((0, 64), frames, (frames, first, last))
    assert scores.best_span(subframe_boundaries=False)[:2] == (20.5, 49)
    assert scores.best_span(subframe_boundaries=True) == (
        pytest.approx(21),
        pytest.approx(47.5),
        pytest.approx(float(first[3] * last[5])),
    )


@pytest.mark.parametrize(
    ("first", "last", "span"),
    [
        (
            [0.0, 0.4, 0.4, 0.2, 0.0],
            [0.0, 0.0, 0.1, 0.2, 0.7],
            (10.5, 50),
        ),  # half-way between equals; nothing ends later
        ([0.5, 0.4, 0.1, 0.0, 0.0], [0.1, 0.2, 0.4, 0.2, 0.1], (0, 25.5)),  # nothing begins earlier
        (
            [0.0, 0.0, 0.5, 0.4, 0.1],
            [0.0, 0.4, 0.5, 0.1, 0.0],
            (15.5, 25.5),
        ),  # one frame cannot lose a part of itself
    ],
)
def test_a_boundary_moves_at_most_half_way_and_only_among_spans(
    first: list[float], last: list[float], span: tuple[float, float]
) -> None:
    frames = [0, 10, 20, 30, 40]
    assert make_scores((0, 50), frames, (frames, first, last)).best_span(subframe_boundaries=True)[
        :2
    ] == pytest.approx(span)


@pytest.mark.parametrize("width", [0.5, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("stored", [12, 13, 18, 19, 24, 31, 36, 101])
def test_boundaries_between_interleaved_passes_are_found_to_a_quarter_of_their_spacing(
    stored: int, width: float
) -> None:
    """Twelve frames a pass, of those stored every five; around either boundary a Gaussian `width`
    times the pass' spacing wide.
    """
    random = np.random.default_rng(0)
    segment = (200, 200 + 5 * stored)
    frames, spacing = np.arange(*segment, 5), 5 * stored / 12
    moved, errors = [], []
    for begin, end in segment[0] + spacing * random.uniform([2, 7], [5, 10], (40, 2)):
        scores = make_scores(segment, frames)
        for places in sampling.plan_passes(stored, 12):
            edges = interval_edges(frames[places], segment)
            first, last = (
                np.exp(-(((at - edge) / spacing / width) ** 2) / 2)
                for at, edge in ((edges[:-1], begin), (edges[1:], end))
            )
            scores.add(BoundaryPrediction(first / first.sum(), last / last.sum()), frames[places])
        moved += np.abs(
            np.array(scores.best_span(subframe_boundaries=True)[:2]) - (begin, end)
        ).tolist()
        errors += np.abs(
            np.array(scores.best_span(subframe_boundaries=False)[:2]) - (begin, end)
        ).tolist()
    assert max(moved) < spacing / 4
    assert np.mean(moved) < 0.75 * np.mean(errors)


@pytest.fixture
def first_pass() -> BoundaryScores:
    """A look at [0, 80), with half of its belief in a begin at the segment's, outside of the
    windows below.
    """
    frames = np.arange(0, 80, 10)
    return make_scores(
        (0, 80),
        frames,
        (
            frames,
            [0.5, 0.0, 0.0, 0.2, 0.1, 0.1, 0.1, 0.0],
            [0.0, 0.0, 0.0, 0.1, 0.3, 0.1, 0.1, 0.4],
        ),
    )


def test_two_looks_at_boundaries_weigh_alike_in_the_window(first_pass: BoundaryScores) -> None:
    """The window's begins are at 20, 25.5, 35.5, 45.5, its ends at 25.5, 35.5, 45.5, 60, of which
    the first look knows all but two.
    """
    frames = [20, 30, 40, 50]
    second = make_scores((20, 60), frames, (frames, [0.1, 0.2, 0.6, 0.1], [0.1, 0.1, 0.2, 0.6]))
    both = first_pass.combine_refined(second)
    assert (both.segment, both.edges.tolist()) == ((20, 60), [20, 25.5, 35.5, 45.5, 60])
    probabilities = np.array([0.2 * 4.5 / 10, 0.2, 0.1, 0.1])
    np.testing.assert_allclose(
        both.start_probabilities,
        (np.array([0.1, 0.2, 0.6, 0.1]) + probabilities / probabilities.sum()) / 2,
    )
    probabilities = np.array([0.0, 0.1, 0.3, 0.1])
    np.testing.assert_allclose(
        both.end_probabilities,
        (np.array([0.1, 0.1, 0.2, 0.6]) + probabilities / probabilities.sum()) / 2,
    )


def test_what_the_first_look_believes_outside_the_window_does_not_count(
    first_pass: BoundaryScores,
) -> None:
    frames = [20, 30, 40, 50]
    second = make_scores((20, 60), frames, (frames, [0.1, 0.2, 0.6, 0.1], [0.1, 0.1, 0.2, 0.6]))
    surer = BoundaryScores(
        first_pass.segment, first_pass.edges, first_pass.start.copy(), first_pass.end.copy(), 1
    )
    surer.start[0] /= 4
    surer.end[-1] /= 4
    for get_probabilities in (
        lambda scores: scores.start_probabilities,
        lambda scores: scores.end_probabilities,
    ):
        np.testing.assert_allclose(
            get_probabilities(surer.combine_refined(second)),
            get_probabilities(first_pass.combine_refined(second)),
        )


def test_where_the_first_look_gives_the_window_nothing_the_second_stands_alone(
    first_pass: BoundaryScores,
) -> None:
    frames = [60, 70]
    first_pass.start[-3:] = 0
    second = make_scores((60, 80), frames, (frames, [0.3, 0.7], [0.2, 0.8]))
    np.testing.assert_allclose(
        first_pass.combine_refined(second).start_probabilities, second.start_probabilities
    )


def test_two_looks_that_agree_agree_with_both() -> None:
    """At the same edges and of the same sum, they stay equal, whatever the number of answers."""
    frames = [0, 10, 20]
    prediction = (frames, [0.2, 0.5, 0.3], [0.1, 0.4, 0.5])
    once, often = (
        make_scores((0, 30), frames, prediction),
        make_scores((0, 30), frames, *[prediction] * 5),
    )
    assert once.combine_refined(often).best_span(subframe_boundaries=True) == pytest.approx(
        once.best_span(subframe_boundaries=True)
    )


def test_the_score_of_two_looks_is_at_most_one() -> None:
    """Two passes that know nothing sum to more than one that is sure, whose probability is brought
    to their sum.
    """
    frames = [0, 10]
    sure = make_scores((0, 20), frames, (frames, [1.0, 0.0], [1.0, 0.0]))
    vague = make_scores((0, 20), frames, ([0], [1.0], [1.0]), ([10], [1.0], [1.0]))
    assert sure.combine_refined(vague).best_span(subframe_boundaries=False) == (0, 5.5, 1.0)


@pytest.fixture
def scores() -> np.ndarray:
    return np.where(
        np.triu(np.ones((4, 4), dtype=bool)), np.random.default_rng(0).random((4, 4)), -1.0
    )


def test_a_map_read_at_its_own_cells_is_itself(scores: np.ndarray) -> None:
    edges = np.arange(5) / 4
    np.testing.assert_allclose(
        interpolate_scores(scores, edges[:-1], edges[1:]), scores, atol=1e-12
    )


def test_between_cells_scores_are_linear_and_only_proposals_count(scores: np.ndarray) -> None:
    def at(begin: float, end: float) -> float:
        return float(interpolate_scores(scores, np.array([begin / 4]), np.array([end / 4]))[0, 0])

    assert at(0.5, 3) == pytest.approx((scores[0, 2] + scores[1, 2]) / 2)
    assert at(1, 3.25) == pytest.approx(0.75 * scores[1, 2] + 0.25 * scores[1, 3])
    assert at(0.5, 1.5) == pytest.approx((scores[0, 0] + scores[0, 1] + scores[1, 1]) / 3)
    assert at(0.2, 0.7) == pytest.approx(scores[0, 0])
    assert at(3.2, 3.9) == pytest.approx(scores[3, 3])
    assert at(2, 2) == at(3, 1) == -1


def test_what_probabilities_were_divided_by_tells_clear_events_from_faint_ones() -> None:
    """Logits that are all higher by one give the same span and score, and a level higher by one for
    each boundary.
    """
    first, last = torch.tensor([[[0.0, 2.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 0.0, 3.0, 0.0]]])
    nothing = torch.zeros(0)

    def gathered(more: float) -> BoundaryScores:
        out = FramewiseOutputs(
            nothing, first + more, last + more, nothing, nothing, nothing, nothing, nothing
        )
        scores = BoundaryScores((0, 8), np.array([0.0, 2, 4, 6, 8]), np.zeros(4), np.zeros(4))
        for _ in range(2):
            scores.add(out.span_predictions()[0], np.array([1, 3, 5, 7]))
        return scores

    faint, clear = gathered(0.0), gathered(1.0)
    assert clear.best_span(True) == pytest.approx(faint.best_span(True))
    assert clear.log_normalizer == pytest.approx(faint.log_normalizer + 2)
    assert ProposalScores((0, 8), np.zeros((4, 4))).log_normalizer == 0

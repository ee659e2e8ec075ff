"""Confidence intervals and comparisons: exact small cases, and videos with many sentences."""

from __future__ import annotations

import numpy as np
import pytest

import grounding.metrics.bootstrap
from grounding.metrics.bootstrap import compare_paired, confidence_intervals
from grounding.metrics.scores import MEAN_METRICS, Score, summarize
from pipeline.errors import InputError

Videos = dict[str, str]


@pytest.fixture(autouse=True)
def _few_videos_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounding.metrics.bootstrap, "MIN_VIDEOS", 1)


def scores_of(values: np.ndarray | list[float], names: list[str] | None = None) -> list[Score]:
    ids = names or [f"q{number}" for number in range(len(values))]
    return [
        Score(id=name, vIoU=value, tIoU=value / 2, sIoU=1 - value)
        for name, value in zip(ids, map(float, values), strict=True)
    ]


def one_each(scores: list[Score]) -> Videos:
    return {score.id: f"v{score.id}" for score in scores}


def clusters(
    random: np.random.Generator, videos: int, sentences: int, within: float = 0.05
) -> tuple[np.ndarray, Videos]:
    """Scores of which most varies from video to video, and each query's video."""
    level = np.repeat(random.uniform(0.2, 0.8, videos), sentences)
    values = np.clip(level + random.normal(0, within, len(level)), 0, 1)
    return values, {f"q{number}": f"v{number // sentences}" for number in range(len(values))}


def test_every_mean_lies_in_its_interval() -> None:
    values, videos = clusters(np.random.default_rng(1), 20, 3)
    scores = scores_of(values)
    result, means = confidence_intervals(scores, videos), summarize(scores)
    assert list(result) == [f"{name}_{side}" for name in MEAN_METRICS for side in ("low", "high")]
    for name in MEAN_METRICS:
        assert 0 <= result[f"{name}_low"] <= means[name] <= result[f"{name}_high"] <= 1
    assert result["m_vIoU_low"] < means["m_vIoU"] < result["m_vIoU_high"]


def test_one_video_leaves_nothing_to_draw() -> None:
    scores = scores_of([0.1, 0.5, 0.9])
    result, means = (
        confidence_intervals(scores, dict.fromkeys(one_each(scores), "v")),
        summarize(scores),
    )
    for name in MEAN_METRICS:
        assert (result[f"{name}_low"], result[f"{name}_high"]) == pytest.approx(
            (means[name], means[name])
        )


def test_two_videos_by_hand() -> None:
    """Draws are (a, a), (a, b) or (b, b): the 2.5 % and 97.5 % points are the videos themselves, of
    two and of one sentence.
    """
    result = confidence_intervals(scores_of([0.25, 0.35, 0.75]), {"q0": "a", "q1": "a", "q2": "b"})
    assert (result["m_vIoU_low"], result["m_vIoU_high"]) == (
        pytest.approx(0.3),
        pytest.approx(0.75),
    )
    assert (result["vIoU@0.5_low"], result["vIoU@0.5_high"]) == (0, 1)


def test_a_seed_draws_the_same_videos() -> None:
    values, videos = clusters(np.random.default_rng(2), 15, 2)
    scores = scores_of(values)
    assert (
        confidence_intervals(scores, videos, seed=5)
        == confidence_intervals(scores, videos, seed=5)
        != confidence_intervals(scores, videos, seed=6)
    )
    assert confidence_intervals(
        scores, {name: f"renamed-{video}" for name, video in videos.items()}, seed=5
    ) == confidence_intervals(scores, videos, seed=5)


def test_means_over_nothing_have_no_interval() -> None:
    timed = [Score(id=name, vIoU=None, tIoU=0.5, sIoU=None) for name in "ab"]
    assert list(confidence_intervals(timed, one_each(timed))) == ["m_tIoU_low", "m_tIoU_high"]
    assert confidence_intervals([], {}) == {}


def test_queries_without_boxes_leave_the_means_of_boxes_only() -> None:
    scores = [*scores_of([0.4, 0.4]), Score(id="timed", vIoU=None, tIoU=0.9, sIoU=None)]
    result = confidence_intervals(scores, one_each(scores))
    assert (result["m_vIoU_low"], result["m_vIoU_high"]) == pytest.approx((0.4, 0.4))
    assert result["m_tIoU_high"] > result["m_tIoU_low"]


def test_sentences_of_one_video_do_not_count_as_many() -> None:
    """Ten sentences that share their video's difficulty: the interval over videos is about √10 as
    wide as a naive one.
    """
    values, videos = clusters(np.random.default_rng(3), 40, 10)
    scores = scores_of(values)
    over_videos, naive = (
        confidence_intervals(scores, videos),
        confidence_intervals(scores, one_each(scores)),
    )
    wide, narrow = (result["m_vIoU_high"] - result["m_vIoU_low"] for result in (over_videos, naive))
    assert 2.5 < wide / narrow < 3.5


def test_intervals_hold_the_true_mean_about_as_often_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 100 samples of 30 videos the true mean .5 lies in 95 intervals, give or take; over
    queries, in far fewer.
    """
    monkeypatch.setattr(grounding.metrics.bootstrap, "NUM_RESAMPLES", 300)
    random = np.random.default_rng(4)
    num_covered = {"videos": 0, "queries": 0}
    for _ in range(100):
        values, videos = clusters(random, 30, 8)
        scores = scores_of(values)
        for kind, names in (("videos", videos), ("queries", one_each(scores))):
            result = confidence_intervals(scores, names)
            num_covered[kind] += result["m_vIoU_low"] <= 0.5 <= result["m_vIoU_high"]
    assert num_covered["videos"] >= 88
    assert num_covered["queries"] <= 70


def test_a_run_does_not_differ_from_itself() -> None:
    values, videos = clusters(np.random.default_rng(5), 12, 3)
    for difference in compare_paired(scores_of(values), scores_of(values), videos).values():
        assert (
            difference.mean,
            difference.low,
            difference.high,
            difference.p,
            difference.better,
            difference.worse,
        ) == (0, 0, 0, 1, 0, 0)
        assert difference.current == difference.other


def test_a_clear_improvement_is_seen_though_videos_differ_more() -> None:
    """All queries gain .1, give or take; from video to video scores differ by .6. What is hard for
    both cancels.
    """
    random = np.random.default_rng(6)
    values, videos = clusters(random, 30, 4)
    current, other = (
        scores_of(np.clip(values + random.normal(0.1, 0.02, len(values)), 0, 1)),
        scores_of(values),
    )
    result = compare_paired(current, other, videos)["m_vIoU"]
    assert result.mean == pytest.approx(0.1, abs=0.01)
    assert 0.08 < result.low < result.mean < result.high < 0.12
    assert result.p < 0.001
    assert result.better > 110
    assert result.worse < 10
    assert result.current - result.other == pytest.approx(result.mean)
    assert (result.current, result.other) == (
        pytest.approx(summarize(current)["m_vIoU"]),
        pytest.approx(summarize(other)["m_vIoU"]),
    )


def test_noise_is_no_improvement() -> None:
    random = np.random.default_rng(7)
    values, videos = clusters(random, 30, 4)
    result = compare_paired(
        scores_of(np.clip(values + random.normal(0, 0.05, len(values)), 0, 1)),
        scores_of(values),
        videos,
    )["m_vIoU"]
    assert result.low < 0 < result.high
    assert result.p > 0.05


def test_the_smallest_p_is_one_of_all_draws() -> None:
    scores = scores_of([0.2] * 20)
    assert compare_paired(scores_of([0.7] * 20), scores, one_each(scores))["m_vIoU"].p == 1 / (
        grounding.metrics.bootstrap.NUM_RESAMPLES + 1
    )


def test_the_other_way_round_differences_are_negated() -> None:
    random = np.random.default_rng(8)
    values, videos = clusters(random, 15, 2)
    a, b = scores_of(values), scores_of(random.permutation(values))
    forward, backward = compare_paired(a, b, videos), compare_paired(b, a, videos)
    assert list(forward) == list(backward) == list(MEAN_METRICS)
    for name in MEAN_METRICS:
        forward_difference, backward_difference = forward[name], backward[name]
        assert (
            forward_difference.mean,
            forward_difference.low,
            forward_difference.high,
        ) == pytest.approx(
            (-backward_difference.mean, -backward_difference.high, -backward_difference.low)
        )
        assert (
            forward_difference.current,
            forward_difference.other,
            forward_difference.better,
            forward_difference.worse,
        ) == (
            backward_difference.other,
            backward_difference.current,
            backward_difference.worse,
            backward_difference.better,
        )
        assert forward_difference.p == pytest.approx(backward_difference.p)


def test_queries_are_compared_by_id() -> None:
    current, other = (
        scores_of([0.1, 0.5, 0.9], ["a", "b", "c"]),
        scores_of([0.9, 0.5, 0.1], ["c", "b", "a"]),
    )
    assert compare_paired(current, other, one_each(current))["m_vIoU"].better == 0
    assert compare_paired(current, other, one_each(current))["m_vIoU"].mean == 0


def test_only_queries_known_to_both_count() -> None:
    current = [
        Score(id="a", vIoU=0.5, tIoU=0.5, sIoU=0.5),
        Score(id="b", vIoU=None, tIoU=0.5, sIoU=None),
    ]
    other = [
        Score(id="a", vIoU=0.25, tIoU=0.5, sIoU=0.5),
        Score(id="b", vIoU=None, tIoU=1.0, sIoU=None),
    ]
    result = compare_paired(current, other, one_each(current))
    assert (result["m_vIoU"].mean, result["m_vIoU"].better, result["m_vIoU"].worse) == (0.25, 1, 0)
    assert (result["m_tIoU"].mean, result["m_tIoU"].better, result["m_tIoU"].worse) == (-0.25, 0, 1)
    assert list(compare_paired(current[1:], other[1:], one_each(current))) == ["m_tIoU"]


def test_runs_on_other_queries_are_not_compared() -> None:
    current, other = scores_of([0.1, 0.2], ["a", "b"]), scores_of([0.1, 0.2], ["b", "c"])
    with pytest.raises(
        InputError, match="do not score the same queries: 2 are in one only, for example 'a'"
    ):
        compare_paired(current, other, one_each([*current, *other]))


@pytest.mark.parametrize(("videos", "expected"), [(9, False), (10, True)])
def test_too_few_videos_have_no_interval(
    videos: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding.metrics.bootstrap, "MIN_VIDEOS", 10)
    scores = scores_of([index / videos for index in range(videos)])
    assert bool(confidence_intervals(scores, one_each(scores))) is expected
    result = compare_paired(scores, scores_of([0.0] * videos), one_each(scores))["m_vIoU"]
    assert [value is not None for value in (result.low, result.high, result.p)] == [expected] * 3
    assert result.mean == pytest.approx(sum(index / videos for index in range(videos)) / videos)

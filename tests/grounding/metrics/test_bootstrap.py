"""Intervals and comparisons: exact where they can be, and honest about videos with many sentences."""

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
    return {one.id: f"v{one.id}" for one in scores}


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
    found, means = confidence_intervals(scores, videos), summarize(scores)
    assert list(found) == [f"{name}_{side}" for name in MEAN_METRICS for side in ("low", "high")]
    for name in MEAN_METRICS:
        assert 0 <= found[f"{name}_low"] <= means[name] <= found[f"{name}_high"] <= 1
    assert found["m_vIoU_low"] < means["m_vIoU"] < found["m_vIoU_high"]


def test_one_video_leaves_nothing_to_draw() -> None:
    scores = scores_of([0.1, 0.5, 0.9])
    found, means = (
        confidence_intervals(scores, dict.fromkeys(one_each(scores), "v")),
        summarize(scores),
    )
    for name in MEAN_METRICS:
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(
            (means[name], means[name])
        )


def test_two_videos_by_hand() -> None:
    """Draws are (a, a), (a, b) or (b, b): the 2.5 % and 97.5 % points are the videos themselves, of
    two and of one sentence.
    """
    found = confidence_intervals(scores_of([0.25, 0.35, 0.75]), {"q0": "a", "q1": "a", "q2": "b"})
    assert (found["m_vIoU_low"], found["m_vIoU_high"]) == (pytest.approx(0.3), pytest.approx(0.75))
    assert (found["vIoU@0.5_low"], found["vIoU@0.5_high"]) == (0, 1)


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
    found = confidence_intervals(scores, one_each(scores))
    assert (found["m_vIoU_low"], found["m_vIoU_high"]) == pytest.approx((0.4, 0.4))
    assert found["m_tIoU_high"] > found["m_tIoU_low"]


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
    wide, narrow = (found["m_vIoU_high"] - found["m_vIoU_low"] for found in (over_videos, naive))
    assert 2.5 < wide / narrow < 3.5


def test_intervals_hold_the_true_mean_about_as_often_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 100 samples of 30 videos the true mean .5 lies in 95 intervals, give or take; over
    queries, in far fewer.
    """
    monkeypatch.setattr(grounding.metrics.bootstrap, "NUM_RESAMPLES", 300)
    random = np.random.default_rng(4)
    held = {"videos": 0, "queries": 0}
    for _ in range(100):
        values, videos = clusters(random, 30, 8)
        scores = scores_of(values)
        for kind, names in (("videos", videos), ("queries", one_each(scores))):
            found = confidence_intervals(scores, names)
            held[kind] += found["m_vIoU_low"] <= 0.5 <= found["m_vIoU_high"]
    assert held["videos"] >= 88
    assert held["queries"] <= 70


def test_a_run_does_not_differ_from_itself() -> None:
    values, videos = clusters(np.random.default_rng(5), 12, 3)
    for one in compare_paired(scores_of(values), scores_of(values), videos).values():
        assert (one.mean, one.low, one.high, one.p, one.better, one.worse) == (0, 0, 0, 1, 0, 0)
        assert one.ours == one.other


def test_a_clear_improvement_is_seen_though_videos_differ_more() -> None:
    """All queries gain .1, give or take; from video to video scores differ by .6. What is hard for
    both cancels.
    """
    random = np.random.default_rng(6)
    values, videos = clusters(random, 30, 4)
    ours, other = (
        scores_of(np.clip(values + random.normal(0.1, 0.02, len(values)), 0, 1)),
        scores_of(values),
    )
    found = compare_paired(ours, other, videos)["m_vIoU"]
    assert found.mean == pytest.approx(0.1, abs=0.01)
    assert 0.08 < found.low < found.mean < found.high < 0.12
    assert found.p < 0.001
    assert found.better > 110
    assert found.worse < 10
    assert found.ours - found.other == pytest.approx(found.mean)
    assert (found.ours, found.other) == (
        pytest.approx(summarize(ours)["m_vIoU"]),
        pytest.approx(summarize(other)["m_vIoU"]),
    )


def test_noise_is_no_improvement() -> None:
    random = np.random.default_rng(7)
    values, videos = clusters(random, 30, 4)
    found = compare_paired(
        scores_of(np.clip(values + random.normal(0, 0.05, len(values)), 0, 1)),
        scores_of(values),
        videos,
    )["m_vIoU"]
    assert found.low < 0 < found.high
    assert found.p > 0.05


def test_the_smallest_p_is_one_of_all_draws() -> None:
    scores = scores_of([0.2] * 20)
    assert compare_paired(scores_of([0.7] * 20), scores, one_each(scores))["m_vIoU"].p == 1 / (
        grounding.metrics.bootstrap.NUM_RESAMPLES + 1
    )


def test_the_other_way_round_differences_are_negated() -> None:
    random = np.random.default_rng(8)
    values, videos = clusters(random, 15, 2)
    a, b = scores_of(values), scores_of(random.permutation(values))
    there, back = compare_paired(a, b, videos), compare_paired(b, a, videos)
    assert list(there) == list(back) == list(MEAN_METRICS)
    for name in MEAN_METRICS:
        one, other = there[name], back[name]
        assert (one.mean, one.low, one.high) == pytest.approx(
            (-other.mean, -other.high, -other.low)
        )
        assert (one.ours, one.other, one.better, one.worse) == (
            other.other,
            other.ours,
            other.worse,
            other.better,
        )
        assert one.p == pytest.approx(other.p)


def test_queries_are_compared_by_id() -> None:
    ours, other = (
        scores_of([0.1, 0.5, 0.9], ["a", "b", "c"]),
        scores_of([0.9, 0.5, 0.1], ["c", "b", "a"]),
    )
    assert compare_paired(ours, other, one_each(ours))["m_vIoU"].better == 0
    assert compare_paired(ours, other, one_each(ours))["m_vIoU"].mean == 0


def test_only_queries_known_to_both_count() -> None:
    ours = [
        Score(id="a", vIoU=0.5, tIoU=0.5, sIoU=0.5),
        Score(id="b", vIoU=None, tIoU=0.5, sIoU=None),
    ]
    other = [
        Score(id="a", vIoU=0.25, tIoU=0.5, sIoU=0.5),
        Score(id="b", vIoU=None, tIoU=1.0, sIoU=None),
    ]
    found = compare_paired(ours, other, one_each(ours))
    assert (found["m_vIoU"].mean, found["m_vIoU"].better, found["m_vIoU"].worse) == (0.25, 1, 0)
    assert (found["m_tIoU"].mean, found["m_tIoU"].better, found["m_tIoU"].worse) == (-0.25, 0, 1)
    assert list(compare_paired(ours[1:], other[1:], one_each(ours))) == ["m_tIoU"]


def test_runs_on_other_queries_are_not_compared() -> None:
    ours, other = scores_of([0.1, 0.2], ["a", "b"]), scores_of([0.1, 0.2], ["b", "c"])
    with pytest.raises(
        InputError, match="do not score the same queries: 2 are in one only, for example 'a'"
    ):
        compare_paired(ours, other, one_each([*ours, *other]))


@pytest.mark.parametrize(("videos", "given"), [(9, False), (10, True)])
def test_too_few_videos_have_no_interval(
    videos: int, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding.metrics.bootstrap, "MIN_VIDEOS", 10)
    scores = scores_of([place / videos for place in range(videos)])
    assert bool(confidence_intervals(scores, one_each(scores))) is given
    found = compare_paired(scores, scores_of([0.0] * videos), one_each(scores))["m_vIoU"]
    assert [value is not None for value in (found.low, found.high, found.p)] == [given] * 3
    assert found.mean == pytest.approx(sum(place / videos for place in range(videos)) / videos)

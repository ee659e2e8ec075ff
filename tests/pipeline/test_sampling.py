"""Which frames and clips are taken: stated as facts that hold for any video, and worked by hand
where the rule is ours.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sampling import (
    compute_clip_centers,
    compute_pool_bins,
    compute_relative_positions,
    find_nearest_frames,
    label_clips,
    label_frames,
    plan_passes,
    sample_bin_centers,
    sample_clip_frames,
    sample_grid,
    span_to_frames,
)

counts = st.integers(1, 200)
milliseconds = st.lists(st.integers(1, 400), min_size=1, max_size=80)
"""Gaps between frames: a variable rate."""


def times(gaps: list[int]) -> np.ndarray:
    return 3.0 + np.cumsum([0, *gaps]) / 1000


def brute_nearest(seconds: np.ndarray, wanted: float) -> int:
    return int(np.argmin(np.round(np.abs(seconds - wanted), 6)))


def test_the_grid_of_a_constant_rate() -> None:
    np.testing.assert_array_equal(sample_grid(np.arange(31) / 30, 5), [0, 6, 12, 18, 24, 30])


def test_the_grid_starts_at_the_first_frame_s_own_time() -> None:
    np.testing.assert_array_equal(sample_grid(100 + np.arange(31) / 30, 5), [0, 6, 12, 18, 24, 30])


def test_the_grid_follows_time_stamps_not_the_frame_rate() -> None:
    """Wanted times 0, .2, .4, .6; half the frames lie in the first tenth of a second."""
    seconds = np.array([0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.4, 0.6])
    np.testing.assert_array_equal(sample_grid(seconds, 5), [0, 6, 7, 8])


def test_a_video_without_frames_has_no_grid() -> None:
    assert sample_grid(np.zeros(0), 5).shape == (0,)


@given(milliseconds, st.sampled_from([1.0, 5.0, 30.0]))
def test_the_grid_is_the_frames_nearest_to_its_times(gaps: list[int], fps: float) -> None:
    seconds = times(gaps)
    grid = sample_grid(seconds, fps)
    expected = seconds[0] + np.arange(math.floor((seconds[-1] - seconds[0]) * fps + 1e-6) + 1) / fps
    assert grid[0] == 0
    assert (np.diff(grid) > 0).all()
    assert set(grid.tolist()) == {brute_nearest(seconds, time) for time in expected}


@given(milliseconds, st.lists(st.integers(-500, 40_000), min_size=1, max_size=20))
def test_nearest_frames_are_nearest_and_the_earlier_of_two(
    gaps: list[int], wanted: list[int]
) -> None:
    seconds = times(gaps)
    asked = 3.0 + np.array(wanted) / 1000
    np.testing.assert_array_equal(
        find_nearest_frames(seconds, asked), [brute_nearest(seconds, time) for time in asked]
    )


def test_the_only_frame_is_nearest_to_everything() -> None:
    np.testing.assert_array_equal(
        find_nearest_frames(np.array([2.0]), np.array([-1.0, 2.0, 9.0])), [0, 0, 0]
    )


@given(milliseconds)
def test_clips_tile_the_video(gaps: list[int]) -> None:
    seconds = times(gaps)
    centres = compute_clip_centers(seconds, 0.4)
    np.testing.assert_allclose(centres - seconds[0], 0.4 * np.arange(len(centres)) + 0.2)
    assert 0.4 * (len(centres) - 1) < max(seconds[-1] - seconds[0], 1e-9)
    assert seconds[-1] - seconds[0] <= 0.4 * len(centres) + 1e-6


def test_a_video_of_one_frame_has_one_clip() -> None:
    np.testing.assert_allclose(compute_clip_centers(np.array([5.0]), 0.4), [5.2])


def test_a_clip_s_frames_are_spread_over_its_span() -> None:
    """8 parts of .8 s around 1.0: middles .65, .75 … 1.35, at 20 fps frames 13, 15 … 27."""
    np.testing.assert_array_equal(
        sample_clip_frames(np.arange(100) / 20, 1.0, 0.8, 8), np.arange(13, 28, 2)
    )


@given(milliseconds, st.floats(-2, 40), st.integers(1, 32))
def test_a_clip_s_frames_ascend_and_clamp_to_the_ends(
    gaps: list[int], centre: float, count: int
) -> None:
    seconds = times(gaps)
    frames = sample_clip_frames(seconds, centre, 64 / 30, count)
    middles = centre + ((np.arange(count) + 0.5) / count - 0.5) * 64 / 30
    assert frames.shape == (count,)
    assert (np.diff(frames) >= 0).all()
    assert (frames[middles <= seconds[0]] == 0).all()
    assert (frames[middles >= seconds[-1]] == len(seconds) - 1).all()


def test_bin_centres_by_hand() -> None:
    np.testing.assert_array_equal(sample_bin_centers(12, 4), [1, 4, 7, 10])
    np.testing.assert_array_equal(sample_bin_centers(2, 4), [0, 0, 1, 1])


@given(counts, counts)
def test_bin_centres_are_in_their_bins(available: int, count: int) -> None:
    taken = sample_bin_centers(available, count)
    assert taken.shape == (count,)
    assert taken.min() >= 0
    assert taken.max() < available
    edges = np.arange(count + 1) * available / count
    assert (taken <= edges[1:]).all()
    assert (taken + 1 >= edges[:-1]).all()


def test_passes_by_hand() -> None:
    """Seven items by four: P = 2, pass p takes ⌊(k + (p + ½)/2)·7/4⌋: k + ¼ → 0, 2, 3, 5 and k + ¾
    → 1, 3, 4, 6.
    """
    assert [part.tolist() for part in plan_passes(7, 4)] == [[0, 2, 3, 5], [1, 3, 4, 6]]


@given(st.integers(1, 400), st.integers(1, 100))
def test_passes_see_every_item(available: int, count: int) -> None:
    taken = plan_passes(available, count)
    assert all(part.shape == (count,) and (np.diff(part) >= 0).all() for part in taken)
    assert set(np.concatenate(taken).tolist()) == set(range(available))
    assert len(taken) >= math.ceil(available / count)


@given(st.integers(1, 400), st.integers(1, 100))
def test_every_pass_spreads_over_the_whole_segment_unless_it_catches_up(
    available: int, count: int
) -> None:
    total = math.ceil(available / count)
    for part in plan_passes(available, count)[:total]:
        assert part[0] <= available / count
        assert part[-1] + 1 >= available - available / count


@given(counts, counts)
def test_pool_bins_are_partitions_or_single_items(available: int, count: int) -> None:
    bins = compute_pool_bins(available, count)
    assert len(bins) == count
    assert all(0 <= begin < end <= available for begin, end in bins)
    if available >= count:
        assert [item for begin, end in bins for item in range(begin, end)] == list(range(available))
    else:
        assert all(end == begin + 1 for begin, end in bins)


@given(counts, counts)
def test_short_videos_are_stretched_evenly(available: int, count: int) -> None:
    begins = [begin for begin, _ in compute_pool_bins(min(available, count), max(available, count))]
    expected = np.arange(len(begins)) * min(available, count) / max(available, count)
    assert (np.abs(np.array(begins) - expected) <= 1).all()
    assert begins == sorted(begins)


def test_places_are_the_middles_of_frames() -> None:
    np.testing.assert_allclose(
        compute_relative_positions(np.arange(10, 14), (10, 14)), [0.125, 0.375, 0.625, 0.875]
    )


def test_inside_frames_are_half_open() -> None:
    np.testing.assert_array_equal(label_frames(np.arange(8), (2, 5)), [0, 0, 1, 1, 1, 0, 0, 0])


def test_with_no_frame_inside_the_one_nearest_the_middle_counts() -> None:
    np.testing.assert_array_equal(label_frames(np.array([0, 10, 20]), (12, 19)), [0, 1, 0])
    np.testing.assert_array_equal(label_frames(np.array([0, 10, 20]), (13, 20)), [0, 0, 1])


@given(
    st.sets(st.integers(0, 300), min_size=1, max_size=30), st.integers(0, 299), st.integers(1, 100)
)
def test_some_frame_is_always_inside(frames: set[int], begin: int, length: int) -> None:
    numbers = np.array(sorted(frames))
    inside = label_frames(numbers, (begin, begin + length))
    true = (numbers >= begin) & (numbers < begin + length)
    if true.any():
        np.testing.assert_array_equal(inside, true)
    else:
        distance = np.abs(numbers + 0.5 - (begin + length / 2))
        assert inside.sum() == 1
        assert distance[inside][0] == distance.min()


def test_clips_at_least_half_covered_are_inside() -> None:
    """Four clips, span [.125, .6): clip 0 covered exactly half, 1 whole, 2 covered .1/.25."""
    np.testing.assert_array_equal(label_clips((0.125, 0.6), 4), [1, 1, 0, 0])


def test_with_no_clip_half_covered_the_one_nearest_the_middle_counts() -> None:
    np.testing.assert_array_equal(label_clips((0.55, 0.6), 4), [0, 0, 1, 0])


@given(st.floats(0, 0.99), st.floats(0.001, 1), st.integers(1, 64))
def test_inside_clips_are_one_run(begin: float, length: float, clips: int) -> None:
    inside = label_clips((begin, min(1.0, begin + length)), clips)
    assert inside.any()
    assert (np.diff(np.flatnonzero(inside)) == 1).all()


def test_spans_round_to_frames() -> None:
    assert span_to_frames(0.25, 0.5, (100, 110)) == (102, 105)
    assert span_to_frames(0.0, 1.0, (100, 110)) == (100, 110)


@pytest.mark.parametrize(
    ("begin", "end"), [(0.5, 0.5), (0.999, 1.0), (0.51, 0.52), (0.0, 0.0), (0.9, 0.1)]
)
def test_a_span_is_at_least_one_frame_long(begin: float, end: float) -> None:
    first, last = span_to_frames(begin, end, (100, 110))
    assert last == first + 1


@given(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5), st.integers(0, 50), st.integers(1, 500))
def test_a_span_lies_in_its_segment(begin: float, end: float, start: int, length: int) -> None:
    first, last = span_to_frames(begin, end, (start, start + length))
    assert start <= first < last <= start + length


@given(st.integers(0, 50), st.integers(1, 500), st.data())
def test_a_true_span_survives_the_way_to_places_and_back(
    start: int, length: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, length - 1))
    last = data.draw(st.integers(first + 1, length))
    assert span_to_frames(first / length, last / length, (start, start + length)) == (
        start + first,
        start + last,
    )

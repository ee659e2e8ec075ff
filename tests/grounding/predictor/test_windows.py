"""Windows of long videos: what they cover, that only their rows are held, and which of their
answers are the best.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grounding.data.sources import InMemorySource
from grounding.inference.decode_tube import decode_ranked_tube, decode_tube
from grounding.inference.segment_prediction import SegmentPrediction
from grounding.predictor.results import TopTubes
from grounding.predictor.windows import (
    RowBuffer,
    plan_windows,
    read_window_batches,
    stream_window_batches,
)
from grounding.structures.span_scores import BoundaryPrediction
from pipeline.records import Prediction, Query
from pipeline.store import Entry


def even(count: int, rate: float = 10.0) -> np.ndarray:
    return np.arange(count + 1) / rate


def test_a_video_that_fits_is_one_window() -> None:
    assert plan_windows(even(70), 7.0) == [(0, 70)]
    assert plan_windows(even(71), 7.0) == [(0, 71)]
    assert plan_windows(even(1), 7.0) == [(0, 1)]
    assert len(plan_windows(even(72), 7.0)) == 2


def test_windows_overlap_by_half_and_end_with_the_video() -> None:
    assert plan_windows(even(140), 7.0) == [(0, 70), (35, 105), (70, 140)]
    assert plan_windows(even(100), 7.0) == [(0, 70), (30, 100)]


@given(st.lists(st.floats(0.001, 3.0), min_size=1, max_size=300), st.floats(0.5, 20.0))
def test_windows_cover_every_frame_at_any_rate(lengths: list[float], seconds: float) -> None:
    edges = np.concatenate([[0.0], np.cumsum(lengths)])
    windows = plan_windows(edges, seconds)
    assert windows[0][0] == 0
    assert windows[-1][1] == len(lengths)
    assert all(begin < end for begin, end in windows)
    assert all(
        item[0] <= other[0] <= item[1] and item[1] <= other[1] for item, other in pairwise(windows)
    )


def test_an_event_of_half_a_window_lies_whole_in_one() -> None:
    windows = plan_windows(even(1003), 7.0)
    for begin in range(1003 - 34):
        assert any(first <= begin and begin + 34 <= end for first, end in windows)


# Features


class Stream:
    """What a `FeatureStream` gives of 200 frames: maps of every second one, four at a time, and
    clips of every fifth, three at a time, as late as clips come; `frames` with two rows for each.
    """

    def __init__(self) -> None:
        self.initial_facts = {"size": [8, 6]}
        own = {
            "appearance": np.arange(0, 200, 2),
            "motion": np.arange(2, 200, 5),
            "frames": np.arange(0, 200, 2).repeat(2),
        }
        self.builders = {
            name: SimpleNamespace(columns=lambda b, e, f=frames: {"frame": f[b:e]})
            for name, frames in own.items()
        }
        self.frames = own
        self.given = dict.fromkeys(own, 0)

    def rows(self, name: str) -> np.ndarray:
        return self.frames[name].astype(np.float16)[:, None, None, None]

    def __iter__(self) -> Any:
        for number in range(200):
            for name, block, late in (("appearance", 4, 0), ("motion", 3, 6), ("frames", 2, 0)):
                result = self.given[name]
                while (
                    result + block <= len(self.frames[name])
                    and self.frames[name][result + block - 1] + late <= number
                ):
                    yield name, self.rows(name)[result : result + block]
                    result = self.given[name] = result + block
        for name, result in self.given.items():
            if result < len(self.frames[name]):
                yield name, self.rows(name)[result:]


REDUCTIONS: dict[str, Any] = dict.fromkeys(("appearance", "motion", "frames"))


@pytest.mark.parametrize("windows_per_batch", [1, 3, 100])
def test_streamed_and_kept_features_are_the_same(windows_per_batch: int) -> None:
    stream, windows = Stream(), plan_windows(even(200), 3.0)
    complete = {
        name: InMemorySource([Entry("v", "v", stream.rows(name), {"frame": stream.frames[name]})])
        for name in stream.frames
    }
    streamed = list(stream_window_batches("v", stream, REDUCTIONS, windows, windows_per_batch))  # type: ignore[arg-type]
    kept = list(read_window_batches("v", complete, windows, windows_per_batch))
    assert [stretch.windows for stretch in streamed] == [stretch.windows for stretch in kept]
    assert [window for stretch in kept for window in stretch.windows] == windows
    for item, other in zip(streamed, kept, strict=True):
        for name in stream.frames:
            np.testing.assert_array_equal(
                item.features[name].columns("v")["frame"],
                other.features[name].columns("v")["frame"],
            )
            np.testing.assert_array_equal(
                item.features[name].read("v"), other.features[name].read("v")
            )


def test_a_stretch_has_the_rows_of_its_windows_and_one_frame_more_on_either_side() -> None:
    stream = Stream()
    (first, *_, last) = stream_window_batches(
        "v", stream, REDUCTIONS, [(0, 30), (41, 71), (170, 200)], 1
    )  # type: ignore[arg-type]
    assert first.features["appearance"].columns("v")["frame"].tolist() == [*range(0, 32, 2)]
    assert last.features["motion"].columns("v")["frame"].tolist() == [*range(167, 200, 5)]
    assert last.features["frames"].columns("v")["frame"].tolist() == [
        *np.arange(168, 200, 2).repeat(2)
    ]


def test_a_stretch_comes_before_the_video_ends_and_what_it_needed_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    max_rows: dict[int, int] = {}

    def append(
        self: Any, rows: np.ndarray, columns: dict[str, np.ndarray], plain: Any = RowBuffer.append
    ) -> None:
        plain(self, rows, columns)
        max_rows[id(self)] = max(
            max_rows.get(id(self), 0), sum(len(block) for block, _ in self._blocks)
        )

    monkeypatch.setattr(RowBuffer, "append", append)
    stream = Stream()
    given = [
        stream.given["appearance"]
        for _ in stream_window_batches("v", stream, REDUCTIONS, plan_windows(even(200), 3.0), 1)
    ]  # type: ignore[arg-type]
    assert given[0] <= 24
    assert given == sorted(given)
    motion, appearance, frames = sorted(max_rows.values())
    assert appearance <= 30
    assert motion <= 15
    assert frames <= 60


# The best answers


def prediction(begin: int, end: int, score: float) -> Prediction:
    return Prediction(id="0", span=(begin, end), score=score, boxes=[(begin, 0.0, 0.0, 1.0, 1.0)])


def test_of_those_that_found_the_same_the_best_counts() -> None:
    best = TopTubes(3)
    for item in (
        prediction(0, 20, 0.3),
        prediction(5, 20, 0.9),
        prediction(40, 60, 0.5),
        prediction(58, 70, 0.4),
        prediction(58, 62, 0.1),
    ):
        best.add(item.score, item)
    assert [own.span for own in best.select()] == [(5, 20), (40, 60), (58, 70)]


def test_of_equal_ones_the_first_counts() -> None:
    best = TopTubes(1)
    for begin in (10, 50, 90):
        best.add(0.5, prediction(begin, begin + 5, 0.5))
    assert best.select()[0].span == (10, 15)


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 30), st.integers(0, 20)),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 4),
)
def test_no_more_than_are_needed_are_remembered(
    windows: list[tuple[int, int, int]], count: int
) -> None:
    """One answer in each of half-overlapped windows of 60 frames: the few that are remembered give
    what all would.
    """
    few, all_of_them = TopTubes(count), TopTubes(1000)
    for place, (begin, length, score) in enumerate(windows):
        item = prediction(place * 30 + begin, place * 30 + begin + length, score / 20)
        few.add(item.score, item)
        all_of_them.add(item.score, item)
    assert few.select() == all_of_them.select()[:count]
    assert len(few._heap) <= 5 * count


# Which windows are the best


def build_segment_prediction(
    level: float, sure: float, segment: tuple[int, int] = (0, 8)
) -> SegmentPrediction:
    """What CG-STVG or CoSTA says of a window of four frames: its event is of the middle two, with
    the probability `sure` at each end.
    """
    query = {
        "id": "q",
        "video": "v",
        "path": "v",
        "text": "x",
        "split": "ask",
        "fps": 1.0,
        "frame_count": 8,
        "size": (8, 8),
        "segment": segment,
    }
    segment_prediction = SegmentPrediction.__new__(SegmentPrediction)
    segment_prediction.query = Query.model_validate(query)
    segment_prediction.passes = []
    segment_prediction.frame_indices = np.linspace(*segment, 5)[:-1].astype(int)
    segment_prediction.refined = None
    segment_prediction.box_sums, segment_prediction.box_counts = (
        np.full((4, 4), 0.5),
        np.ones(4, int),
    )
    rest = (1 - sure) / 3
    response = BoundaryPrediction(
        np.array([rest, sure, rest, rest]), np.array([rest, rest, sure, rest]), level
    )
    segment_prediction.span_scores = response.init_scores(segment, segment_prediction.frame_indices)
    segment_prediction.span_scores.add(response, segment_prediction.frame_indices)
    return segment_prediction


def test_windows_are_compared_by_what_was_there_before_it_was_made_to_sum_to_one() -> None:
    """A window that shows nothing may be as sure of its frames as one that shows the event; the
    event is louder.
    """
    (faint, doubtful), (clear, response) = (
        decode_ranked_tube(build_segment_prediction(*item), False)
        for item in ((0.0, 0.9), (5.0, 0.6))
    )
    assert doubtful.score == pytest.approx(0.81)
    assert response.score == pytest.approx(0.36)
    assert clear - faint == pytest.approx(5 + np.log(0.36 / 0.81))


def test_a_second_look_sharpens_an_answer_and_leaves_its_place_among_the_windows() -> None:
    """It is of a part of the window, and what it makes sum to one is another sum; some windows have
    none.
    """
    segment_prediction = build_segment_prediction(5.0, 0.6)
    plain = decode_ranked_tube(segment_prediction, False)
    segment_prediction.refined = build_segment_prediction(50.0, 0.9, (2, 6))
    sharpened = decode_ranked_tube(segment_prediction, False)
    assert sharpened[0] == plain[0]
    assert sharpened[1].score != plain[1].score
    assert sharpened[1] == decode_tube(segment_prediction, False)

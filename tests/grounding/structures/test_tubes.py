"""Tubes in columns: the box of any tube at any frame, and many at once as each alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grounding.structures.tubes import (
    Tubes,
    concatenate_ranges,
    ground_truth_boxes,
    prediction_boxes,
)
from pipeline.boxes import interpolate_boxes
from pipeline.errors import InputError
from pipeline.records import Prediction, Query, Truth
from pipeline.tracks import Tracks

Rows = dict[int, tuple[float, float, float, float]]
box = st.tuples(*[st.floats(-400, 2000, allow_subnormal=False)] * 4)
rows_of_tube = st.dictionaries(st.integers(0, 60), box, max_size=8)
quick = settings(max_examples=60)


def tubes_of(tubes: list[Rows], framewise: bool = False) -> Tubes:
    rows = [
        (np.array(list(tube), np.int64), np.array(list(tube.values()), np.float64).reshape(-1, 4))
        for tube in tubes
    ]
    result = Tubes.from_rows(
        [f"q{number}" for number in range(len(tubes))],
        [(number, number + 5) for number in range(len(tubes))],
        rows,
    )
    return replace(result, framewise=framewise)


def at(
    tube: Tubes, frames: list[int] | np.ndarray, index: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    return tube.boxes_at(np.full(len(frames), index), np.asarray(frames))


def same(a: Tubes, b: Tubes) -> bool:
    columns = ("spans", "offsets", "frames", "boxes")
    return (a.ids, a.framewise) == (b.ids, b.framewise) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in columns
    )


def query_of(
    name: str = "q", span: tuple[int, int] = (3, 6), track: str | None = "t", **changes: object
) -> Query:
    values = {
        "id": name,
        "video": "v",
        "path": "v.mp4",
        "fps": 25.0,
        "frame_count": 20,
        "size": (100, 100),
        "segment": (0, 20),
    }
    return Query.model_validate(
        {**values, "text": "x", "split": "test", "truth": Truth(span=span, track=track), **changes}
    )


def test_samples_by_hand() -> None:
    """Exact at 10 and 20, half way at 15, held before and after."""
    tube = tubes_of([{20: (10, 10, 30, 30), 10: (0, 0, 20, 20)}])
    boxes, has_box = at(tube, [0, 10, 15, 20, 99])
    assert boxes.tolist() == [
        [0, 0, 20, 20],
        [0, 0, 20, 20],
        [5, 5, 25, 25],
        [10, 10, 30, 30],
        [10, 10, 30, 30],
    ]
    assert has_box.all()


def test_a_frame_wise_tube_by_hand() -> None:
    """Its own boxes at 10 and 12, none in the gap, held outside (but not its own there)."""
    tube = tubes_of([{10: (0, 0, 2, 2), 12: (4, 4, 6, 6)}], framewise=True)
    boxes, has_box = at(tube, [9, 10, 11, 12, 13])
    assert boxes.tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 0, 0], [4, 4, 6, 6], [4, 4, 6, 6]]
    assert has_box.tolist() == [False, True, False, True, False]


@given(
    st.dictionaries(st.integers(0, 60), box, min_size=1, max_size=8),
    st.lists(st.integers(-5, 70), max_size=20),
)
@quick
def test_boxes_between_samples_are_those_of_linear_interpolation(
    rows: Rows, requested: list[int]
) -> None:
    frames = np.array(sorted(rows))
    samples = np.array([rows[frame] for frame in frames.tolist()])
    tube = tubes_of([rows])
    np.testing.assert_allclose(
        at(tube, requested)[0],
        interpolate_boxes(frames, samples, np.array(requested)),
        rtol=0,
        atol=1e-9,
    )
    np.testing.assert_array_equal(at(tube, frames)[0], samples)
    np.testing.assert_array_equal(at(tube, [-5, 70])[0], samples[[0, -1]])


@given(st.lists(rows_of_tube, min_size=1, max_size=6), st.booleans(), st.data())
@quick
def test_many_tubes_at_once_are_each_alone(
    tubes: list[Rows], framewise: bool, data: st.DataObject
) -> None:
    requests = data.draw(
        st.lists(st.tuples(st.integers(0, len(tubes) - 1), st.integers(-3, 65)), max_size=25)
    )
    boxes, has_box = tubes_of(tubes, framewise).boxes_at(
        np.array([index for index, _ in requests], np.int64),
        np.array([frame for _, frame in requests], np.int64),
    )
    for number, (index, frame) in enumerate(requests):
        alone, alone_own = at(tubes_of([tubes[index]], framewise), [frame])
        np.testing.assert_array_equal(boxes[number], alone[0])
        assert has_box[number] == alone_own[0]
        if not tubes[index]:
            assert not has_box[number]
            assert not boxes[number].any()


@given(rows_of_tube, st.randoms(use_true_random=False))
@quick
def test_rows_in_any_order_are_sorted(rows: Rows, random: object) -> None:
    pairs = list(rows.items())
    random.shuffle(pairs)  # type: ignore[attr-defined]
    assert same(tubes_of([dict(pairs)]), tubes_of([dict(sorted(rows.items()))]))


def test_two_boxes_of_one_frame_are_refused() -> None:
    with pytest.raises(InputError, match="query 'a' has two boxes for frame 4; keep one"):
        Tubes.from_rows(["a"], [(0, 9)], [(np.array([4, 7, 4]), np.zeros((3, 4)))])
    with pytest.raises(InputError, match="query 'b' has two boxes for frame 7; keep one"):
        Tubes.from_predictions(
            [Prediction(id="b", span=(0, 9), score=1.0, boxes=[(7, 0, 0, 1, 1), (7, 0, 0, 1, 1)])]
        )


@given(st.lists(rows_of_tube, max_size=6), st.data())
@quick
def test_selected_tubes_keep_their_rows_and_missing_ones_are_empty(
    tubes: list[Rows], data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.integers(-1, len(tubes) - 1), max_size=8))
    chosen = tubes_of(tubes).select(np.array(places, np.int64))
    assert len(chosen) == len(places)
    for number, index in enumerate(places):
        alone = chosen.slice(number, number + 1)
        if index < 0:
            assert (alone.ids, alone.spans.tolist(), len(alone.frames)) == (("",), [[0, 0]], 0)
        else:
            assert same(alone, tubes_of(tubes).slice(index, index + 1))
    assert (np.diff(chosen.row_keys()) > 0).all()


def test_a_slice_keeps_whether_a_tube_is_frame_wise() -> None:
    tubes = tubes_of([{1: (0, 0, 1, 1)}, {}, {2: (0, 0, 2, 2), 5: (0, 0, 3, 3)}], framewise=True)
    part = tubes.slice(1, 3)
    assert (part.ids, part.framewise) == (("q1", "q2"), True)
    assert part.spans.tolist() == [[1, 6], [2, 7]]
    assert (part.offsets.tolist(), part.row_tubes.tolist(), part.frames.tolist()) == (
        [0, 0, 2],
        [1, 1],
        [2, 5],
    )


def test_no_tubes_at_all() -> None:
    nothing = Tubes.from_predictions([])
    assert (len(nothing), nothing.spans.shape, nothing.boxes.shape, nothing.offsets.tolist()) == (
        0,
        (0, 2),
        (0, 4),
        [0],
    )
    boxes, has_box = nothing.select(np.array([-1, -1])).boxes_at(np.array([0, 1]), np.array([3, 4]))
    assert (boxes.tolist(), has_box.tolist()) == ([[0, 0, 0, 0]] * 2, [False, False])


def test_predictions_are_samples_with_their_spans() -> None:
    tubes = Tubes.from_predictions(
        [
            Prediction(
                id="a", span=(2, 9), score=1.0, boxes=[(7, 1, 2, 3, 4), (2, -5, 0.1, 700, 9)]
            ),
            Prediction(id="b", span=(4, 5), score=0.0, boxes=[]),
        ]
    )
    assert (tubes.ids, tubes.framewise) == (("a", "b"), False)
    assert tubes.spans.tolist() == [[2, 9], [4, 5]]
    assert (tubes.offsets.tolist(), tubes.frames.tolist()) == ([0, 2, 2], [2, 7])
    assert tubes.boxes.tolist() == [[-5, 0.1, 700, 9], [1, 2, 3, 4]]


def test_the_truth_is_what_its_track_has_inside_the_span() -> None:
    tracks = Tracks()
    tracks.add("t", np.array([1, 3, 5, 6, 9]), np.arange(20).reshape(5, 4) + 0.1)
    queries = [
        query_of("a"),
        query_of("b", truth=None),
        query_of("c", track=None),
        query_of("d", span=(7, 9)),
    ]
    tubes = Tubes.from_ground_truth(queries, tracks)
    assert (tubes.ids, tubes.framewise) == (("a", "c", "d"), True)
    assert (tubes.offsets.tolist(), tubes.frames.tolist()) == ([0, 2, 2, 2], [3, 5])
    assert tubes.boxes.tolist() == [[4.1, 5.1, 6.1, 7.1], [8.1, 9.1, 10.1, 11.1]]
    assert [len(ground_truth_boxes(query, tracks)[0]) for query in queries] == [2, 0, 0, 0]


def test_a_tube_without_boxes_is_all_zeros() -> None:
    assert (
        prediction_boxes(
            Prediction(id="a", span=(0, 3), score=1.0, boxes=[]), np.arange(3)
        ).tolist()
        == [[0, 0, 0, 0]] * 3
    )


@given(st.lists(st.tuples(st.integers(-9, 99), st.integers(0, 5)), max_size=8))
@quick
def test_ranges_follow_one_another(parts: list[tuple[int, int]]) -> None:
    expected = [begin + step for begin, length in parts for step in range(length)]
    begins, lengths = (np.array([part[side] for part in parts], np.int64) for side in (0, 1))
    assert concatenate_ranges(begins, lengths).tolist() == expected

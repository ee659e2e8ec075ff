"""The every-frame protocol: numbers worked by hand, and what holds for any tube."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grounding.metrics.protocols import ScoreArrays, temporal_iou
from grounding.metrics.scores import (
    MEAN_METRICS,
    Score,
    build_scores,
    check_known_ids,
    index_by_id,
    read_scores,
    score_queries,
    summarize,
    summarize_by,
    write_scores,
)
from grounding.structures.tubes import Tubes, prediction_boxes
from pipeline.errors import InputError
from pipeline.records import Prediction, Query, Truth
from pipeline.tracks import Tracks

BOX = (100.0, 100.0, 200.0, 200.0)


def make_query(
    span: tuple[int, int] = (100, 160), name: str = "q", track: str | None = "t", **fields: object
) -> Query:
    values = {
        "id": name,
        "video": "v",
        "path": "v.mp4",
        "fps": 30.0,
        "frame_count": 300,
        "size": (640, 360),
        "segment": (0, 300),
    }
    return Query.model_validate(
        {
            **values,
            "text": "a dog",
            "split": "test",
            "truth": Truth(span=span, track=track),
            **fields,
        }
    )


def make_tracks(frames: range | np.ndarray, box: tuple[float, ...] = BOX, key: str = "t") -> Tracks:
    tracks = Tracks()
    tracks.add(key, np.asarray(frames), np.tile(np.array(box), (len(frames), 1)))
    return tracks


def predict(
    span: tuple[int, int], boxes: list[tuple[int, float, float, float, float]], name: str = "q"
) -> Prediction:
    return Prediction(id=name, span=span, score=1.0, boxes=boxes)


def test_the_example_of_a_five_fps_grid() -> None:
    """30 fps, truth [100, 160), ten sampled frames 102, 108 … 156 with box IoU .8: 55/60 × .8 =
    .7333.
    """
    grid = range(102, 157, 6)
    prediction = predict((102, 157), [(frame, 100, 100, 200, 180) for frame in grid])
    (score,) = score_queries([make_query()], make_tracks(range(300)), [prediction])
    assert len(grid) == 10
    assert score.tIoU == pytest.approx(55 / 60)
    assert score.vIoU == pytest.approx(0.8 * 55 / 60)
    assert score.vIoU == pytest.approx(0.733, abs=5e-4)
    assert score.sIoU == pytest.approx(0.8)


def test_a_late_prediction_by_hand() -> None:
    """Truth [100, 160), predicted [130, 190): 30 shared of 90; boxes exact inside: vIoU = tIoU =
    1/3, sIoU = 1.
    """
    (score,) = score_queries(
        [make_query()], make_tracks(range(100, 160)), [predict((130, 190), [(130, *BOX)])]
    )
    assert (score.tIoU, score.vIoU, score.sIoU) == (
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
        pytest.approx(1.0),
    )


def test_truth_frames_without_a_box_leave_both_sums() -> None:
    """Truth [100, 160) boxed in 40 of its 60 frames, predicted exactly in [110, 170): 30 boxed
    shared of 70 − 20.
    """
    boxed = np.concatenate([range(100, 110), range(130, 160)])
    (score,) = score_queries(
        [make_query()], make_tracks(boxed), [predict((110, 170), [(110, *BOX)])]
    )
    assert score.vIoU == pytest.approx(30 / 50)
    assert score.tIoU == pytest.approx(50 / 70)
    assert score.sIoU == pytest.approx(1.0)


def test_boxes_outside_the_true_span_are_not_truth() -> None:
    (score,) = score_queries(
        [make_query()], make_tracks(range(0, 300)), [predict((0, 300), [(0, *BOX)])]
    )
    assert score.vIoU == pytest.approx(60 / 300)


def test_a_prediction_without_boxes_is_judged_in_time_only() -> None:
    (score,) = score_queries([make_query()], make_tracks(range(300)), [predict((100, 160), [])])
    assert (score.tIoU, score.vIoU, score.sIoU) == (1.0, 0.0, 0.0)


def test_a_query_without_a_prediction_scores_zero() -> None:
    (score,) = score_queries([make_query()], make_tracks(range(300)), [])
    assert (score.tIoU, score.vIoU, score.sIoU) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("track", [None, "elsewhere"])
def test_without_true_boxes_only_time_is_judged(track: str | None) -> None:
    queries = [make_query(track=track, name="a"), make_query(name="b")]
    tracks = make_tracks(range(300))
    tracks.add("elsewhere", np.arange(200, 210), np.tile(np.array(BOX), (10, 1)))
    scores = score_queries(queries, tracks, [predict((100, 160), [(100, *BOX)], name="b")])
    assert scores[0] == Score(id="a", vIoU=None, tIoU=0.0, sIoU=None)
    summary = summarize(scores)
    assert (summary["m_vIoU"], summary["m_tIoU"], summary["queries"], summary["boxed_queries"]) == (
        1.0,
        0.5,
        2,
        1,
    )


def test_queries_without_truth_are_not_judged() -> None:
    assert score_queries([make_query(truth=None)], Tracks(), []) == []


def test_boxes_are_interpolated_between_samples_and_held_outside() -> None:
    prediction = predict((0, 20), [(20, 10, 10, 30, 30), (10, 0, 0, 20, 20)])
    requested = np.array([0, 10, 15, 20, 99])
    expected = [[0, 0, 20, 20], [0, 0, 20, 20], [5, 5, 25, 25], [10, 10, 30, 30], [10, 10, 30, 30]]
    np.testing.assert_array_equal(prediction_boxes(prediction, requested), expected)


def test_thresholds_are_strict() -> None:
    scores = [Score(id=str(value), vIoU=value, tIoU=1, sIoU=1) for value in (0.3, 0.31, 0.5, 0.51)]
    summary = summarize(scores)
    assert (summary["vIoU@0.3"], summary["vIoU@0.5"]) == (0.75, 0.25)


def test_means_over_nothing_are_left_out() -> None:
    assert summarize([]) == {"queries": 0, "boxed_queries": 0}


def test_summaries_by_form_and_tag() -> None:
    queries = [
        make_query(name="a", form="declarative", tags=("look-alike", "same-motion")),
        make_query(name="b", form="interrogative", tags=("look-alike",)),
        make_query(name="c"),
    ]
    scores = [
        Score(id=name, vIoU=value, tIoU=value, sIoU=value)
        for name, value in (("a", 0.2), ("b", 0.6), ("c", 1.0))
    ]
    assert {
        name: group["m_vIoU"] for name, group in summarize_by(scores, queries, "form").items()
    } == {
        "declarative": 0.2,
        "interrogative": 0.6,
    }
    by_tag = summarize_by(scores, queries, "tag")
    assert {name: (group["m_vIoU"], group["queries"]) for name, group in by_tag.items()} == {
        "look-alike": (pytest.approx(0.4), 2),
        "same-motion": (0.2, 1),
    }


def test_unknown_and_repeated_predictions_are_refused() -> None:
    with pytest.raises(InputError, match=r"1 predictions name no query.*'other'"):
        score_queries([make_query()], make_tracks(range(300)), [predict((0, 1), [], name="other")])
    with pytest.raises(InputError, match="'q' has two predictions"):
        score_queries(
            [make_query()], make_tracks(range(300)), [predict((0, 1), []), predict((0, 2), [])]
        )


def test_predictions_by_id() -> None:
    first, second = predict((0, 1), [], name="a"), predict((0, 2), [], name="b")
    assert index_by_id([first, second]) == {"a": first, "b": second}
    with pytest.raises(InputError, match="query 'a' has two predictions; keep one"):
        index_by_id([first, second, first])


def test_strangers_are_refused_and_named() -> None:
    tubes = Tubes.from_predictions([predict((0, 1), [], name=name) for name in "cab"])
    check_known_ids(tubes, "abcd")
    with pytest.raises(
        InputError,
        match=r"2 predictions name no query of these, for example 'b': "
        r"is this the right index and split\?",
    ):
        check_known_ids(tubes, "ad")


def test_what_was_judged_becomes_records() -> None:
    """NaN, a truth without boxes, is None; the numbers stay to the last bit."""
    nan, third = float("nan"), 1 / 3
    score_arrays = ScoreArrays(
        ("a", "b"),
        vIoU=np.array([third, nan]),
        tIoU=np.array([0.5, 1.0]),
        sIoU=np.array([1.0, nan]),
    )
    assert build_scores(score_arrays) == [
        Score(id="a", vIoU=third, tIoU=0.5, sIoU=1.0),
        Score(id="b", vIoU=None, tIoU=1.0, sIoU=None),
    ]


def test_the_means_have_one_order() -> None:
    summary = summarize(
        [Score(id="a", vIoU=0.4, tIoU=0.5, sIoU=0.6), Score(id="b", vIoU=None, tIoU=0.0, sIoU=None)]
    )
    assert list(summary) == [*MEAN_METRICS, "queries", "boxed_queries"]
    assert list(summary.values()) == [0.4, 0.25, 0.6, 1.0, 0.0, 2, 1]


def test_a_protocol_may_leave_queries_out() -> None:
    queries, tracks = [make_query(name="a"), make_query(name="b")], make_tracks(range(100, 160))
    predictions = [predict((100, 159), [(100, *BOX)], name="b")]
    assert [score.id for score in score_queries(queries, tracks, predictions)] == ["a", "b"]
    assert score_queries(queries, tracks, predictions, "stcat") == [
        Score(id="b", vIoU=1.0, tIoU=1.0, sIoU=1.0)
    ]


def test_scores_survive_the_file(tmp_path: Path) -> None:
    scores = [
        Score(id="a", vIoU=0.25, tIoU=0.5, sIoU=1.0),
        Score(id="b", vIoU=None, tIoU=0.0, sIoU=None),
    ]
    write_scores(tmp_path / "scores" / "test.json", scores)
    assert read_scores(tmp_path / "scores" / "test.json") == scores


def test_bad_score_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        read_scores(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad\.json is not JSON"):
        read_scores(tmp_path / "bad.json")
    (tmp_path / "odd.json").write_text('[{"id": "a"}]')
    with pytest.raises(InputError, match=r"odd\.json: 0\.vIoU"):
        read_scores(tmp_path / "odd.json")


spans = st.tuples(st.integers(0, 299), st.integers(1, 60)).map(
    lambda pair: (pair[0], min(pair[0] + pair[1], 300))
)
corners = st.tuples(*[st.floats(0, 300, allow_subnormal=False)] * 4)
boxes = corners.map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + 1, max(c[1], c[3]) + 1)
)
frame_sets = st.sets(st.integers(0, 299), min_size=1, max_size=20).map(sorted)


@given(spans, frame_sets, boxes, spans, frame_sets, st.data())
def test_scores_stay_in_bounds(true_span, true_frames, true_box, span, frames, data) -> None:
    rows = [(frame, *data.draw(boxes)) for frame in frames]
    tracks = make_tracks(np.array(true_frames), true_box)
    (score,) = score_queries([make_query(true_span)], tracks, [predict(span, rows)])
    assert 0 <= score.tIoU <= 1
    if score.vIoU is not None and score.sIoU is not None:
        assert 0 <= score.vIoU <= 1 + 1e-12
        assert 0 <= score.sIoU <= 1 + 1e-12
    assert score.tIoU == temporal_iou(span, true_span) == temporal_iou(true_span, span)


@given(spans, st.data())
def test_the_truth_itself_scores_one(span, data) -> None:
    frames = np.arange(*span)
    tracks = Tracks()
    tracks.add("t", frames, np.array([data.draw(boxes) for _ in frames]))
    rows = [
        (int(frame), *map(float, box)) for frame, box in zip(frames, tracks["t"][1], strict=True)
    ]
    (score,) = score_queries([make_query(span)], tracks, [predict(span, rows)])
    assert (score.tIoU, score.vIoU, score.sIoU) == (1.0, pytest.approx(1.0), pytest.approx(1.0))


@given(frame_sets, st.data())
def test_interpolation_is_exact_at_samples(frames, data) -> None:
    rows = [(frame, *data.draw(boxes)) for frame in frames]
    np.testing.assert_array_equal(
        prediction_boxes(predict((0, 300), rows), np.array(frames)), np.array(rows)[:, 1:]
    )


@given(spans, frame_sets, spans, boxes)
def test_vectors_agree_with_counting_frame_by_frame(true_span, true_frames, span, box) -> None:
    """The sums written out one frame at a time, as the protocol reads."""
    query, tracks = make_query(true_span), make_tracks(np.array(true_frames), BOX)
    (score,) = score_queries([query], tracks, [predict(span, [(span[0], *box)])])
    boxed = {frame for frame in true_frames if true_span[0] <= frame < true_span[1]}
    true, predicted = set(range(*true_span)), set(range(*span))
    score_arrays = (true | predicted) - (true - boxed)
    overlap = box_iou(box, BOX)
    if boxed:
        assert score.vIoU == pytest.approx(overlap * len(boxed & predicted) / len(score_arrays))
        assert score.sIoU == pytest.approx(overlap)
    else:
        assert score.vIoU is None


def box_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = wide * high
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

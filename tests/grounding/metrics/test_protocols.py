"""The four protocols: what public evaluators answered, examples worked by hand, and the sums
written out frame by frame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import cli.evaluate
from grounding.metrics.protocols import (
    CHUNK_SIZE,
    PROTOCOLS,
    GroundTruthTubes,
    ScoreArrays,
    check_protocol,
    sample_tubedetr_frames,
    score_tubes,
    temporal_iou,
)
from grounding.metrics.scores import build_scores, score_queries, summarize
from grounding.structures.tubes import Tubes
from pipeline.errors import InputError
from pipeline.io.jsonl import write_jsonl
from pipeline.records import Prediction, Query, Span, Truth
from pipeline.tracks import Tracks

GOLDEN = json.loads(Path(__file__).with_name("golden_metrics.json").read_text(encoding="utf-8"))
CASES: list[dict[str, Any]] = GOLDEN["cases"]
FORMS = ("declarative", "interrogative")
CLOSE = 1e-9
BOX = (100.0, 100.0, 200.0, 200.0)
NEAR = (100.0, 100.0, 200.0, 180.0)
"""IoU .8 with BOX."""
quick = settings(max_examples=80)


# What three public evaluators answered.


def four(flat: list[float]) -> np.ndarray:
    return np.array(flat, np.float64).reshape(-1, 4)


def listed(tube: Mapping[str, Any]) -> np.ndarray:
    """The frames of a recorded tube: its first to its last."""
    return np.arange(tube["first"], tube["last"] + 1)


def golden_index() -> tuple[list[Query], Tracks]:
    tracks, queries = Tracks(), []
    for case in CASES:
        tracks.add(case["id"], listed(case["gt"]), four(case["gt"]["boxes"]))
        truth = Truth(span=(case["gt"]["first"], case["gt"]["last"] + 1), track=case["id"])
        facts = {key: case[key] for key in ("id", "fps", "frame_count", "segment")}
        rest = {
            "video": case["id"],
            "path": "v.mp4",
            "size": (case["width"], case["height"]),
            "text": "x",
            "split": "test",
        }
        queries.append(
            Query.model_validate(
                {**facts, **rest, "form": case["tubedetr"]["form"], "truth": truth}
            )
        )
    return queries, tracks


def golden_predictions(protocol: str) -> list[Prediction]:
    predictions = []
    for case in CASES:
        tube = case["tubedetr" if protocol == "tubedetr" else "pred"]
        frames = tube["frame_ids"] if protocol == "tubedetr" else listed(tube).tolist()
        span = tube["span"] if protocol == "tubedetr" else (tube["first"], tube["last"] + 1)
        rows = [
            (frame, *box) for frame, box in zip(frames, four(tube["boxes"]).tolist(), strict=True)
        ]
        predictions.append(Prediction(id=case["id"], span=span, score=1.0, boxes=rows))
    return predictions


def golden_tubes(protocol: str, framewise: bool) -> Tubes:
    return replace(Tubes.from_predictions(golden_predictions(protocol)), framewise=framewise)


def write_golden(folder: Path, protocol: str) -> None:
    queries, tracks = golden_index()
    write_jsonl(folder / "index.jsonl", queries)
    tracks.save(folder / "tracks.npz")
    write_jsonl(folder / "predictions.jsonl", golden_predictions(protocol))


def write_golden_challenge(path: Path, key: str) -> None:
    """The recorded tubes as the challenge writes them: frames from 1, both ends inclusive."""
    content = {}
    for case in CASES:
        tube = case[key]
        boxes = {
            str(frame + 1): box
            for frame, box in zip(listed(tube).tolist(), four(tube["boxes"]).tolist(), strict=True)
        }
        content[case["id"]] = {
            "st_frame": tube["first"] + 1,
            "ed_frame": tube["last"] + 1,
            "bbox": boxes,
        }
    path.write_text(json.dumps(content))


def commanded(folder: Path, truth: str, predictions: str, protocol: str) -> dict[str, Any]:
    """What `stvg-eval` writes about files."""
    names = {
        "--truth": folder / truth,
        "--predictions": folder / predictions,
        "--protocol": protocol,
        "--json": folder / "out.json",
    }
    result = CliRunner().invoke(
        cli.evaluate.app, [str(part) for pair in names.items() for part in pair]
    )
    assert result.exit_code == 0, result.stderr
    summary: dict[str, Any] = json.loads((folder / "out.json").read_text())
    assert summary["protocol"] == protocol
    return summary


def assert_golden(scores: ScoreArrays, protocol: str) -> None:
    """Every recorded score of every case."""
    assert scores.ids == tuple(case["id"] for case in CASES)
    for key in ("vIoU", "tIoU", "sIoU"):
        if key in CASES[0][protocol]:
            np.testing.assert_allclose(
                getattr(scores, key),
                [case[protocol][key] for case in CASES],
                rtol=0,
                atol=CLOSE,
                err_msg=key,
            )


def assert_means(
    means: Mapping[str, float], expected: Mapping[str, float], prefix: str = ""
) -> None:
    assert {key: means[prefix + key] for key in expected} == pytest.approx(
        expected, abs=CLOSE, rel=0
    )


def test_boxes_outside_the_picture_are_judged_as_they_are() -> None:
    """The recorded scores were computed with such boxes: nothing may clip them."""
    corners = [(four(case["pred"]["boxes"]), case["width"]) for case in CASES]
    assert sum((boxes < 0).any() or (boxes[:, 2] > width).any() for boxes, width in corners) > 5
    np.testing.assert_array_equal(
        golden_tubes("official", framewise=True).boxes,
        np.concatenate([boxes for boxes, _ in corners]),
    )
    np.testing.assert_array_equal(
        Tubes.from_ground_truth(*golden_index()).boxes,
        np.concatenate([four(case["gt"]["boxes"]) for case in CASES]),
    )


@pytest.mark.parametrize(
    ("protocol", "framewise"), [("official", True), ("stcat", True), ("stcat", False)]
)
def test_public_evaluators_answer_the_same(protocol: str, framewise: bool) -> None:
    scores = score_tubes(
        GroundTruthTubes.from_index(*golden_index()), golden_tubes(protocol, framewise), protocol
    )
    assert_golden(scores, protocol)
    assert_means(summarize(build_scores(scores)), GOLDEN[protocol])


def test_tubedetr_answers_the_same_form_by_form() -> None:
    score_arrays = score_tubes(
        GroundTruthTubes.from_index(*golden_index()),
        golden_tubes("tubedetr", framewise=False),
        "tubedetr",
    )
    assert_golden(score_arrays, "tubedetr")
    scores = build_scores(score_arrays)
    for form in FORMS:
        of_form = [
            score
            for score, case in zip(scores, CASES, strict=True)
            if case["tubedetr"]["form"] == form
        ]
        assert len(of_form) == 30
        assert_means(summarize(of_form), GOLDEN["tubedetr"][form])


def test_tubedetr_sampled_the_same_frames() -> None:
    owners, frames = sample_tubedetr_frames(
        np.array([case["segment"] for case in CASES]), np.array([case["fps"] for case in CASES])
    )
    for index, case in enumerate(CASES):
        assert frames[owners == index].tolist() == case["tubedetr"]["frame_ids"]
    assert max(np.bincount(owners)) == 200


@pytest.mark.parametrize("protocol", ["official", "stcat"])
def test_public_evaluators_answer_the_same_through_files(protocol: str, tmp_path: Path) -> None:
    write_golden(tmp_path, protocol)
    write_golden_challenge(tmp_path / "pred.json", "pred")
    for predictions in ("predictions.jsonl", "pred.json"):
        assert_means(commanded(tmp_path, "index.jsonl", predictions, protocol), GOLDEN[protocol])


def test_tubedetr_answers_the_same_through_files(tmp_path: Path) -> None:
    write_golden(tmp_path, "tubedetr")
    scores = commanded(tmp_path, "index.jsonl", "predictions.jsonl", "tubedetr")
    for form in FORMS:
        assert_means(scores, GOLDEN["tubedetr"][form], f"{form}_")


# Worked by hand.


def query_of(
    span: Span = (100, 160),
    name: str = "q",
    segment: Span = (0, 300),
    fps: float = 30.0,
    track: str | None = "t",
) -> Query:
    values = {
        "id": name,
        "video": "v",
        "path": "v.mp4",
        "fps": fps,
        "frame_count": 3000,
        "size": (640, 360),
        "segment": segment,
    }
    return Query.model_validate(
        {**values, "text": "a dog", "split": "test", "truth": Truth(span=span, track=track)}
    )


def tracks_of(frames: Iterable[int], box: tuple[float, ...] = BOX) -> Tracks:
    tracks, numbers = Tracks(), np.array(list(frames))
    tracks.add("t", numbers, np.tile(np.array(box), (len(numbers), 1)))
    return tracks


def tube(
    span: Span,
    frames: Iterable[int],
    box: tuple[float, ...] = BOX,
    name: str = "q",
    framewise: bool = False,
) -> Tubes:
    rows = [(frame, *box) for frame in frames]
    return replace(
        Tubes.from_predictions([Prediction(id=name, span=span, score=1.0, boxes=rows)]),
        framewise=framewise,
    )


def judged_one(
    protocol: str,
    predicted: Tubes,
    query: Query | None = None,
    boxed: Iterable[int] = range(100, 160),
    **facts: Any,
) -> Any:
    """`(vIoU, tIoU, sIoU)` of one query, by default with the truth [100, 160) of 30 frames a
    second.
    """
    truths = GroundTruthTubes.from_index([query or query_of()], tracks_of(boxed), **facts)
    scores = score_tubes(truths, predicted, protocol)
    return tuple(getattr(scores, key).tolist()[0] for key in ("vIoU", "tIoU", "sIoU"))


def test_one_prediction_on_a_five_fps_grid_by_every_protocol() -> None:
    """Ten sampled frames 102, 108 … 156, truth [100, 160), box IoU .8, prediction [102, 157)."""
    grid = range(102, 157, 6)
    samples, boxes_only = tube((102, 157), grid, NEAR), tube((102, 157), grid, NEAR, framewise=True)
    assert judged_one("tubedetr", samples) == pytest.approx((0.8, 55 / 60, 0.8))
    assert judged_one("every-frame", samples) == pytest.approx((0.8 * 55 / 60, 55 / 60, 0.8))
    assert judged_one("official", samples) == pytest.approx((0.8 * 55 / 60, 55 / 60, 0.8))
    assert judged_one("official", boxes_only)[:2] == pytest.approx((0.8 * 10 / 60, 10 / 60))
    assert judged_one("stcat", samples)[:2] == pytest.approx((0.8 * 55 / 59, 55 / 59))
    rounded = [
        f"{judged_one(name, pred_span)[0]:.3f}"
        for name, pred_span in (("tubedetr", samples), ("every-frame", samples))
    ]
    assert [*rounded, f"{judged_one('official', boxes_only)[0]:.3f}"] == ["0.800", "0.733", "0.133"]


def test_the_official_denominator_is_the_hull_and_counts_frames_without_a_box() -> None:
    """Truth [100, 160) boxed in 40 of its 60 frames, predicted [110, 170): 30 boxed in both, a hull
    of 70.
    """
    boxed = [*range(100, 110), *range(130, 160)]
    assert judged_one("official", tube((110, 170), [110]), boxed=boxed) == pytest.approx(
        (30 / 70, 30 / 70, 1)
    )
    assert judged_one("every-frame", tube((110, 170), [110]), boxed=boxed) == pytest.approx(
        (30 / 50, 50 / 70, 1)
    )


def test_official_needs_boxes_even_in_time() -> None:
    assert judged_one("official", tube((100, 160), [])) == (0, 0, 0)
    assert judged_one("official", tube((100, 160), []), query_of(track=None))[1] == 1.0
    assert judged_one("every-frame", tube((100, 160), [])) == (0, 1, 0)


def test_without_true_boxes_only_time_is_judged() -> None:
    for protocol in PROTOCOLS:
        v_iou, t_iou, s_iou = judged_one(protocol, tube((100, 130), [100]), query_of(track=None))
        assert math.isnan(v_iou)
        assert math.isnan(s_iou)
        assert t_iou == 30 / (59 if protocol == "stcat" else 60)


def test_stcat_loses_the_last_true_frame_of_hc_stvg() -> None:
    """Truth [100, 160) is judged as [100, 159); its 60 boxes all count for sIoU."""
    assert judged_one("stcat", tube((100, 160), [100])) == (59 / 60, 59 / 60, 1)
    assert judged_one("stcat", tube((100, 159), [100])) == (1, 1, 1)
    assert judged_one("stcat", tube((159, 170), [100])) == (0, 0, 1)


@pytest.mark.parametrize(("segment_end", "last"), [(300, 160), (161, 160), (160, 159)])
def test_stcat_loses_no_frame_of_vidstg_but_the_segments_last(segment_end: int, last: int) -> None:
    """The judged end is min(end, segment end − 1)."""
    scores = judged_one(
        "stcat", tube((100, 160), [100]), query_of(segment=(0, segment_end)), dataset_name="vidstg"
    )
    assert scores == ((last - 100) / 60, (last - 100) / 60, 1)


def test_only_stcat_reads_vidstg_otherwise() -> None:
    for protocol in ("every-frame", "official", "tubedetr"):
        assert judged_one(
            protocol, tube((100, 160), [100]), query_of(segment=(0, 160)), dataset_name="vidstg"
        ) == (1, 1, 1)


def test_stcat_scores_a_truth_of_one_frame_0() -> None:
    """Its one frame is also its exclusive end: nothing is left."""
    assert judged_one("stcat", tube((100, 101), [100]), query_of((100, 101)), boxed=[100]) == (
        0,
        0,
        1,
    )
    assert judged_one(
        "every-frame", tube((100, 101), [100]), query_of((100, 101)), boxed=[100]
    ) == (1, 1, 1)


def test_tubedetr_judges_boxes_on_sampled_frames_only() -> None:
    """Truth [100, 160) and predicted [130, 190): sampled 102 … 156 and up to 186, 15 in the union,
    5 in both.
    """
    wrong_between = [
        (frame, *(BOX if frame % 6 == 0 else (0.0, 0.0, 1.0, 1.0))) for frame in range(100, 190)
    ]
    predicted = Tubes.from_predictions(
        [Prediction(id="q", span=(130, 190), score=1.0, boxes=wrong_between)]
    )
    assert judged_one("tubedetr", predicted) == pytest.approx((5 / 15, 30 / 90, 1))


def test_tubedetr_without_a_sampled_frame_in_the_truth_scores_0() -> None:
    """Frames 103 to 105 lie between the samples 102 and 108."""
    assert judged_one(
        "tubedetr", tube((103, 106), [103]), query_of((103, 106)), boxed=range(103, 106)
    ) == (0, 1, 0)


def test_queries_without_a_prediction_by_every_protocol() -> None:
    queries = [query_of(name="a"), query_of(name="b"), query_of(name="c")]
    truths, predicted = (
        GroundTruthTubes.from_index(queries, tracks_of(range(100, 160))),
        tube((100, 160), [100], name="b"),
    )
    for protocol in ("every-frame", "official"):
        scores = score_tubes(truths, predicted, protocol)
        assert (scores.ids, scores.vIoU.tolist(), scores.tIoU.tolist(), scores.sIoU.tolist()) == (
            ("a", "b", "c"),
            *[[0, 1, 0]] * 3,
        )
    scores = score_tubes(truths, predicted, "stcat")
    assert (scores.ids, scores.tIoU.tolist(), scores.sIoU.tolist()) == (("b",), [59 / 60], [1])
    with pytest.raises(
        InputError,
        match="2 of 3 queries have no prediction, for example 'a': protocol tubedetr needs all",
    ):
        score_tubes(truths, predicted, "tubedetr")


def test_a_query_has_one_prediction() -> None:
    twice = Tubes.from_predictions([Prediction(id="q", span=(0, 1), score=1.0, boxes=[])] * 2)
    with pytest.raises(InputError, match="query 'q' has two predictions; keep one"):
        judged_one("every-frame", twice)


def test_an_unknown_protocol_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        InputError,
        match="'best' is not known; the protocols are every-frame, official, tubedetr, stcat",
    ):
        check_protocol("best")


@pytest.mark.parametrize("protocol", ["tubedetr", "stcat"])
def test_sampling_and_segments_need_an_index(protocol: str) -> None:
    truths = GroundTruthTubes(Tubes.from_ground_truth([query_of()], tracks_of(range(100, 160))))
    with pytest.raises(
        InputError,
        match=rf"protocol {protocol} needs an index as truth .*, not the challenge's file",
    ):
        score_tubes(truths, tube((100, 160), [100]), protocol)


# What holds for any tube.


def test_spans_are_half_open() -> None:
    assert temporal_iou((0, 10), (10, 20)) == 0
    assert temporal_iou((0, 10), (9, 20)) == 1 / 20
    assert temporal_iou((4, 5), (4, 5)) == 1
    assert temporal_iou((4, 5), (5, 6)) == 0
    assert temporal_iou((4, 4), (4, 4)) == temporal_iou((4, 4), (0, 9)) == 0


some_spans = st.tuples(st.integers(0, 30), st.integers(1, 15)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)
some_box = st.tuples(*[st.floats(-20, 120, allow_subnormal=False)] * 4).map(
    lambda c: (min(c[::2]), min(c[1::2]), max(c[::2]), max(c[1::2]))
)
rows_of = st.dictionaries(st.integers(0, 48), some_box, max_size=12)
rates = st.one_of(
    st.floats(1, 60),
    st.sampled_from([29.97, 30000 / 1001, 24000 / 1001, 25.0, 15.0, 5.0, 4.0, 2.5]),
)


@given(some_spans, some_spans)
@quick
def test_temporal_iou_counts_frames_and_is_symmetric(a: Span, b: Span) -> None:
    first, second = set(range(*a)), set(range(*b))
    assert temporal_iou(a, b) == temporal_iou(b, a) == len(first & second) / len(first | second)


def sampled_one_by_one(segment: Span, fps: float) -> list[int]:
    """TubeDETR's rule, a frame at a time."""
    sampled = [segment[0]]
    for frame in range(*segment):
        if int(sampled[-1] * (5 / fps)) < int(frame * (5 / fps)):
            sampled.append(frame)
    return (
        sampled if len(sampled) <= 200 else [sampled[j * len(sampled) // 200] for j in range(200)]
    )


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 2000), rates), min_size=1, max_size=4)
)
@settings(max_examples=40)
def test_sampled_frames_are_those_of_the_plain_loop(videos: list[tuple[int, int, float]]) -> None:
    segments = np.array([(begin, begin + length) for begin, length, _ in videos])
    owners, frames = sample_tubedetr_frames(segments, np.array([fps for *_, fps in videos]))
    for index, (begin, length, fps) in enumerate(videos):
        assert frames[owners == index].tolist() == sampled_one_by_one((begin, begin + length), fps)


def test_sampled_frames_by_hand() -> None:
    owners, frames = sample_tubedetr_frames(
        np.array([(10, 25), (0, 600), (7, 10)]), np.array([25.0, 10.0, 4.0])
    )
    assert frames[owners == 0].tolist() == [10, 15, 20]
    assert frames[owners == 1].tolist() == [2 * (j * 300 // 200) for j in range(200)]
    assert frames[owners == 2].tolist() == [7, 8, 9]


@dataclass(frozen=True)
class Pair:
    """A true tube and a predicted one, written as one would by hand."""

    segment: Span
    fps: float
    span: Span
    truth: dict[int, tuple[float, ...]]
    said: Span
    rows: dict[int, tuple[float, ...]]


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    span, rows = draw(some_spans), draw(rows_of)
    segment = (draw(st.integers(0, span[0])), draw(st.integers(span[1], 50)))
    truth = {
        frame: box
        for frame, box in draw(st.dictionaries(st.integers(*span), some_box, max_size=16)).items()
        if frame < span[1]
    }
    return Pair(segment, draw(rates), span, truth, draw(some_spans), rows)


def truths_of(pair_list: list[Pair], vidstg: bool = False) -> GroundTruthTubes:
    columns = [
        (
            np.array(sorted(pair.truth), np.int64),
            np.array([pair.truth[n] for n in sorted(pair.truth)]).reshape(-1, 4),
        )
        for pair in pair_list
    ]
    tubes = replace(
        Tubes.from_rows(
            map(str, range(len(pair_list))), [pair.span for pair in pair_list], columns
        ),
        framewise=True,
    )
    return GroundTruthTubes(
        tubes,
        np.array([pair.fps for pair in pair_list]),
        np.array([pair.segment for pair in pair_list]).reshape(-1, 2),
        vidstg,
    )


def predicted_of(pair_by_id: Mapping[int, Pair], framewise: bool) -> Tubes:
    predictions = [
        Prediction(
            id=str(n),
            span=pair.said,
            score=1.0,
            boxes=[(frame, *box) for frame, box in pair.rows.items()],
        )
        for n, pair in pair_by_id.items()
    ]
    return replace(Tubes.from_predictions(predictions), framewise=framewise)


def box_at(pair: Pair, frame: int, framewise: bool) -> tuple[Any, bool]:
    """The predicted box of a frame, and whether it is the prediction's own."""
    frames = sorted(pair.rows)
    if not frames:
        return (0.0, 0.0, 0.0, 0.0), False
    if framewise and frame not in pair.rows:
        inside = frames[0] < frame < frames[-1]
        return (0.0, 0.0, 0.0, 0.0) if inside else pair.rows[
            frames[0] if frame < frames[0] else frames[-1]
        ], False
    return [
        np.interp(frame, frames, [pair.rows[n][side] for n in frames]) for side in range(4)
    ], True


def overlap(a: Any, b: Any) -> float:
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / either if either > 0 else 0.0


def frame_by_frame(
    pair: Pair, protocol: str, framewise: bool, vidstg: bool
) -> tuple[float, float, float]:
    """A protocol's sums over sets of frames → `(vIoU, tIoU, sIoU)`."""
    begin, end = pair.span
    if protocol == "stcat":
        end = min(end, pair.segment[1] - 1) if vidstg else end - 1
    true, pred_frames = set(range(begin, end)), set(range(*pair.said))
    counted = (
        set(sampled_one_by_one(pair.segment, pair.fps))
        if protocol == "tubedetr"
        else set(range(100))
    )
    boxed = set(pair.truth) & counted
    pred_by_frame = {frame: box_at(pair, frame, framewise) for frame in boxed}
    overlaps = {frame: overlap(pred_by_frame[frame][0], pair.truth[frame]) for frame in boxed}
    shared = {frame for frame in boxed & true & pred_frames if pred_by_frame[frame][1]}
    denominator = len(((true | pred_frames) & counted) - ((true & counted) - boxed))
    t_iou = len(true & pred_frames) / len(true | pred_frames)
    if protocol == "official":
        denominator = max(true | pred_frames) + 1 - min(true | pred_frames)
        t_iou = len(shared) / denominator if pair.truth else t_iou
    if not pair.truth:
        return math.nan, t_iou, math.nan
    v_iou = sum(overlaps[frame] for frame in shared) / denominator if denominator else 0.0
    return v_iou, t_iou, sum(overlaps.values()) / len(boxed) if boxed else 0.0


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(
    pair_list=st.lists(pairs(), min_size=1, max_size=4),
    framewise=st.booleans(),
    vidstg=st.booleans(),
)
@quick
def test_every_protocol_agrees_with_its_sums_frame_by_frame(
    protocol: str, pair_list: list[Pair], framewise: bool, vidstg: bool
) -> None:
    scores = score_tubes(
        truths_of(pair_list, vidstg), predicted_of(dict(enumerate(pair_list)), framewise), protocol
    )
    for index, pair in enumerate(pair_list):
        values = [getattr(scores, key)[index] for key in ("vIoU", "tIoU", "sIoU")]
        assert values == pytest.approx(
            frame_by_frame(pair, protocol, framewise, vidstg), abs=CLOSE, nan_ok=True
        )
        assert all(math.isnan(value) or 0 <= value <= 1 + CLOSE for value in values)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(
    span=st.tuples(st.integers(0, 30), st.integers(2, 15)),
    box=some_box,
    fps=st.floats(5, 60),
    framewise=st.booleans(),
)
@quick
def test_the_truth_itself_scores_1(
    protocol: str, span: Span, box: tuple[float, ...], fps: float, framewise: bool
) -> None:
    """In stcat the truth is one frame shorter; tubedetr needs a sampled frame, here the segment's
    first.
    """
    begin, end = span[0], span[0] + span[1]
    solid = (box[0], box[1], box[2] + 1, box[3] + 1)
    pred = (begin, end - 1) if protocol == "stcat" else (begin, end)
    boxes = dict.fromkeys(range(begin, end), solid)
    pair = Pair(
        segment=(begin, end), fps=fps, span=(begin, end), truth=boxes, said=pred, rows=boxes
    )
    scores = score_tubes(truths_of([pair]), predicted_of({0: pair}, framewise), protocol)
    assert [scores.vIoU[0], scores.tIoU[0], scores.sIoU[0]] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("framewise", [False, True])
def test_many_queries_at_once_are_each_alone(protocol: str, framewise: bool) -> None:
    """More than two chunks, some without true boxes, without predicted boxes or without a
    prediction, in another order.
    """
    random = np.random.default_rng(3)
    pair_list = [random_pair(random) for _ in range(2 * CHUNK_SIZE + 9)]
    answered = [n for n in range(len(pair_list)) if protocol == "tubedetr" or n % 7]
    all_scores = score_tubes(
        truths_of(pair_list),
        predicted_of({n: pair_list[n] for n in random.permutation(answered).tolist()}, framewise),
        protocol,
    )
    left = [n for n in range(len(pair_list)) if protocol != "stcat" or n in answered]
    assert all_scores.ids == tuple(map(str, left))
    for row, n in enumerate(left):
        alone = score_tubes(
            truths_of([pair_list[n]]),
            predicted_of({0: pair_list[n]} if n in answered else {}, framewise),
            protocol,
        )
        for key in ("vIoU", "tIoU", "sIoU"):
            np.testing.assert_array_equal(getattr(all_scores, key)[row], getattr(alone, key)[0])
        if n not in answered:
            assert (alone.tIoU[0], np.nan_to_num(alone.vIoU[0]), np.nan_to_num(alone.sIoU[0])) == (
                0,
                0,
                0,
            )


def random_pair(random: np.random.Generator) -> Pair:
    def boxes(begin: int, end: int) -> dict[int, tuple[float, ...]]:
        frames = np.flatnonzero(random.random(end - begin) < random.choice([0.0, 0.3, 1.0])) + begin
        return {
            int(frame): (*random.uniform(0, 50, 2).tolist(), *random.uniform(50, 99, 2).tolist())
            for frame in frames
        }

    begin, first = random.integers(0, 30, 2).tolist()
    end, last = begin + int(random.integers(1, 15)), first + int(random.integers(1, 15))
    return Pair(
        (0, 50),
        float(random.choice([4.0, 25.0, 29.97])),
        (begin, end),
        boxes(begin, end),
        (first, last),
        boxes(0, 50),
    )


def test_scores_of_records_take_the_protocol() -> None:
    scores = score_queries(
        [query_of()],
        tracks_of(range(100, 160)),
        [Prediction(id="q", span=(100, 159), score=1.0, boxes=[(100, *BOX)])],
        "stcat",
    )
    assert [(score.id, score.vIoU, score.tIoU, score.sIoU) for score in scores] == [("q", 1, 1, 1)]

"""The two baselines: what the search finds is what the metrics say, and the draws stay where they
belong.
"""

from __future__ import annotations

import numpy as np
import pytest

from grounding.evaluation.baselines import (
    build_box_candidates,
    build_span_candidates,
    choose_constant,
    predict_best_constant,
    predict_constant,
    predict_random,
)
from grounding.metrics.scores import score_queries, summarize
from pipeline.errors import InputError
from pipeline.records import Prediction, Query, Truth
from pipeline.tracks import Tracks


def make_split(count: int, seed: int, with_boxes: bool = True) -> tuple[list[Query], Tracks]:
    """Queries whose events gather around the middle of their segments, their objects around the
    left of the picture.
    """
    generator = np.random.default_rng(seed)
    queries, tracks = [], Tracks()
    for number in range(count):
        first = int(generator.integers(0, 40))
        length = int(generator.integers(60, 200))
        begin = first + int(length * generator.uniform(0.2, 0.4))
        end = first + int(length * generator.uniform(0.6, 0.8))
        frames = np.arange(begin, end)[generator.random(end - begin) < 0.9]
        left, top = generator.uniform(0, 80), generator.uniform(60, 100)
        if with_boxes:
            tracks.add(
                f"t{number}", frames, np.tile([left, top, left + 60, top + 60], (len(frames), 1))
            )
        truth = Truth(span=(begin, end), track=f"t{number}" if with_boxes else None)
        values = {
            "id": f"q{number}",
            "video": "v",
            "path": "v.mp4",
            "fps": 25.0,
            "frame_count": 300,
            "size": (320, 240),
        }
        query = {
            **values,
            "segment": (first, first + length),
            "text": "x",
            "split": "train",
            "truth": truth,
        }
        queries.append(Query.model_validate(query))
    return queries, tracks


def m_v_iou(queries: list[Query], tracks: Tracks, predictions: list[Prediction]) -> float:
    return summarize(score_queries(queries, tracks, predictions))["m_vIoU"]


def test_the_search_agrees_with_the_metrics() -> None:
    queries, tracks = make_split(12, seed=0)
    constant = choose_constant(queries, tracks)
    assert m_v_iou(queries, tracks, predict_constant(constant, queries)) == pytest.approx(
        constant.train_score
    )


def test_no_other_candidate_is_better() -> None:
    queries, tracks = make_split(6, seed=1)
    best = choose_constant(queries, tracks)
    generator = np.random.default_rng(2)
    spans, boxes = build_span_candidates(queries), build_box_candidates(queries, tracks)
    for _ in range(30):
        span = spans[generator.integers(len(spans))]
        box = tuple(boxes[generator.integers(len(boxes))].tolist())
        other = type(best)(relative_span=span, relative_box=box, train_score=0.0)
        assert m_v_iou(queries, tracks, predict_constant(other, queries)) <= best.train_score + 1e-9


def test_it_beats_random_on_queries_it_never_saw() -> None:
    train, train_tracks = make_split(40, seed=3)
    test, test_tracks = make_split(40, seed=4)
    constant = m_v_iou(test, test_tracks, predict_best_constant(train, train_tracks, test))
    assert constant > 2 * m_v_iou(test, test_tracks, predict_random(test, seed=0))
    assert constant > 0.2


def test_a_large_split_is_thinned() -> None:
    queries, tracks = make_split(30, seed=5)
    assert choose_constant(queries, tracks, max_queries=5) == choose_constant(queries[::6], tracks)


def test_without_boxes_the_span_is_chosen_by_time() -> None:
    queries, tracks = make_split(20, seed=6, with_boxes=False)
    constant = choose_constant(queries, tracks)
    summary = summarize(score_queries(queries, tracks, predict_constant(constant, queries)))
    assert summary["m_tIoU"] == pytest.approx(constant.train_score)
    assert "m_vIoU" not in summary


def test_a_train_split_without_truth_is_refused() -> None:
    with pytest.raises(InputError, match="needs a train split with ground truth"):
        choose_constant([], Tracks())


def test_random_is_seeded_and_stays_inside() -> None:
    queries, _ = make_split(50, seed=7)
    first = predict_random(queries, seed=1)
    assert first == predict_random(queries, seed=1)
    assert first != predict_random(queries, seed=2)
    for query, prediction in zip(queries, first, strict=True):
        assert query.segment[0] <= prediction.span[0] < prediction.span[1] <= query.segment[1]
        _, x1, y1, x2, y2 = prediction.boxes[0]
        assert 0 <= x1 <= x2 <= query.size[0]
        assert 0 <= y1 <= y2 <= query.size[1]


def test_random_can_answer_a_segment_of_one_frame() -> None:
    query = make_split(1, seed=8)[0][0].model_copy(update={"segment": (7, 8), "truth": None})
    assert predict_random([query])[0].span == (7, 8)

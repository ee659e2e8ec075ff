"""Predictions that look at neither video nor sentence: what a model has to beat.

`predict_best_constant` answers every query with one relative span and one relative box, chosen on the train split by
m_vIoU; `random` draws both. Relative means: a span in τ ∈ [0, 1] of the query's segment, a box xyxy in [0, 1] of
the picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from grounding.metrics.protocols import temporal_iou
from grounding.structures.tubes import ground_truth_boxes
from pipeline.boxes import cxcywh_to_xyxy, iou, xyxy_to_cxcywh
from pipeline.errors import InputError
from pipeline.records import Prediction, Query
from pipeline.sampling import normalized_position, span_to_frames
from pipeline.tracks import Tracks

UNIT_SIZE = (1, 1)
SPAN_EDGES = np.linspace(0, 1, 11)
QUANTILES = (0.25, 0.5, 0.75)
BOX_CENTERS = (0.25, 0.5, 0.75)
BOX_SIZES = (0.15, 0.3, 0.5, 0.75, 1.0)
CENTRAL_BOX = (0.25, 0.25, 0.75, 0.75)


@dataclass(frozen=True)
class ConstantTube:
    """One relative span `(begin, end)` and one relative box xyxy for all queries; `train_score` is what chose them.

    The score is m_vIoU, or m_tIoU where no train query has boxes.
    """

    relative_span: tuple[float, float]
    relative_box: tuple[float, float, float, float]
    train_score: float


def predict_best_constant(
    train_queries: Iterable[Query],
    tracks: Tracks,
    queries: Iterable[Query],
    max_queries: int = 2000,
) -> list[Prediction]:
    """The constant chosen on `train`, said of every one of `queries`."""
    return predict_constant(choose_constant(train_queries, tracks, max_queries), queries)


def predict_constant(constant: ConstantTube, queries: Iterable[Query]) -> list[Prediction]:
    """One tube per query: the constant span in its segment, the constant box in its picture, held in every frame."""
    predictions = []
    for query in queries:
        begin, end = span_to_frames(*constant.relative_span, query.segment)
        width, height = query.size
        x1, y1, x2, y2 = constant.relative_box
        box = (begin, x1 * width, y1 * height, x2 * width, y2 * height)
        predictions.append(
            Prediction(id=query.id, span=(begin, end), score=constant.train_score, boxes=[box])
        )
    return predictions


def choose_constant(
    train_queries: Iterable[Query], tracks: Tracks, max_queries: int = 2000
) -> ConstantTube:
    """Search spans × boxes jointly for the best m_vIoU on the train split (`at_most` of its queries, evenly taken)."""
    known = [query for query in train_queries if query.truth is not None]
    if not known:
        raise InputError(
            "the constant baseline needs a train split with truth; this index has none"
        )
    boxed = _subsample(
        [query for query in known if len(ground_truth_boxes(query, tracks)[0])], max_queries
    )
    if not boxed:
        return _choose_span(_subsample(known, max_queries))
    spans = build_span_candidates(boxed)
    boxes = build_box_candidates(boxed, tracks)
    total = sum(_compute_viou_table(query, tracks, spans, boxes) for query in boxed)
    table = np.asarray(total) / len(boxed)
    box, span = np.unravel_index(int(table.argmax()), table.shape)
    x1, y1, x2, y2 = boxes[box].tolist()
    return ConstantTube(
        relative_span=spans[span],
        relative_box=(x1, y1, x2, y2),
        train_score=float(table[box, span]),
    )


def _subsample(queries: Sequence[Query], max_queries: int) -> list[Query]:
    """At most `at_most` queries, evenly taken."""
    return (
        [queries[i * len(queries) // max_queries] for i in range(max_queries)]
        if len(queries) > max_queries
        else list(queries)
    )


def _choose_span(queries: Sequence[Query]) -> ConstantTube:
    """Without boxes only time can be chosen; the box is the middle quarter of the picture."""
    spans = build_span_candidates(queries)
    means = [
        np.mean(
            [
                temporal_iou(q.truth.span, span_to_frames(*span, q.segment))
                for q in queries
                if q.truth
            ]
        )
        for span in spans
    ]
    best = int(np.argmax(means))
    return ConstantTube(
        relative_span=spans[best], relative_box=CENTRAL_BOX, train_score=float(means[best])
    )


def build_span_candidates(queries: Sequence[Query]) -> list[tuple[float, float]]:
    """Pairs begin < end in τ of a regular grid and the quantiles of the true begins and ends."""
    true = np.array(
        [normalized_position(np.asarray(q.truth.span) - 0.5, q.segment) for q in queries if q.truth]
    )
    edges = np.unique(
        np.concatenate([SPAN_EDGES, np.quantile(true, QUANTILES, axis=0).ravel()]).clip(0, 1)
    )
    return list(itertools.combinations(edges.tolist(), 2))


def build_box_candidates(queries: Sequence[Query], tracks: Tracks) -> np.ndarray:
    """Relative boxes `[n, 4]` xyxy in [0, 1]: quantiles of the true centres and sizes, and a regular grid."""
    middles = np.array([_get_relative_boxes(query, tracks).mean(0) for query in queries])
    true = np.quantile(xyxy_to_cxcywh(middles, UNIT_SIZE), QUANTILES, axis=0)
    quantiles = np.array(list(itertools.product(*true.T)))
    grid = np.array(
        [(x, y, size, size) for x in BOX_CENTERS for y in BOX_CENTERS for size in BOX_SIZES]
    )
    return np.unique(
        cxcywh_to_xyxy(np.concatenate([quantiles, grid]), UNIT_SIZE).clip(0, 1), axis=0
    )


def _get_relative_boxes(query: Query, tracks: Tracks) -> np.ndarray:
    """True boxes `[n, 4]`, xyxy in [0, 1] of the picture."""
    boxes = ground_truth_boxes(query, tracks)[1]
    return boxes.astype(np.float64) / np.array([*query.size, *query.size])


def _compute_viou_table(
    query: Query, tracks: Tracks, spans: Sequence[tuple[float, float]], boxes: np.ndarray
) -> np.ndarray:
    """VIoU of every box with every span for one query: `[boxes, spans]`, as `grounding.metrics.scores` defines it."""
    assert query.truth is not None
    first, last = query.truth.span
    frames, _ = ground_truth_boxes(query, tracks)
    overlaps = iou(boxes[:, None], _get_relative_boxes(query, tracks)[None])
    sums = np.concatenate([np.zeros((len(boxes), 1)), overlaps.cumsum(1)], axis=1)
    tried = np.array([span_to_frames(*span, query.segment) for span in spans])
    low, high = np.searchsorted(frames, tried[:, 0]), np.searchsorted(frames, tried[:, 1])
    shared = np.clip(np.minimum(tried[:, 1], last) - np.maximum(tried[:, 0], first), 0, None)
    union = (tried[:, 1] - tried[:, 0]) + (last - first) - shared
    return (sums[:, high] - sums[:, low]) / (union - (last - first - len(frames)))


def predict_random(queries: Iterable[Query], seed: int = 0) -> list[Prediction]:
    """Per query a span and a box drawn uniformly: two different edges in the segment, two corners in the picture."""
    generator = np.random.default_rng(seed)
    predictions = []
    for query in queries:
        begin, end = (
            np.sort(generator.choice(query.segment[1] - query.segment[0] + 1, 2, replace=False))
            + query.segment[0]
        )
        (x1, x2), (y1, y2) = (
            np.sort(generator.random((2, 2)), axis=1) * np.array(query.size)[:, None]
        )
        box = (int(begin), float(x1), float(y1), float(x2), float(y2))
        predictions.append(
            Prediction(id=query.id, span=(int(begin), int(end)), score=0.0, boxes=[box])
        )
    return predictions

"""Predictions that look at neither video nor sentence: what a model has to beat.

`best_constant` answers every query with one relative span and one relative box, chosen on the train split by
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

UNIT = (1, 1)
EDGES = np.linspace(0, 1, 11)
QUANTILES = (0.25, 0.5, 0.75)
CENTRES = (0.25, 0.5, 0.75)
SIZES = (0.15, 0.3, 0.5, 0.75, 1.0)
MIDDLE = (0.25, 0.25, 0.75, 0.75)


@dataclass(frozen=True)
class Constant:
    """One relative span `(begin, end)` and one relative box xyxy for all queries; `train_score` is what chose them.

    The score is m_vIoU, or m_tIoU where no train query has boxes.
    """

    span_tau: tuple[float, float]
    box: tuple[float, float, float, float]
    train_score: float


def best_constant(
    train: Iterable[Query], tracks: Tracks, queries: Iterable[Query], at_most: int = 2000
) -> list[Prediction]:
    """The constant chosen on `train`, said of every one of `queries`."""
    return constant_predictions(choose_constant(train, tracks, at_most), queries)


def constant_predictions(constant: Constant, queries: Iterable[Query]) -> list[Prediction]:
    """One tube per query: the constant span in its segment, the constant box in its picture, held in every frame."""
    predictions = []
    for query in queries:
        begin, end = span_to_frames(*constant.span_tau, query.segment)
        width, height = query.size
        x1, y1, x2, y2 = constant.box
        box = (begin, x1 * width, y1 * height, x2 * width, y2 * height)
        predictions.append(
            Prediction(id=query.id, span=(begin, end), score=constant.train_score, boxes=[box])
        )
    return predictions


def choose_constant(train: Iterable[Query], tracks: Tracks, at_most: int = 2000) -> Constant:
    """Search spans × boxes jointly for the best m_vIoU on the train split (`at_most` of its queries, evenly taken)."""
    known = [query for query in train if query.truth is not None]
    if not known:
        raise InputError(
            "the constant baseline needs a train split with truth; this index has none"
        )
    boxed = _thin([query for query in known if len(ground_truth_boxes(query, tracks)[0])], at_most)
    if not boxed:
        return _choose_span(_thin(known, at_most))
    spans = span_candidates(boxed)
    boxes = box_candidates(boxed, tracks)
    total = sum(_v_iou_table(query, tracks, spans, boxes) for query in boxed)
    table = np.asarray(total) / len(boxed)
    box, span = np.unravel_index(int(table.argmax()), table.shape)
    x1, y1, x2, y2 = boxes[box].tolist()
    return Constant(span_tau=spans[span], box=(x1, y1, x2, y2), train_score=float(table[box, span]))


def _thin(queries: Sequence[Query], at_most: int) -> list[Query]:
    """At most `at_most` queries, evenly taken."""
    return (
        [queries[i * len(queries) // at_most] for i in range(at_most)]
        if len(queries) > at_most
        else list(queries)
    )


def _choose_span(queries: Sequence[Query]) -> Constant:
    """Without boxes only time can be chosen; the box is the middle quarter of the picture."""
    spans = span_candidates(queries)
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
    return Constant(span_tau=spans[best], box=MIDDLE, train_score=float(means[best]))


def span_candidates(queries: Sequence[Query]) -> list[tuple[float, float]]:
    """Pairs begin < end in τ of a regular grid and the quantiles of the true begins and ends."""
    true = np.array(
        [normalized_position(np.asarray(q.truth.span) - 0.5, q.segment) for q in queries if q.truth]
    )
    edges = np.unique(
        np.concatenate([EDGES, np.quantile(true, QUANTILES, axis=0).ravel()]).clip(0, 1)
    )
    return list(itertools.combinations(edges.tolist(), 2))


def box_candidates(queries: Sequence[Query], tracks: Tracks) -> np.ndarray:
    """Relative boxes `[n, 4]` xyxy in [0, 1]: quantiles of the true centres and sizes, and a regular grid."""
    middles = np.array([_relative_boxes(query, tracks).mean(0) for query in queries])
    true = np.quantile(xyxy_to_cxcywh(middles, UNIT), QUANTILES, axis=0)
    quantiles = np.array(list(itertools.product(*true.T)))
    grid = np.array([(x, y, size, size) for x in CENTRES for y in CENTRES for size in SIZES])
    return np.unique(cxcywh_to_xyxy(np.concatenate([quantiles, grid]), UNIT).clip(0, 1), axis=0)


def _relative_boxes(query: Query, tracks: Tracks) -> np.ndarray:
    """True boxes `[n, 4]`, xyxy in [0, 1] of the picture."""
    boxes = ground_truth_boxes(query, tracks)[1]
    return boxes.astype(np.float64) / np.array([*query.size, *query.size])


def _v_iou_table(
    query: Query, tracks: Tracks, spans: Sequence[tuple[float, float]], boxes: np.ndarray
) -> np.ndarray:
    """VIoU of every box with every span for one query: `[boxes, spans]`, as `grounding.metrics.scores` defines it."""
    assert query.truth is not None
    first, last = query.truth.span
    frames, _ = ground_truth_boxes(query, tracks)
    overlaps = iou(boxes[:, None], _relative_boxes(query, tracks)[None])
    sums = np.concatenate([np.zeros((len(boxes), 1)), overlaps.cumsum(1)], axis=1)
    tried = np.array([span_to_frames(*span, query.segment) for span in spans])
    low, high = np.searchsorted(frames, tried[:, 0]), np.searchsorted(frames, tried[:, 1])
    shared = np.clip(np.minimum(tried[:, 1], last) - np.maximum(tried[:, 0], first), 0, None)
    union = (tried[:, 1] - tried[:, 0]) + (last - first) - shared
    return (sums[:, high] - sums[:, low]) / (union - (last - first - len(frames)))


def random_predictions(queries: Iterable[Query], seed: int = 0) -> list[Prediction]:
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

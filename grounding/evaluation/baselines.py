"""Baselines that use neither video nor sentence: every model has to exceed them.

`predict_best_constant` predicts one relative span and one relative box for every query, chosen on
the train split by m_vIoU. `predict_random` draws both. Relative spans are τ ∈ [0, 1] of the query's
segment; relative boxes are xyxy in [0, 1] of the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from grounding.metrics.protocols import temporal_iou
from grounding.structures.tubes import ground_truth_boxes
from pipeline.boxes import box_iou, cxcywh_to_xyxy, xyxy_to_cxcywh
from pipeline.errors import InputError
from pipeline.records import Prediction, Query
from pipeline.sampling import compute_relative_positions, span_to_frames
from pipeline.tracks import Tracks

UNIT_SIZE = (1, 1)
SPAN_EDGES = np.linspace(0, 1, 11)
QUANTILES = (0.25, 0.5, 0.75)
BOX_CENTERS = (0.25, 0.5, 0.75)
BOX_SIZES = (0.15, 0.3, 0.5, 0.75, 1.0)
CENTRAL_BOX = (0.25, 0.25, 0.75, 0.75)


@dataclass(frozen=True)
class ConstantTube:
    """One relative span and one relative box for all queries.

    Attributes:
        relative_span: Begin and end, in [0, 1] of the segment.
        relative_box: Box xyxy, in [0, 1] of the image.
        train_score: m_vIoU on the train split; m_tIoU if no train query has boxes.
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
    """Choose the best constant on the train split, and predict it for every query.

    Args:
        train_queries: Queries of the train split.
        tracks: Ground truth boxes of the train queries.
        queries: Queries to predict.
        max_queries: Maximum number of train queries for the search.

    Returns:
        One prediction per query.

    Raises:
        InputError: No train query has a ground truth.
    """
    constant = choose_constant(train_queries, tracks, max_queries)
    return predict_constant(constant, queries)


def predict_constant(constant: ConstantTube, queries: Iterable[Query]) -> list[Prediction]:
    """Predict a constant tube for every query.

    Args:
        constant: The tube.
        queries: Queries to predict.

    Returns:
        One prediction per query: the relative span in its segment, and the relative box in its
        image, equal in all frames.
    """
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
    """Search spans and boxes jointly for the best m_vIoU on the train split.

    Args:
        train_queries: Queries of the train split.
        tracks: Ground truth boxes of the queries.
        max_queries: Maximum number of queries; more are subsampled evenly.

    Returns:
        The best tube. Without any boxes, the best span with `CENTRAL_BOX`.

    Raises:
        InputError: No query has a ground truth.
    """
    true_queries = [query for query in train_queries if query.truth is not None]
    if not true_queries:
        raise InputError(
            "the constant baseline needs a train split with ground truth; this index has none"
        )

    boxed_queries = [query for query in true_queries if len(ground_truth_boxes(query, tracks)[0])]
    boxed_queries = _subsample(boxed_queries, max_queries)
    if not boxed_queries:
        return _choose_span(_subsample(true_queries, max_queries))

    # Mean vIoU over the queries, of every box with every span.
    spans = build_span_candidates(boxed_queries)
    boxes = build_box_candidates(boxed_queries, tracks)
    total = sum(_compute_viou_table(query, tracks, spans, boxes) for query in boxed_queries)
    viou_table = np.asarray(total) / len(boxed_queries)  # [boxes, spans]

    box_index, span_index = np.unravel_index(int(viou_table.argmax()), viou_table.shape)
    x1, y1, x2, y2 = boxes[box_index].tolist()
    return ConstantTube(
        relative_span=spans[span_index],
        relative_box=(x1, y1, x2, y2),
        train_score=float(viou_table[box_index, span_index]),
    )


def _subsample(queries: Sequence[Query], max_queries: int) -> list[Query]:
    """Return at most `max_queries` queries, evenly spaced."""
    if len(queries) <= max_queries:
        return list(queries)
    return [queries[index * len(queries) // max_queries] for index in range(max_queries)]


def _choose_span(queries: Sequence[Query]) -> ConstantTube:
    """Choose the span with the best m_tIoU, for queries without boxes."""
    spans = build_span_candidates(queries)

    mean_tious = []
    for span in spans:
        tious = [
            temporal_iou(query.truth.span, span_to_frames(*span, query.segment))
            for query in queries
            if query.truth
        ]
        mean_tious.append(np.mean(tious))

    best = int(np.argmax(mean_tious))
    return ConstantTube(
        relative_span=spans[best], relative_box=CENTRAL_BOX, train_score=float(mean_tious[best])
    )


def build_span_candidates(queries: Sequence[Query]) -> list[tuple[float, float]]:
    """Build candidate spans from a regular grid and from quantiles of the true boundaries.

    Args:
        queries: Queries with ground truth.

    Returns:
        Pairs begin < end, in [0, 1] of the segment.
    """
    true_spans = np.array(
        [
            compute_relative_positions(np.asarray(query.truth.span) - 0.5, query.segment)
            for query in queries
            if query.truth
        ]
    )  # [n, 2]
    true_edges = np.quantile(true_spans, QUANTILES, axis=0).ravel()
    edges = np.unique(np.concatenate([SPAN_EDGES, true_edges]).clip(0, 1))
    return list(itertools.combinations(edges.tolist(), 2))


def build_box_candidates(queries: Sequence[Query], tracks: Tracks) -> np.ndarray:
    """Build candidate boxes from a regular grid and from quantiles of the true boxes.

    Args:
        queries: Queries with boxes.
        tracks: Ground truth boxes of the queries.

    Returns:
        Boxes [n, 4], xyxy in [0, 1].
    """
    # Quantiles of centers and sizes, over the mean box of each query.
    mean_boxes = np.array([_get_relative_boxes(query, tracks).mean(0) for query in queries])
    quantiles = np.quantile(xyxy_to_cxcywh(mean_boxes, UNIT_SIZE), QUANTILES, axis=0)  # [3, 4]
    quantile_boxes = np.array(list(itertools.product(*quantiles.T)))

    # Squares on a regular grid.
    grid = itertools.product(BOX_CENTERS, BOX_CENTERS, BOX_SIZES)
    grid_boxes = np.array([(x, y, size, size) for x, y, size in grid])

    boxes_cxcywh = np.concatenate([quantile_boxes, grid_boxes])
    boxes = cxcywh_to_xyxy(boxes_cxcywh, UNIT_SIZE).clip(0, 1)
    return np.unique(boxes, axis=0)


def _get_relative_boxes(query: Query, tracks: Tracks) -> np.ndarray:
    """Return the true boxes `[n, 4]`, xyxy in [0, 1] of the image."""
    _, boxes = ground_truth_boxes(query, tracks)
    return boxes.astype(np.float64) / np.array([*query.size, *query.size])


def _compute_viou_table(
    query: Query, tracks: Tracks, spans: Sequence[tuple[float, float]], boxes: np.ndarray
) -> np.ndarray:
    """Compute the vIoU of one query for every box with every span, `[boxes, spans]`.

    vIoU is defined as in `grounding.metrics.scores`.
    """
    assert query.truth is not None
    true_begin, true_end = query.truth.span
    true_length = true_end - true_begin

    # Cumulative sums over frames give the sum of IoUs of any span.
    frames, _ = ground_truth_boxes(query, tracks)
    ious = box_iou(boxes[:, None], _get_relative_boxes(query, tracks)[None])  # [boxes, frames]
    sums = np.concatenate([np.zeros((len(boxes), 1)), ious.cumsum(1)], axis=1)

    frame_spans = np.array([span_to_frames(*span, query.segment) for span in spans])
    begins = frame_spans[:, 0]
    ends = frame_spans[:, 1]
    first = np.searchsorted(frames, begins)
    last = np.searchsorted(frames, ends)

    shared = np.clip(np.minimum(ends, true_end) - np.maximum(begins, true_begin), 0, None)
    union = (ends - begins) + true_length - shared

    # True frames without a box are not part of the volume.
    num_boxless = true_length - len(frames)
    return (sums[:, last] - sums[:, first]) / (union - num_boxless)


def predict_random(queries: Iterable[Query], seed: int = 0) -> list[Prediction]:
    """Predict a uniformly random span and box for every query.

    Args:
        queries: Queries to predict.
        seed: Seed of the random numbers.

    Returns:
        One prediction per query: two different edges in the segment, two corners in the image.
    """
    generator = np.random.default_rng(seed)
    predictions = []
    for query in queries:
        # A segment of n frames has n + 1 edges.
        segment_begin, segment_end = query.segment
        num_edges = segment_end - segment_begin + 1
        edges = np.sort(generator.choice(num_edges, 2, replace=False)) + segment_begin
        begin, end = (int(edge) for edge in edges)

        corners = np.sort(generator.random((2, 2)), axis=1) * np.array(query.size)[:, None]
        (x1, x2), (y1, y2) = corners.tolist()
        box = (begin, x1, y1, x2, y2)
        predictions.append(Prediction(id=query.id, span=(begin, end), score=0.0, boxes=[box]))
    return predictions

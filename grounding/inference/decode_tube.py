"""From the averaged outputs of a segment to its tube: the best span, and boxes in pixels."""

from __future__ import annotations

import math

import numpy as np

from grounding.inference.refine import decode_span
from grounding.inference.segment_prediction import SegmentPrediction
from pipeline.boxes import cxcywh_to_xyxy
from pipeline.records import Prediction


def decode_tube(segment_prediction: SegmentPrediction, subframe_boundaries: bool) -> Prediction:
    """Return the tube of a segment.

    Args:
        segment_prediction: Prediction of the segment. Its field `refined` holds the prediction of
            the refinement, if there was one.
        subframe_boundaries: Interpolate boundaries between clips or frames.

    Returns:
        The best span with its score, and a box in pixels for every frame with a prediction.
    """
    query = segment_prediction.query
    span, score = decode_span(segment_prediction, subframe_boundaries)

    sources = [segment_prediction]
    if segment_prediction.refined is not None:
        sources.append(segment_prediction.refined)

    # Average the boxes of each frame over passes and models.
    covered_frames = np.concatenate([source.frame_indices for source in sources])
    frames, positions = np.unique(covered_frames, return_inverse=True)
    box_sums = np.zeros((len(frames), 4))
    box_counts = np.zeros(len(frames))
    np.add.at(box_sums, positions, np.concatenate([source.box_sums for source in sources]))
    np.add.at(box_counts, positions, np.concatenate([source.box_counts for source in sources]))

    # cxcywh in [0, 1] → xyxy in pixels, clipped to the frame.
    boxes = cxcywh_to_xyxy(box_sums / box_counts[:, None], query.size)
    boxes = np.clip(boxes, 0, [*query.size, *query.size])

    rows = []
    for frame, (x1, y1, x2, y2) in zip(frames, boxes.round(2).tolist(), strict=True):
        rows.append((int(frame), x1, y1, x2, y2))
    return Prediction(id=query.id, span=span, score=round(score, 6), boxes=rows)


def decode_ranked_tube(
    segment_prediction: SegmentPrediction, subframe_boundaries: bool
) -> tuple[float, Prediction]:
    """Return the tube of a segment with a rank that compares tubes of different segments.

    The rank is log(score) plus the scores' log-normalizer (`SpanScores.log_normalizer`).
    The rank uses the first pass only, because the first pass covers a whole segment in all
    segments, and the second pass covers a part.

    Args:
        segment_prediction: Prediction of the segment. Its field `refined` holds the prediction of
            the refinement, if there was one.
        subframe_boundaries: Interpolate boundaries between clips or frames.

    Returns:
        The rank, higher is better, and the tube.
    """
    span_scores = segment_prediction.span_scores
    assert span_scores is not None
    _, _, score = span_scores.best_span(subframe_boundaries)
    rank = math.log(max(score, 1e-6)) + span_scores.log_normalizer
    return rank, decode_tube(segment_prediction, subframe_boundaries)

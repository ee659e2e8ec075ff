"""Boundary refinement: a second look, at clips and frames taken densely around the span that the first look found (ours).

A model sees a certain number of a segment's clips and frames, however many are stored, and places spans no finer than those
lie. The second look shows it a window of the segment as if that were all: the span it found and a margin on either side.
Spans then lie on a finer grid, and are judged by what both looks say of the window (`SpanScores.closer`). A window holds at
least as many stored clips as the model sees, or frames where motion is taken at each frame, since a finer grid would only
repeat them: where a segment has no more than that, or the span takes up nearly all of it, there is no second look.
"""

from __future__ import annotations

import math

from grounding.data.dataset import GroundingDataset
from grounding.inference.segment_prediction import SegmentPrediction
from pipeline import sampling
from pipeline.records import Span

MARGIN_FRACTION = 0.5
"""What the window has on either side of the span, as a share of the span's length."""


def refine_segment(
    dataset: GroundingDataset, segment_prediction: SegmentPrediction, subframe_boundaries: bool
) -> SegmentPrediction | None:
    """A look, not yet taken, at the window around what the first look found; None where it could show nothing new."""
    query = segment_prediction.query
    seen, product = dataset.num_frames, dataset.appearance
    if dataset.num_clips is not None and dataset.motion is not None:
        seen, product = dataset.num_clips, dataset.motion
    stored = len(dataset.rows_in_segment(query, product.columns(query.video)["frame"]))
    least = math.ceil((query.segment[1] - query.segment[0]) * min(1.0, seen / stored))
    window = expand_span(
        decode_span(segment_prediction, None, subframe_boundaries)[0], query.segment, least
    )
    return (
        None
        if window == query.segment
        else SegmentPrediction(query.model_copy(update={"segment": window}), dataset)
    )


def expand_span(span: Span, segment: Span, min_frames: int) -> Span:
    """The span with its margins inside the segment; at least `least` frames long. All in frames `[begin, end)`."""
    margin = math.ceil(MARGIN_FRACTION * (span[1] - span[0]))
    begin, end = max(segment[0], span[0] - margin), min(segment[1], span[1] + margin)
    missing = min_frames - (end - begin)
    if missing > 0:
        begin = min(max(begin - missing // 2, segment[0]), segment[1] - min_frames)
        end = begin + min_frames
    return begin, end


def decode_span(
    segment_prediction: SegmentPrediction,
    refined_prediction: SegmentPrediction | None,
    subframe_boundaries: bool,
) -> tuple[Span, float]:
    """The frames `[begin, end)` of the best span after one look or two, and its score."""
    assert segment_prediction.span_scores is not None
    scores = segment_prediction.span_scores
    if refined_prediction is not None:
        assert refined_prediction.span_scores is not None
        scores = scores.combine_refined(refined_prediction.span_scores)
    begin, end, score = scores.best_span(subframe_boundaries)
    opens, closes = segment_prediction.query.segment
    return sampling.span_to_frames(
        (begin - opens) / (closes - opens), (end - opens) / (closes - opens), (opens, closes)
    ), score

"""Boundary refinement: a second, denser forward pass around the predicted span (ours).

A model reads a fixed number of clips and frames, however many are stored.
Predicted boundaries are no finer than the distance between these clips or frames.
The second pass gives the model a window of the segment: the predicted span and a margin on each
side. Boundaries then lie on a finer grid, and the scores of both passes are combined
(`SpanScores.combine_refined`).

A window holds at least as many stored clips as the model reads, because a finer grid would only
repeat them. For models that read motion at each frame, stored frames count instead of clips.
There is no second pass where the segment has no more clips than that, or where the span with its
margins covers the segment.
"""

from __future__ import annotations

import math

from grounding.data.dataset import GroundingDataset
from grounding.inference.segment_prediction import SegmentPrediction
from pipeline import sampling
from pipeline.records import Span

MARGIN_FRACTION = 0.5
"""Margin on each side of the predicted span, relative to the span's length."""


def refine_segment(
    dataset: GroundingDataset, segment_prediction: SegmentPrediction, subframe_boundaries: bool
) -> SegmentPrediction | None:
    """Return an empty prediction for the window around a predicted span.

    Args:
        dataset: Features of the query's video.
        segment_prediction: Prediction of the whole segment.
        subframe_boundaries: Interpolate boundaries between clips or frames.

    Returns:
        The prediction of the window, before any forward pass. None if a second pass would read
        nothing new.
    """
    query = segment_prediction.query

    # Boundaries lie between clips, or between frames where motion is read at each frame.
    num_inputs = dataset.num_frames
    source = dataset.appearance
    if dataset.num_clips is not None and dataset.motion is not None:
        num_inputs = dataset.num_clips
        source = dataset.motion

    # The shortest window that still holds `num_inputs` stored rows.
    stored_frames = source.columns(query.video)["frame"]
    num_stored = len(dataset.rows_in_segment(query, stored_frames))
    segment_begin, segment_end = query.segment
    min_frames = math.ceil((segment_end - segment_begin) * min(1.0, num_inputs / num_stored))

    span, _ = decode_span(segment_prediction, subframe_boundaries)
    window = expand_span(span, query.segment, min_frames)
    if window == query.segment:
        return None
    return SegmentPrediction(query.model_copy(update={"segment": window}), dataset)


def expand_span(span: Span, segment: Span, min_frames: int) -> Span:
    """Return a span with margins, clipped to its segment.

    Args:
        span: Frames `[begin, end)` inside the segment.
        segment: Frames `[begin, end)` of the segment.
        min_frames: Least length of the result, at most the segment's length.

    Returns:
        The expanded span, frames `[begin, end)`.
    """
    margin = math.ceil(MARGIN_FRACTION * (span[1] - span[0]))
    begin = max(segment[0], span[0] - margin)
    end = min(segment[1], span[1] + margin)

    # Too short a window grows on both sides, and is shifted where it would leave the segment.
    num_missing = min_frames - (end - begin)
    if num_missing > 0:
        begin = min(max(begin - num_missing // 2, segment[0]), segment[1] - min_frames)
        end = begin + min_frames
    return begin, end


def decode_span(
    segment_prediction: SegmentPrediction, subframe_boundaries: bool
) -> tuple[Span, float]:
    """Return the best span of a segment, after one pass or two.

    Args:
        segment_prediction: Prediction of the segment, and in `refined` that of the second pass.
        subframe_boundaries: Interpolate boundaries between clips or frames.

    Returns:
        The span as video frames `[begin, end)`, and its score in [0, 1].
    """
    scores = segment_prediction.span_scores
    assert scores is not None
    refined = segment_prediction.refined
    if refined is not None:
        assert refined.span_scores is not None
        scores = scores.combine_refined(refined.span_scores)
    begin, end, score = scores.best_span(subframe_boundaries)

    # Round to frames of the segment, by the rule that training targets follow.
    segment = segment_prediction.query.segment
    num_frames = segment[1] - segment[0]
    relative_begin = (begin - segment[0]) / num_frames
    relative_end = (end - segment[0]) / num_frames
    return sampling.span_to_frames(relative_begin, relative_end, segment), score

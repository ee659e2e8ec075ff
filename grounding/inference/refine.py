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
from grounding.inference.segment_prediction import Look
from pipeline import sampling
from pipeline.records import Span

MARGIN = 0.5
"""What the window has on either side of the span, as a share of the span's length."""


def second_look(features: GroundingDataset, first: Look, between: bool) -> Look | None:
    """A look, not yet taken, at the window around what the first look found; None where it could show nothing new."""
    query = first.query
    seen, product = features.num_frames, features.appearance
    if features.num_clips is not None and features.motion is not None:
        seen, product = features.num_clips, features.motion
    stored = len(features.rows_in_segment(query, product.columns(query.video)["frame"]))
    least = math.ceil((query.segment[1] - query.segment[0]) * min(1.0, seen / stored))
    window = window_around(found_span(first, None, between)[0], query.segment, least)
    return (
        None
        if window == query.segment
        else Look(query.model_copy(update={"segment": window}), features)
    )


def window_around(span: Span, segment: Span, least: int) -> Span:
    """The span with its margins inside the segment; at least `least` frames long. All in frames `[begin, end)`."""
    margin = math.ceil(MARGIN * (span[1] - span[0]))
    begin, end = max(segment[0], span[0] - margin), min(segment[1], span[1] + margin)
    missing = least - (end - begin)
    if missing > 0:
        begin = min(max(begin - missing // 2, segment[0]), segment[1] - least)
        end = begin + least
    return begin, end


def found_span(first: Look, second: Look | None, between: bool) -> tuple[Span, float]:
    """The frames `[begin, end)` of the best span after one look or two, and its score."""
    assert first.when is not None
    scores = first.when
    if second is not None:
        assert second.when is not None
        scores = scores.combine_refined(second.when)
    begin, end, score = scores.best_span(between)
    opens, closes = first.query.segment
    return sampling.span_to_frames(
        (begin - opens) / (closes - opens), (end - opens) / (closes - opens), (opens, closes)
    ), score

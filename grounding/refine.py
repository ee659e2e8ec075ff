"""Boundary refinement: a second look, at clips and frames taken densely around the span that the first look found (ours).

A model sees T_d clips of a segment, however many are stored, and its proposals begin and end between those. The second look
shows it a window of the segment as if that were all: the span it found and a margin on either side. Proposals then lie on
a finer grid; each is scored by the mean of what both looks say, the first look's map being interpolated between its cells.
A window holds at least T_d stored clips, since a finer grid would only repeat them: where a segment has no more than
that, or the span takes up nearly all of it, there is no second look.
"""

from __future__ import annotations

import math

import numpy as np

from grounding.data import FeatureSet
from grounding.looks import Look, highest
from pipeline import sampling
from pipeline.records import Span

MARGIN = 0.5
"""What the window has on either side of the span, as a share of the span's length."""


def second_look(features: FeatureSet, first: Look, between: bool) -> Look | None:
    """A look, not yet taken, at the window around what the first look found; None where it could show nothing new."""
    query = first.query
    stored = len(features.rows_of(query, features.motion.columns(query.video)["frame"]))
    least = math.ceil((query.segment[1] - query.segment[0]) * min(1.0, features.clips / stored))
    window = window_around(found_span(first, None, between)[0], query.segment, least)
    return None if window == query.segment else Look(query.model_copy(update={"segment": window}), features)


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
    """The frames `[begin, end)` of the best proposal after one look or two, and its score."""
    segment = first.query.segment
    if second is None:
        begin, end, score = highest(first.scores, between)
        return sampling.span_frames(begin, end, segment), score
    opens, closes = ((edge - segment[0]) / (segment[1] - segment[0]) for edge in second.query.segment)
    edges = np.linspace(opens, closes, len(second.scores) + 1)
    both = (second.scores + interpolated(first.scores, edges[:-1], edges[1:])) / 2
    begin, end, score = highest(np.where(second.scores < 0, -1.0, both), between)
    return sampling.span_frames(opens + begin * (closes - opens), opens + end * (closes - opens), segment), score


def interpolated(scores: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A map's scores `[T, T]` for proposals that begin and end anywhere (τ) → `[begins, ends]`; −1 where begin ≥ end.

    Linear in both, between the cells that are proposals; beyond the outermost ones theirs are held.
    """
    last = len(scores) - 1
    row, row_share = _neighbours(begins * len(scores), last)
    column, column_share = _neighbours(ends * len(scores) - 1, last)
    cells = row[:, None, :, None], column[None, :, None, :]
    weights = row_share[:, None, :, None] * column_share[None, :, None, :] * (cells[0] <= cells[1])
    total = weights.sum((2, 3))
    known = (total > 0) & (begins[:, None] < ends[None])
    return np.divide((weights * scores[cells]).sum((2, 3)), total, out=np.full(total.shape, -1.0), where=known)


def _neighbours(places: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray]:
    """The two cells around each place `[n, 2]`, and their shares `[n, 2]`."""
    places = np.clip(places, 0, last)
    lower = places.astype(np.int64)
    share = places - lower
    return np.stack([lower, np.minimum(lower + 1, last)], 1), np.stack([1 - share, share], 1)

"""When the event happens: what models answer about a pass, gathered over passes and models, and the best span in it.

Models say it in one of two ways: a score for every proposal of the segment, or for each frame of the pass the probability
that the event begins with it and that it ends with it. Spans are in frames `[begin, end)` of the video.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from pipeline.records import Span

SpanPredictionKind = TypeVar("SpanPredictionKind", bound="SpanPrediction")


class SpanPrediction(Protocol):
    """What one model says of when the event happens, having seen one pass."""

    def init_scores(self, segment: Span, frame_indices: np.ndarray) -> SpanScores[Any]:
        """Where answers of this kind about a segment are gathered; `frames` `[n]`, ascending, are those that its passes cover."""


class SpanScores(ABC, Generic[SpanPredictionKind]):
    """What any number of models and passes say of when the event happens in one segment, averaged."""

    @abstractmethod
    def add(self, prediction: SpanPredictionKind, frame_indices: np.ndarray) -> None:
        """One model's answer to one pass, which took the frames `numbers` `[T_s]`."""

    @property
    @abstractmethod
    def log_normalizer(self) -> float:
        """What is added to the logarithm of a score to compare it with those of other segments: 0 where they compare as they are."""

    @abstractmethod
    def best_span(self, subframe_boundaries: bool) -> tuple[float, float, float]:
        """The best span's begin and end in frames of the video, not rounded, and its score in [0, 1].

        With `between` either lies where a parabola through the best place's score and those of its two neighbours is
        highest, at most half-way to one of them; where one of the two makes no span, it stays.
        """

    @abstractmethod
    def combine_refined(self, refined: Self) -> Self:
        """What this look at the segment and a second one at a window of it say together of that window."""


@dataclass(frozen=True)
class ProposalPrediction:
    """One model's answer to one pass: the probability of every proposal `[i/T, (j+1)/T)` of the segment."""

    probabilities: np.ndarray
    """`[T, T]`, valid where i ≤ j."""

    def init_scores(self, segment: Span, frame_indices: np.ndarray) -> ProposalScores:
        return ProposalScores(segment, np.zeros(self.probabilities.shape))


@dataclass
class ProposalScores(SpanScores[ProposalPrediction]):
    """The sum `[T, T]` of what `answers` answers say of every proposal of the segment."""

    segment: Span
    total: np.ndarray
    num_predictions: int = 0

    @property
    def log_normalizer(self) -> float:
        return 0.0

    @property
    def mean(self) -> np.ndarray:
        """The mean probability of every proposal, `[T, T]`; −1 where i > j."""
        return np.where(
            np.triu(np.ones_like(self.total, dtype=bool)), self.total / self.num_predictions, -1.0
        )

    def add(self, prediction: ProposalPrediction, frame_indices: np.ndarray) -> None:
        self.total += prediction.probabilities
        self.num_predictions += 1

    def best_span(self, subframe_boundaries: bool) -> tuple[float, float, float]:
        first, last = self.segment
        begin, end, score = highest_span(self.mean, subframe_boundaries)
        return first + begin * (last - first), first + end * (last - first), score

    def combine_refined(self, refined: ProposalScores) -> ProposalScores:
        """On the window's finer grid, the mean of both; this look's map is interpolated between its cells."""
        first, last = self.segment
        opens, closes = ((edge - first) / (last - first) for edge in refined.segment)
        edges = np.linspace(opens, closes, len(refined.total) + 1)
        return ProposalScores(
            refined.segment, refined.mean + interpolate_scores(self.mean, edges[:-1], edges[1:]), 2
        )


@dataclass(frozen=True)
class BoundaryPrediction:
    """One model's answer to one pass: the probability of each of its frames to be the event's first and its last one."""

    start: np.ndarray
    """`[T_s]` in the order of the pass' frames; sums to 1."""
    end: np.ndarray
    """`[T_s]`, the same."""
    log_normalizer: float = 0.0
    """The logarithm of what both were divided by to sum to 1: a pass is given the same probabilities whether it shows the event
    clearly or not at all, and what they were divided by tells one from the other, as far as anything does."""

    def init_scores(self, segment: Span, frame_indices: np.ndarray) -> BoundaryScores:
        return BoundaryScores(
            segment,
            interval_edges(frame_indices, segment),
            np.zeros(len(frame_indices)),
            np.zeros(len(frame_indices)),
        )


@dataclass
class BoundaryScores(SpanScores[BoundaryPrediction]):
    """The sums of what `answers` answers say of the event's begin at each of `edges[:-1]`, and of its end at each of `edges[1:]`.

    The edges `[n+1]` are those of the intervals of all stored frames. A frame of a pass stands for a longer interval, up to
    half-way to the pass' neighbouring frames: with the first frame the event begins at its left edge, with the last one it
    ends at its right edge. Passes take other frames each, so their probabilities are interpolated between those edges.
    """

    segment: Span
    edges: np.ndarray
    start: np.ndarray
    end: np.ndarray
    num_predictions: int = 0
    log_normalizers: float = 0.0

    @property
    def log_normalizer(self) -> float:
        return self.log_normalizers / self.num_predictions

    @property
    def start_probabilities(self) -> np.ndarray:
        """The mean probability of the event to begin at `edges[:-1]`, `[n]`: each on the scale of a pass' frame, so not summing to 1."""
        return self.start / self.num_predictions

    @property
    def end_probabilities(self) -> np.ndarray:
        """That of its end at `edges[1:]`, `[n]`."""
        return self.end / self.num_predictions

    def add(self, prediction: BoundaryPrediction, frame_indices: np.ndarray) -> None:
        """Where the pass repeats frames, each gets what it would if all were repeated as often: that varies by one."""
        frames, place, times = np.unique(frame_indices, return_inverse=True, return_counts=True)
        edges, more = interval_edges(frames, self.segment), times * len(frames) / len(frame_indices)
        self.start += np.interp(
            self.edges[:-1], edges[:-1], np.bincount(place, prediction.start) / more
        )
        self.end += np.interp(self.edges[1:], edges[1:], np.bincount(place, prediction.end) / more)
        self.log_normalizers += prediction.log_normalizer
        self.num_predictions += 1

    def best_span(self, subframe_boundaries: bool) -> tuple[float, float, float]:
        """The begin and the later end whose product of probabilities is highest; that is the score."""
        begins, ends = self.start_probabilities, self.end_probabilities
        j = int((np.maximum.accumulate(begins) * ends).argmax())
        i = int(begins[: j + 1].argmax())
        begin, end, score = (
            float(self.edges[i]),
            float(self.edges[j + 1]),
            float(begins[i] * ends[j]),
        )
        if subframe_boundaries:
            begin, end = (
                _parabola_peak(self.edges[: j + 1], begins[: j + 1], i),
                _parabola_peak(self.edges[i + 1 :], ends[i:], j - i),
            )
        return begin, end, min(score, 1.0)

    def combine_refined(self, refined: BoundaryScores) -> BoundaryScores:
        """At the window's edges, the mean of the second look and of this one brought to the second's sum.

        The second look says where a boundary lies if it is in the window. Interpolated at the window's edges and brought to
        the same sum, so does this one: what it gave to places outside the window does not count, nor does it weigh more or
        less because each of its frames stands for a longer time. Where it gives the window nothing, the second stands alone.
        """
        begins = np.interp(refined.edges[:-1], self.edges[:-1], self.start_probabilities)
        ends = np.interp(refined.edges[1:], self.edges[1:], self.end_probabilities)
        return BoundaryScores(
            refined.segment,
            refined.edges,
            _add_rescaled(refined.start_probabilities, begins),
            _add_rescaled(refined.end_probabilities, ends),
            2,
            2 * refined.log_normalizer,
        )


def interval_edges(frames: np.ndarray, segment: Span) -> np.ndarray:
    """Edges `[n+1]` of the intervals that frames `[n]`, ascending, stand for: half-way between their middles, the segment's outermost.

    In frames of the video: the middle of frame f is at f + ½.
    """
    return np.concatenate([[segment[0]], (frames[:-1] + frames[1:] + 1) / 2, [segment[1]]])


def _add_rescaled(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The sum of two looks' probabilities of the same edges `[n]`, the first's brought to the second's sum."""
    total = first.sum()
    return second + (first * (second.sum() / total) if total > 0 else second)


def highest_span(scores: np.ndarray, subframe_boundaries: bool) -> tuple[float, float, float]:
    """The best proposal of a map `[T, T]` (−1 where i > j): its begin and end as shares of what the map covers, its score.

    `between`: see `SpanScores.best`; the neighbours are the proposals that begin, or end, one clip earlier and later.
    """
    count = len(scores)
    i, j = divmod(int(scores.argmax()), count)
    begin, end = float(i), float(j + 1)
    if subframe_boundaries:
        clips = np.arange(count)
        begin, end = _parabola_peak(clips, scores[:, j], i), _parabola_peak(clips + 1, scores[i], j)
    return begin / count, end / count, float(scores[i, j])


def _parabola_peak(places: np.ndarray, scores: np.ndarray, best: int) -> float:
    """Where the parabola through the best score and its two neighbours' is highest; the best one's place where one is missing."""
    around = slice(best - 1, best + 2)
    if not 0 < best < len(scores) - 1 or scores[around].min() < 0:
        return float(places[best])
    rise, fall = np.diff(scores[around]) / np.diff(places[around])
    before, after = (places[best - 1] + places[best]) / 2, (places[best] + places[best + 1]) / 2
    return float(before + (after - before) * rise / (rise - fall) if rise > fall else places[best])


def interpolate_scores(scores: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A map's scores `[T, T]` for proposals that begin and end anywhere (τ) → `[begins, ends]`; −1 where begin ≥ end.

    Linear in both, between the cells that are proposals; beyond the outermost ones theirs are held.
    """
    last = len(scores) - 1
    row, row_share = _neighbor_indices(begins * len(scores), last)
    column, column_share = _neighbor_indices(ends * len(scores) - 1, last)
    cells = row[:, None, :, None], column[None, :, None, :]
    weights = row_share[:, None, :, None] * column_share[None, :, None, :] * (cells[0] <= cells[1])
    total = weights.sum((2, 3))
    known = (total > 0) & (begins[:, None] < ends[None])
    return np.divide(
        (weights * scores[cells]).sum((2, 3)), total, out=np.full(total.shape, -1.0), where=known
    )


def _neighbor_indices(places: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray]:
    """The two cells around each place `[n, 2]`, and their shares `[n, 2]`."""
    places = np.clip(places, 0, last)
    lower = places.astype(np.int64)
    share = places - lower
    return np.stack([lower, np.minimum(lower + 1, last)], 1), np.stack([1 - share, share], 1)

"""Temporal scores of a segment: predictions of single passes, their averages, and the best span.

Models predict in one of two ways: a score for every proposal of the segment, or start and end
probabilities of every frame of a pass. Spans are in frames `[begin, end)` of the video.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from pipeline.records import Span

SpanPredictionKind = TypeVar("SpanPredictionKind", bound="SpanPrediction")


class SpanPrediction(Protocol):
    """The temporal prediction of one model for one pass over a segment."""

    def init_scores(self, segment: Span, frame_indices: np.ndarray) -> SpanScores[Any]:
        """Return empty scores for predictions of the same kind.

        Args:
            segment: The segment, in frames.
            frame_indices: [n], ascending, all frames that the segment's passes cover.

        Returns:
            Scores without a prediction.
        """


class SpanScores(ABC, Generic[SpanPredictionKind]):
    """The average of temporal predictions of any number of models and passes for one segment."""

    @abstractmethod
    def add(self, prediction: SpanPredictionKind, frame_indices: np.ndarray) -> None:
        """Add one model's prediction for one pass.

        Args:
            prediction: The prediction.
            frame_indices: [T_s], the frames of the pass.
        """

    @property
    @abstractmethod
    def log_normalizer(self) -> float:
        """Return the log-normalizer.

        Add it to log(score) before comparing segments; 0 if scores are already comparable.
        """

    @abstractmethod
    def best_span(self, subframe_boundaries: bool) -> tuple[float, float, float]:
        """Return the span with the highest score.

        Args:
            subframe_boundaries: True moves begin and end to the maximum of a parabola through the
                best score and its two neighbors, at most half-way to a neighbor. A boundary with
                a missing neighbor, or with one that makes no span, stays.

        Returns:
            begin: In frames of the video, not rounded.
            end: In frames of the video, not rounded, exclusive.
            score: In [0, 1].
        """

    @abstractmethod
    def combine_refined(self, refined: Self) -> Self:
        """Combine these scores with those of a second, finer prediction of a window.

        Args:
            refined: Scores of a window of this segment.

        Returns:
            Combined scores of the window.
        """


@dataclass(frozen=True)
class ProposalPrediction:
    """One model's prediction for one pass: the probability of every proposal `[i/T, (j+1)/T)`."""

    probabilities: np.ndarray
    """`[T, T]`, valid where i ≤ j."""

    def init_scores(self, segment: Span, frame_indices: np.ndarray) -> ProposalScores:
        """Return empty scores of the segment; see `SpanPrediction.init_scores`."""
        return ProposalScores(segment, np.zeros(self.probabilities.shape))


@dataclass
class ProposalScores(SpanScores[ProposalPrediction]):
    """Sums of proposal probabilities over predictions.

    Attributes:
        segment: The segment that the map covers, in frames.
        total: [T, T], summed probabilities.
        num_predictions: Number of predictions in the sum.
    """

    segment: Span
    total: np.ndarray
    num_predictions: int = 0

    @property
    def log_normalizer(self) -> float:
        """Return 0: probabilities of proposals are comparable between segments."""
        return 0.0

    @property
    def mean(self) -> np.ndarray:
        """Return the mean probability of every proposal, `[T, T]`; −1 where i > j."""
        valid = np.triu(np.ones_like(self.total, dtype=bool))
        return np.where(valid, self.total / self.num_predictions, -1.0)

    def add(self, prediction: ProposalPrediction, frame_indices: np.ndarray) -> None:
        """Add one model's prediction for one pass; see `SpanScores.add`."""
        self.total += prediction.probabilities
        self.num_predictions += 1

    def best_span(self, subframe_boundaries: bool) -> tuple[float, float, float]:
        """Return the best proposal; see `SpanScores.best_span`."""
        first, last = self.segment
        begin, end, score = highest_span(self.mean, subframe_boundaries)

        # Shares of the segment become frames.
        return first + begin * (last - first), first + end * (last - first), score

    def combine_refined(self, refined: ProposalScores) -> ProposalScores:
        """Return the mean of both maps on the window's finer grid.

        Args:
            refined: Scores of a window of this segment.

        Returns:
            Scores of the window. This map is interpolated between its cells.
        """
        first, last = self.segment
        window_begin, window_end = refined.segment

        # Edges of the window's clips as shares of this segment.
        begin = (window_begin - first) / (last - first)
        end = (window_end - first) / (last - first)
        edges = np.linspace(begin, end, len(refined.total) + 1)

        coarse = interpolate_scores(self.mean, edges[:-1], edges[1:])
        total = refined.mean + coarse
        return ProposalScores(refined.segment, total, num_predictions=2)


@dataclass(frozen=True)
class BoundaryPrediction:
    """One model's prediction for one pass: start and end probabilities of each frame."""

    start: np.ndarray
    """`[T_s]`, probability of each frame of the pass to be the first of the event; sums to 1."""
    end: np.ndarray
    """`[T_s]`, probability of each frame of the pass to be the last of the event; sums to 1."""
    log_normalizer: float = 0.0
    """Logarithm of the divisor that makes `start` and `end` sum to 1.
    Normalized probabilities are the same for clear events and absent ones. Only the divisor can
    tell a pass with the event from a pass without."""

    def init_scores(self, segment: Span, frame_indices: np.ndarray) -> BoundaryScores:
        """Return empty scores of the segment; see `SpanPrediction.init_scores`."""
        edges = interval_edges(frame_indices, segment)
        start = np.zeros(len(frame_indices))
        end = np.zeros(len(frame_indices))
        return BoundaryScores(segment, edges, start, end)


@dataclass
class BoundaryScores(SpanScores[BoundaryPrediction]):
    """Sums of start and end probabilities over predictions.

    The edges are those of the intervals of all stored frames. A frame of a pass stands for a
    longer interval, up to half-way to the neighboring frames of the pass. An event with this first
    frame begins at the left edge of the interval. An event with this last frame ends at the right
    edge. Passes take different frames, so probabilities are interpolated between edges.

    Attributes:
        segment: The segment, in frames.
        edges: [n + 1], interval edges in frames.
        start: [n], summed probability of the event to begin at `edges[:-1]`.
        end: [n], summed probability of the event to end at `edges[1:]`.
        num_predictions: Number of predictions in the sums.
        log_normalizers: Sum of the predictions' log-normalizers.
    """

    segment: Span
    edges: np.ndarray
    start: np.ndarray
    end: np.ndarray
    num_predictions: int = 0
    log_normalizers: float = 0.0

    @property
    def log_normalizer(self) -> float:
        """Return the mean log-normalizer; see `SpanScores.log_normalizer`."""
        return self.log_normalizers / self.num_predictions

    @property
    def start_probabilities(self) -> np.ndarray:
        """Return the mean probability of the event to begin at `edges[:-1]`, `[n]`.

        Each value has the scale of a pass' frame, so the sum differs from 1.
        """
        return self.start / self.num_predictions

    @property
    def end_probabilities(self) -> np.ndarray:
        """Return the mean probability of the event to end at `edges[1:]`, `[n]`."""
        return self.end / self.num_predictions

    def add(self, prediction: BoundaryPrediction, frame_indices: np.ndarray) -> None:
        """Add one model's prediction for one pass.

        A pass may repeat frames, and the number of repetitions differs by one between frames. The
        probability of a frame is scaled as if all frames were repeated equally often.

        Args:
            prediction: The prediction.
            frame_indices: [T_s], the frames of the pass.
        """
        frames, inverse, counts = np.unique(frame_indices, return_inverse=True, return_counts=True)

        # Repetitions of each frame relative to the mean number of repetitions.
        repetition = counts * len(frames) / len(frame_indices)  # [frames]
        start = np.bincount(inverse, prediction.start) / repetition  # [frames]
        end = np.bincount(inverse, prediction.end) / repetition  # [frames]

        # From the edges of the pass' intervals to the edges of all frames' intervals.
        edges = interval_edges(frames, self.segment)
        self.start += np.interp(self.edges[:-1], edges[:-1], start)
        self.end += np.interp(self.edges[1:], edges[1:], end)

        self.log_normalizers += prediction.log_normalizer
        self.num_predictions += 1

    def best_span(self, subframe_boundaries: bool) -> tuple[float, float, float]:
        """Return the begin and the later end with the highest product of probabilities.

        Args:
            subframe_boundaries: As in `SpanScores.best_span`.

        Returns:
            begin: In frames of the video, not rounded.
            end: In frames of the video, not rounded, exclusive.
            score: The product, at most 1.
        """
        starts = self.start_probabilities  # [n]
        ends = self.end_probabilities  # [n]

        # The best start up to each end is a running maximum, so the search is linear.
        best_starts = np.maximum.accumulate(starts)
        j = int((best_starts * ends).argmax())
        i = int(starts[: j + 1].argmax())

        begin = float(self.edges[i])
        end = float(self.edges[j + 1])
        score = float(starts[i] * ends[j])

        if subframe_boundaries:
            begin = _parabola_peak(self.edges[: j + 1], starts[: j + 1], i)
            end = _parabola_peak(self.edges[i + 1 :], ends[i:], j - i)

        return begin, end, min(score, 1.0)

    def combine_refined(self, refined: BoundaryScores) -> BoundaryScores:
        """Return the mean of both scores at the window's edges, scaled to the same sum.

        The refined scores place a boundary that lies inside the window. These scores, interpolated
        at the window's edges and scaled, do the same. Probability outside the window has no
        influence, and neither has the longer interval of each coarse frame. If the window has no
        coarse probability, the refined scores are used alone.

        Args:
            refined: Scores of a window of this segment.

        Returns:
            Scores of the window, with the log-normalizer of `refined`.
        """
        start = np.interp(refined.edges[:-1], self.edges[:-1], self.start_probabilities)
        end = np.interp(refined.edges[1:], self.edges[1:], self.end_probabilities)

        return BoundaryScores(
            segment=refined.segment,
            edges=refined.edges,
            start=_add_rescaled(refined.start_probabilities, start),
            end=_add_rescaled(refined.end_probabilities, end),
            num_predictions=2,
            log_normalizers=2 * refined.log_normalizer,
        )


def interval_edges(frames: np.ndarray, segment: Span) -> np.ndarray:
    """Return the edges of the intervals that frames stand for.

    Inner edges lie half-way between the middles of neighboring frames. The outermost edges are
    those of the segment. The middle of frame f is at f + ½.

    Args:
        frames: [n], ascending frame indices.
        segment: The segment, in frames.

    Returns:
        [n + 1], in frames of the video.
    """
    inner = (frames[:-1] + frames[1:] + 1) / 2
    return np.concatenate([[segment[0]], inner, [segment[1]]])


def _add_rescaled(refined: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Return the sum of two probabilities of the same edges `[n]`, `coarse` scaled to equal sum."""
    total = coarse.sum()

    if total > 0:
        return refined + coarse * (refined.sum() / total)

    return refined + refined


def highest_span(scores: np.ndarray, subframe_boundaries: bool) -> tuple[float, float, float]:
    """Return the best proposal of a map.

    Args:
        scores: [T, T], −1 where i > j.
        subframe_boundaries: As in `SpanScores.best_span`. The neighbors are the proposals that
            begin, or end, one clip earlier and later.

    Returns:
        begin: As a share of the map's segment.
        end: As a share of the map's segment.
        score: The score of the proposal.
    """
    count = len(scores)
    i, j = divmod(int(scores.argmax()), count)
    begin = float(i)
    end = float(j + 1)

    if subframe_boundaries:
        clips = np.arange(count)
        begin = _parabola_peak(clips, scores[:, j], i)
        end = _parabola_peak(clips + 1, scores[i], j)

    return begin / count, end / count, float(scores[i, j])


def _parabola_peak(positions: np.ndarray, scores: np.ndarray, best: int) -> float:
    """Return the position of the maximum of the parabola through the best score and its neighbors.

    Without two valid neighbors, return the position of the best score.
    """
    neighborhood = slice(best - 1, best + 2)
    has_neighbors = 0 < best < len(scores) - 1

    # A negative score marks a pair of begin and end that is no span.
    if not has_neighbors or scores[neighborhood].min() < 0:
        return float(positions[best])

    # Slopes before and after the best position, at the midpoints between positions.
    rise, fall = np.diff(scores[neighborhood]) / np.diff(positions[neighborhood])
    before = (positions[best - 1] + positions[best]) / 2
    after = (positions[best] + positions[best + 1]) / 2

    # The slope falls linearly between the midpoints; the maximum is at slope zero.
    if rise > fall:
        return float(before + (after - before) * rise / (rise - fall))

    # Three equal scores have no maximum.
    return float(positions[best])


def interpolate_scores(scores: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Interpolate a proposal map at arbitrary begins and ends.

    The interpolation is linear in begin and end, between valid proposals. Beyond the outermost
    proposals, the nearest score is used.

    Args:
        scores: [T, T], −1 where i > j.
        begins: [m], in τ.
        ends: [k], in τ.

    Returns:
        [m, k], −1 where begin ≥ end.
    """
    last = len(scores) - 1
    rows, row_weights = _neighbor_indices(begins * len(scores), last)  # [m, 2] each
    columns, column_weights = _neighbor_indices(ends * len(scores) - 1, last)  # [k, 2] each

    # The four cells around each (begin, end): [m, k, 2, 2].
    row = rows[:, None, :, None]
    column = columns[None, :, None, :]
    is_proposal = row <= column
    weights = row_weights[:, None, :, None] * column_weights[None, :, None, :] * is_proposal

    total = weights.sum((2, 3))  # [m, k]
    weighted = (weights * scores[row, column]).sum((2, 3))  # [m, k]

    valid = (total > 0) & (begins[:, None] < ends[None])
    result = np.full(total.shape, -1.0)
    return np.divide(weighted, total, out=result, where=valid)


def _neighbor_indices(positions: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the two cells around each position `[n, 2]`, and their linear weights `[n, 2]`."""
    clipped = np.clip(positions, 0, last)
    lower = clipped.astype(np.int64)
    upper = np.minimum(lower + 1, last)
    fraction = clipped - lower

    indices = np.stack([lower, upper], 1)
    weights = np.stack([1 - fraction, fraction], 1)
    return indices, weights

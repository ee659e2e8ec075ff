"""What models say about one segment, gathered pass by pass, and the span that its score map points at."""

from __future__ import annotations

import numpy as np

from grounding.data import FeatureSet
from pipeline import sampling
from pipeline.records import Query


class Look:
    """The answers of any number of models and passes about a query's segment, summed.

    `passes`: the stored rows each pass takes, `[T_s]`; `frames` `[n]`: the frames they cover; `boxes` `[n, 4]`: the sums of
    their cxcywh boxes; `seen` `[n]`: how often each was seen.
    """

    def __init__(self, query: Query, features: FeatureSet) -> None:
        stored = features.appearance.columns(query.video)["frame"]
        own = features.rows_of(query, stored)
        self.query = query
        self.passes = [own[places] for places in sampling.passes(len(own), features.frames)]
        self.frames = stored[own]
        self.boxes, self.seen = np.zeros((len(own), 4)), np.zeros(len(own), np.int64)
        self._scores, self._maps = np.zeros((features.clips, features.clips)), 0

    def add(self, numbers: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> None:
        """One model's answer to one pass: its frames' numbers `[T_s]`, boxes `[T_s, 4]` cxcywh, probabilities `[T_d, T_d]`."""
        place = np.searchsorted(self.frames, numbers)
        np.add.at(self.boxes, place, boxes)
        np.add.at(self.seen, place, 1)
        self._scores += scores
        self._maps += 1

    @property
    def scores(self) -> np.ndarray:
        """The mean probability of every proposal, `[T_d, T_d]`; −1 where i > j."""
        return np.where(np.triu(np.ones_like(self._scores, dtype=bool)), self._scores / self._maps, -1.0)


def highest(scores: np.ndarray, between: bool) -> tuple[float, float, float]:
    """The best proposal of a map `[T, T]` (−1 where i > j): its begin and end as shares of what the map covers, its score.

    With `between` the begin is where a parabola through the best cell's score and those of the proposals that begin one
    clip earlier and later is highest, at most half a clip away; the end alike. Where one of the two is no proposal, it stays.
    """
    count = len(scores)
    i, j = divmod(int(scores.argmax()), count)
    begin, end = float(i), float(j + 1)
    if between:
        begin += _vertex(scores[max(i - 1, 0) : i + 2, j])
        end += _vertex(scores[i, max(j - 1, 0) : j + 2])
    return begin / count, end / count, float(scores[i, j])


def _vertex(three: np.ndarray) -> float:
    """Where the parabola through three scores, the middle one the highest, has its vertex: −½…½ from the middle."""
    if len(three) < 3 or three.min() < 0:
        return 0.0
    lower, middle, upper = three
    bend = 2 * middle - lower - upper
    return float((upper - lower) / (2 * bend)) if bend > 0 else 0.0

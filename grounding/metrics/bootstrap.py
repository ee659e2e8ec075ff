"""How sure a mean is, and whether one run is better than another: the bootstrap over videos.

The sentences of one video share its difficulty, so videos are drawn again, not queries (Cameron, Gelbach & Miller 2008,
the pairs cluster bootstrap); intervals are the 2.5 % and 97.5 % percentiles. Two runs are compared on the same
queries: the drawn videos are the same for both, so that what is hard for both cancels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grounding.metrics.scores import MEAN_METRICS, THRESHOLDS, Score
from pipeline.errors import InputError

NUM_RESAMPLES = 5000
PERCENTILES = (2.5, 97.5)
MIN_VIDEOS = 10
"""Videos that an interval needs; of fewer the bootstrap draws too few different samples."""


@dataclass(frozen=True)
class Difference:
    """One mean of a run (`ours`) minus another run's (`other`), on the same queries.

    `low`, `high`: its 95 % interval; these and `p` are None for too few videos. `p`: how often, were there no
    difference, drawing videos would move it as far (two-sided). `better`, `worse`: how many queries score higher, or
    lower, than in the other run.
    """

    ours: float
    other: float
    mean: float
    low: float | None
    high: float | None
    p: float | None
    better: int
    worse: int


def too_few_videos(videos: Iterable[str]) -> bool:
    """Whether there are too few videos for an interval to mean anything."""
    return len(set(videos)) < MIN_VIDEOS


def confidence_intervals(
    scores: Sequence[Score], videos: Mapping[str, str], seed: int = 0
) -> dict[str, float]:
    """The 95 % interval of every mean: `m_vIoU_low`, `m_vIoU_high`, …; means over nothing are left out.

    `videos` names each query's video; with fewer than FEWEST there are no intervals.
    """
    if too_few_videos(videos[one.id] for one in scores):
        return {}
    table = stack_scores(scores)
    drawn = bootstrap_means(table, [videos[one.id] for one in scores], seed)
    found: dict[str, float] = {}
    for name, column, means in zip(MEAN_METRICS, table.T, drawn.T, strict=True):
        if not np.isnan(column).all():
            found[f"{name}_low"], found[f"{name}_high"] = np.nanpercentile(
                means, PERCENTILES
            ).tolist()
    return found


def compare_paired(
    current: Sequence[Score], other: Sequence[Score], videos: Mapping[str, str], seed: int = 0
) -> dict[str, Difference]:
    """Per mean, how `ours` differs from `other`; both must score the same queries."""
    theirs = {one.id: one for one in other}
    unshared = theirs.keys() ^ {one.id for one in current}
    if unshared:
        raise InputError(
            f"the two runs do not score the same queries: {len(unshared)} are in one only, for example {min(unshared)!r}"
        )
    first, second = stack_scores(current), stack_scores([theirs[one.id] for one in current])
    drawn = bootstrap_means(first - second, [videos[one.id] for one in current], seed)
    found: dict[str, Difference] = {}
    unsure = too_few_videos(videos[one.id] for one in current)
    for name, a, b, means in zip(MEAN_METRICS, first.T, second.T, drawn.T, strict=True):
        known = ~np.isnan(a - b)
        if not known.any():
            continue
        mean = float((a - b)[known].mean())
        means = means[~np.isnan(means)]
        low, high = np.percentile(means, PERCENTILES).tolist()
        as_far = np.abs(means - mean) >= abs(mean) - 1e-12
        found[name] = Difference(
            ours=float(a[known].mean()),
            other=float(b[known].mean()),
            mean=mean,
            low=None if unsure else low,
            high=None if unsure else high,
            p=None if unsure else float((as_far.sum() + 1) / (len(means) + 1)),
            better=int((a > b).sum()),
            worse=int((a < b).sum()),
        )
    return found


def stack_scores(scores: Sequence[Score]) -> np.ndarray:
    """`[queries, means]` in the order of MEANS; NaN where a query has no such score."""
    rows = [(one.vIoU, one.tIoU, one.sIoU) for one in scores]
    values = np.array(rows, np.float64).reshape(-1, 3)
    above = [
        np.where(np.isnan(values[:, 0]), np.nan, values[:, 0] > threshold)
        for threshold in THRESHOLDS
    ]
    return np.column_stack([values, *above])


def bootstrap_means(table: np.ndarray, videos: Sequence[str], seed: int) -> np.ndarray:
    """The table's column means over videos drawn with replacement: `[RESAMPLES, means]`; NaN where nothing known was drawn."""
    _, cluster = np.unique(np.array(videos, dtype=np.str_), return_inverse=True)
    count = int(cluster.max()) + 1 if len(cluster) else 0
    known = ~np.isnan(table)
    totals = np.zeros((count, 2 * table.shape[1]))
    np.add.at(totals, cluster, np.hstack([np.where(known, table, 0), known]))
    generator = np.random.default_rng(seed)
    drawn = np.empty((NUM_RESAMPLES, totals.shape[1]))
    for number in range(NUM_RESAMPLES):
        times = (
            np.bincount(generator.integers(count, size=count), minlength=count)
            if count
            else np.zeros(0)
        )
        drawn[number] = times @ totals
    sums, counts = np.hsplit(drawn, 2)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)

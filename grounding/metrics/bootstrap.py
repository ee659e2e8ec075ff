"""Confidence intervals of means and comparison of two runs, by a bootstrap over videos.

The sentences of one video share its difficulty, so the bootstrap resamples videos, not queries: the
pairs cluster bootstrap (Cameron, Gelbach & Miller 2008). Intervals are the 2.5 % and 97.5 %
percentiles. Two runs are compared on the same queries and the same resampled videos, so the
difficulty that both share cancels.
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
"""Minimum number of videos for an interval. Fewer videos give too few different resamples."""


@dataclass(frozen=True)
class Difference:
    """The difference between the means of two runs on the same queries.

    Attributes:
        ours: Mean of the run.
        other: Mean of the other run.
        mean: `ours` minus `other`.
        low: Lower end of the 95 % interval of `mean`; None for too few videos.
        high: Upper end of the 95 % interval of `mean`; None for too few videos.
        p: Two-sided p-value: the probability that resampling moves the mean as far if there is no
            difference. None for too few videos.
        better: Number of queries with a higher score than in the other run.
        worse: Number of queries with a lower score than in the other run.
    """

    current: float
    other: float
    mean: float
    low: float | None
    high: float | None
    p: float | None
    better: int
    worse: int


def too_few_videos(videos: Iterable[str]) -> bool:
    """Return True if there are too few videos for a meaningful interval.

    Args:
        videos: The video of each query.

    Returns:
        True for fewer than `MIN_VIDEOS` different videos.
    """
    return len(set(videos)) < MIN_VIDEOS


def confidence_intervals(
    scores: Sequence[Score], videos: Mapping[str, str], seed: int = 0
) -> dict[str, float]:
    """Return the 95 % interval of every mean.

    Args:
        scores: Scores of queries.
        videos: The video of each query id.
        seed: Seed of the resampling.

    Returns:
        `m_vIoU_low`, `m_vIoU_high`, …. Means over zero queries are left out. The result is empty
        for fewer than `MIN_VIDEOS` videos.
    """
    query_videos = [videos[score.id] for score in scores]

    if too_few_videos(query_videos):
        return {}

    table = stack_scores(scores)  # [queries, metrics]
    resampled = bootstrap_means(table, query_videos, seed)  # [resamples, metrics]

    intervals: dict[str, float] = {}
    for name, column, means in zip(MEAN_METRICS, table.T, resampled.T, strict=True):
        if np.isnan(column).all():
            continue

        low, high = np.nanpercentile(means, PERCENTILES).tolist()
        intervals[f"{name}_low"] = low
        intervals[f"{name}_high"] = high

    return intervals


def compare_paired(
    current: Sequence[Score], other: Sequence[Score], videos: Mapping[str, str], seed: int = 0
) -> dict[str, Difference]:
    """Compare two runs on the same queries.

    Args:
        current: Scores of the run.
        other: Scores of the other run, in any order.
        videos: The video of each query id.
        seed: Seed of the resampling.

    Returns:
        The difference of each mean. Means over zero queries are left out.

    Raises:
        InputError: The runs score different queries.
    """
    other_by_id = {score.id: score for score in other}
    unshared = other_by_id.keys() ^ {score.id for score in current}

    if unshared:
        raise InputError(
            f"the two runs do not score the same queries: {len(unshared)} are in one only, "
            f"for example {min(unshared)!r}"
        )

    query_videos = [videos[score.id] for score in current]
    has_interval = not too_few_videos(query_videos)

    # Resample the differences of the queries, so that both runs share the resampled videos.
    current_table = stack_scores(current)  # [queries, metrics]
    other_table = stack_scores([other_by_id[score.id] for score in current])
    resampled = bootstrap_means(current_table - other_table, query_videos, seed)

    differences: dict[str, Difference] = {}
    columns = zip(MEAN_METRICS, current_table.T, other_table.T, resampled.T, strict=True)

    for name, current_scores, other_scores, means in columns:
        has_scores = ~np.isnan(current_scores - other_scores)
        if has_scores.any():
            differences[name] = _build_difference(
                current_scores, other_scores, has_scores, means, has_interval
            )

    return differences


def _build_difference(
    current_scores: np.ndarray,
    other_scores: np.ndarray,
    has_scores: np.ndarray,
    means: np.ndarray,
    has_interval: bool,
) -> Difference:
    """Return the difference of one mean.

    Args:
        current_scores: [queries], NaN without a score.
        other_scores: [queries], NaN without a score.
        has_scores: [queries], True if both runs have a score.
        means: [resamples], resampled means of the differences, NaN without a score.
        has_interval: False for too few videos.
    """
    mean = float((current_scores - other_scores)[has_scores].mean())
    low = None
    high = None
    p = None

    if has_interval:
        valid_means = means[~np.isnan(means)]
        low, high = np.percentile(valid_means, PERCENTILES).tolist()

        # Resampled means vary around the observed mean as they would around zero without a
        # difference. Adding one to both counts keeps p above zero.
        is_as_far = np.abs(valid_means - mean) >= abs(mean) - 1e-12
        p = float((is_as_far.sum() + 1) / (len(valid_means) + 1))

    return Difference(
        current=float(current_scores[has_scores].mean()),
        other=float(other_scores[has_scores].mean()),
        mean=mean,
        low=low,
        high=high,
        p=p,
        better=int((current_scores > other_scores).sum()),
        worse=int((current_scores < other_scores).sum()),
    )


def stack_scores(scores: Sequence[Score]) -> np.ndarray:
    """Stack the scores of queries in a table.

    Args:
        scores: Scores of queries.

    Returns:
        [queries, metrics], in the order of `MEAN_METRICS`; NaN without a score.
    """
    rows = [(score.vIoU, score.tIoU, score.sIoU) for score in scores]
    values = np.array(rows, np.float64).reshape(-1, 3)
    v_iou = values[:, 0]

    columns = [values]
    for threshold in THRESHOLDS:
        columns.append(np.where(np.isnan(v_iou), np.nan, v_iou > threshold))

    return np.column_stack(columns)


def bootstrap_means(table: np.ndarray, videos: Sequence[str], seed: int) -> np.ndarray:
    """Return the column means of a table over resampled videos.

    Args:
        table: [queries, metrics], NaN without a score.
        videos: The video of each query.
        seed: Seed of the resampling.

    Returns:
        [NUM_RESAMPLES, metrics]; NaN if a resample has no score.
    """
    _, video_indices = np.unique(np.array(videos, dtype=np.str_), return_inverse=True)
    num_videos = int(video_indices.max()) + 1 if len(video_indices) else 0

    # Sums and counts of each video; a resample's mean is then a ratio of two weighted sums.
    has_score = ~np.isnan(table)  # [queries, metrics]
    sums_and_counts = np.hstack([np.where(has_score, table, 0), has_score])
    totals = np.zeros((num_videos, 2 * table.shape[1]))
    np.add.at(totals, video_indices, sums_and_counts)

    # Draw videos with replacement.
    generator = np.random.default_rng(seed)
    resampled = np.empty((NUM_RESAMPLES, totals.shape[1]))

    for resample in range(NUM_RESAMPLES):
        repetitions = np.zeros(0, np.int64)  # [videos]; empty without queries
        if num_videos:
            drawn_videos = generator.integers(num_videos, size=num_videos)
            repetitions = np.bincount(drawn_videos, minlength=num_videos)

        resampled[resample] = repetitions @ totals

    sums, counts = np.hsplit(resampled, 2)
    means = np.full_like(sums, np.nan)
    return np.divide(sums, counts, out=means, where=counts > 0)

"""Durations of the segments of a training split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.records import Query


def summarize_segment_seconds(queries: Sequence[Query]) -> dict[str, float]:
    """Return the median and the longest segment duration, for a run's provenance.

    Args:
        queries: The queries of the training split.

    Returns:
        `median` and `longest`, in seconds; 0 without queries.
    """
    seconds = []
    for query in queries:
        begin, end = query.segment
        seconds.append((end - begin) / query.fps)

    return summarize_durations(seconds)


def summarize_durations(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the longest duration.

    Args:
        seconds: Durations, in seconds.

    Returns:
        `median` and `longest`, in seconds; 0 without durations.
    """
    durations = np.array(seconds or [0.0])
    return {
        "median": round(float(np.median(durations)), 3),
        "longest": round(float(durations.max()), 3),
    }

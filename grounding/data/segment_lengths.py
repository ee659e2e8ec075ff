"""Durations of the segments of a training split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.records import Query


def summarize_segment_seconds(queries: Sequence[Query]) -> dict[str, float]:
    """The median and the longest segment of a training split, for a run's provenance."""
    return _summarize_durations(
        [(query.segment[1] - query.segment[0]) / query.fps for query in queries]
    )


def _summarize_durations(seconds: Sequence[float]) -> dict[str, float]:
    own = np.array(seconds or [0.0])
    return {"median": round(float(np.median(own)), 3), "longest": round(float(own.max()), 3)}

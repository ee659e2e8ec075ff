"""How long the segments were that a run was trained on: the length at which it can be asked about a long video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.records import Prediction, Query, read_jsonl

MEDIANS = 2.0
"""The window is as long as the longest segment, but no longer than this many times the median: one outlier sets no rule."""


def segment_seconds(queries: Sequence[Query]) -> dict[str, float]:
    """The median and the longest segment of a training split, for a run's provenance."""
    return _summary([(query.segment[1] - query.segment[0]) / query.fps for query in queries])


def window_seconds(run: Path, about: Mapping[str, Any], grid_fps: float) -> float:
    """The length of a run's windows, from its provenance.

    Runs made before that held it: from the segments they were judged on, whose predictions have a box for each frame of the grid.
    An InputError where there are none.
    """
    lengths = about.get("segment_seconds")
    if lengths is None:
        files = sorted((run / "predictions").glob("*.jsonl"))
        lengths = _summary([len(answer.boxes) / grid_fps for file in files for answer in read_jsonl(file, Prediction)])
    if not lengths["longest"]:
        raise InputError(
            f"{run} does not say how long the segments were that it was trained on: say how long a window of a video is to be, "
            "with --window SECONDS, or train it again"
        )
    return min(float(lengths["longest"]), MEDIANS * float(lengths["median"]))


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    own = np.array(seconds or [0.0])
    return {"median": round(float(np.median(own)), 3), "longest": round(float(own.max()), 3)}

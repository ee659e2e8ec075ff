"""Window length for long videos, derived from the segments a run was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grounding.data.segment_lengths import summarize_durations
from pipeline.errors import InputError
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Prediction

MAX_MEDIAN_RATIO = 2.0
"""Largest window length relative to the median segment, so that one outlier sets no rule."""


def get_window_seconds(run: Path, provenance: Mapping[str, Any], grid_fps: float) -> float:
    """Return the window length of a run.

    Runs of earlier versions do not record segment lengths. Their lengths are derived from the
    validated segments: each prediction has one box per frame of the sampling grid.

    Args:
        run: Run directory.
        provenance: The run's provenance.
        grid_fps: Sampled frames per second.

    Returns:
        The longest training segment in seconds, at most `MAX_MEDIAN_RATIO` times the median.

    Raises:
        InputError: The run records no segments and has no predictions.
    """
    lengths = provenance.get("segment_seconds")
    if lengths is None:
        seconds = []
        for path in sorted((run / "predictions").glob("*.jsonl")):
            for prediction in read_jsonl(path, Prediction):
                seconds.append(len(prediction.boxes) / grid_fps)
        lengths = summarize_durations(seconds)

    if not lengths["longest"]:
        raise InputError(
            f"{run} does not record the lengths of its training segments:"
            " set the length of a window with --window SECONDS, or train the run again"
        )
    return min(float(lengths["longest"]), MAX_MEDIAN_RATIO * float(lengths["median"]))

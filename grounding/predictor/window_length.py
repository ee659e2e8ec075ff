"""How long the segments were that a run was trained on: the length at which it can be asked about a long video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grounding.data.segment_lengths import _summarize_durations
from pipeline.errors import InputError
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Prediction

MAX_MEDIAN_RATIO = 2.0
"""The window is as long as the longest segment, but no longer than this many times the median: one outlier sets no rule."""


def get_window_seconds(run: Path, provenance: Mapping[str, Any], grid_fps: float) -> float:
    """The length of a run's windows, from its provenance.

    Runs made before that held it: from the segments they were judged on, whose predictions have a box for each frame of the grid.
    An InputError where there are none.
    """
    lengths = provenance.get("segment_seconds")
    if lengths is None:
        files = sorted((run / "predictions").glob("*.jsonl"))
        lengths = _summarize_durations(
            [
                len(answer.boxes) / grid_fps
                for file in files
                for answer in read_jsonl(file, Prediction)
            ]
        )
    if not lengths["longest"]:
        raise InputError(
            f"{run} does not say how long the segments were that it was trained on: say how long a window of a video is to be, "
            "with --window SECONDS, or train it again"
        )
    return min(float(lengths["longest"]), MAX_MEDIAN_RATIO * float(lengths["median"]))

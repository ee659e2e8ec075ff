"""A report's figures for papers.

Files are `figures/tubes-<n>`, `figures/attention-<n>` and, for the run that is compared,
`figures/attention-<n>-compared`; each as PNG and PDF.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grounding.evaluation.ground_truth import GroundTruth
from grounding.evaluation.results import RunResults
from grounding.report.gallery import select_gallery
from grounding.visualization.paper_figures import (
    RunPrediction,
    plot_attention,
    plot_tubes,
    plot_window,
    sample_frames,
    save_figure,
)
from grounding.visualization.video_source import VideoOpener
from pipeline.callbacks import ProgressCallback
from pipeline.errors import StvgError
from pipeline.records import Query, Span

if TYPE_CHECKING:
    from grounding.visualization.attention_maps import AttentionRecorder

FIGURES_DIR = "figures"
FILE_SUFFIXES = ("", "-compared")
"""Suffixes of attention figures: of the run, and of the run that is compared."""
MAX_QUERIES = 6
"""Number of queries with figures.

One of each kind: near vIoU 0.8, 0.5 and 0.3, the best, a failure and, with two runs, the largest
differences.
"""


def write_figures(
    out: Path,
    ground_truth: GroundTruth,
    runs: Sequence[RunResults],
    open_video: VideoOpener,
    attention_recorders: Sequence[AttentionRecorder] = (),
    progress: ProgressCallback = lambda done, total: None,
) -> list[str]:
    """Draw figures of a few typical queries of the first run into `out/figures`.

    Args:
        out: The report's folder.
        ground_truth: Ground truth of the split.
        runs: The run and, optionally, a run that is compared.
        open_video: Opens the video at a query's path.
        attention_recorders: Models of `runs`, in the same order; empty: no attention figures.
        progress: Called with the number of queries done and in all.

    Returns:
        Messages on figures that could not be drawn, `query id: reason`.
    """
    # Queries of the gallery's kinds, one or a few of each.
    query_by_id = {query.id: query for query in ground_truth.queries}
    other = runs[1] if len(runs) > 1 else None
    queries = []
    for group in select_gallery(runs[0], other, MAX_QUERIES):
        queries += [query_by_id[query_id] for query_id in group.query_ids]

    problems = []
    for number, query in enumerate(queries, start=1):
        progress(number - 1, len(queries))
        problems += _write_query_figures(
            out / FIGURES_DIR, number, query, ground_truth, runs, open_video, attention_recorders
        )
    progress(len(queries), len(queries))

    return problems


def _write_query_figures(
    folder: Path,
    number: int,
    query: Query,
    ground_truth: GroundTruth,
    runs: Sequence[RunResults],
    open_video: VideoOpener,
    attention_recorders: Sequence[AttentionRecorder],
) -> list[str]:
    """Draw the figures of one query; return messages on those that could not be drawn."""
    run_predictions = []
    for run in runs:
        prediction = run.predictions.get(query.id)
        run_predictions.append(RunPrediction(run.name, prediction, run.scores[query.id].vIoU))

    window = plot_window(query, run_predictions)
    try:
        images = _read_window_frames(query, open_video, window)
    except StvgError as error:
        return [f"{query.id}: {error}"]

    tracks = ground_truth.tracks
    tubes_figure = plot_tubes(query, tracks, run_predictions, window, images)
    save_figure(tubes_figure, folder / f"tubes-{number}")

    # One figure of attention for each run with a model.
    problems = []
    for run, run_prediction, recorder, suffix in zip(
        runs, run_predictions, attention_recorders, FILE_SUFFIXES, strict=False
    ):
        if not any(recorded.id == query.id for recorded in recorder.dataset.queries):
            continue  # the store lacks this query's features

        attention = recorder.record(query)
        if not attention.maps:
            problems.append(f"{query.id}: the model of {run.path} has no attention map to draw")
            continue

        attention_figure = plot_attention(
            query,
            tracks,
            run_prediction,
            window,
            images,
            attention.frame_indices,
            attention.maps[0],
        )
        save_figure(attention_figure, folder / f"attention-{number}{suffix}")

    return problems


def _read_window_frames(
    query: Query, open_video: VideoOpener, window: Span
) -> dict[int, np.ndarray]:
    """Read the frames of a figure, RGB uint8 `[H, W, 3]` by frame index."""
    frame_indices = sorted(set(sample_frames(window)))
    frames = open_video(query.path).read_frames(frame_indices)

    return dict(zip(frame_indices, frames, strict=True))

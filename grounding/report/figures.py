"""Which figures a report adds for papers, and where they go: `figures/tubes-<n>`, `figures/attention-<n>` and, of the run that is compared,
`figures/attention-<n>-compared`, each as PNG and PDF.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from pipeline.errors import StvgError
from pipeline.records import Query, Span

if TYPE_CHECKING:
    from grounding.visualization.attention_maps import AttentionRecorder

FIGURES_DIR = "figures"
FILE_SUFFIXES = ("", "-compared")
MAX_QUERIES = 6
"""A query of each kind: near vIoU .8, .5 and .3, a failure and, where two runs are compared, where they differ most."""


def write_figures(
    out: Path,
    ground_truth: GroundTruth,
    runs: Sequence[RunResults],
    open_video: VideoOpener,
    attention_recorders: Sequence[AttentionRecorder] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Draw a few telling queries of the first run into `out/figures`; returns what could not be drawn, and why.

    `runs`: the run and, to be drawn beside it, another; `witnesses`: their networks, in the same order, or none.
    """
    known = {query.id: query for query in ground_truth.queries}
    chosen = [
        known[name]
        for group in select_gallery(runs[0], runs[1] if len(runs) > 1 else None, MAX_QUERIES)
        for name in group.query_ids
    ]
    known_to = [{one.id for one in witness.dataset.queries} for witness in attention_recorders]
    troubles = []
    for number, query in enumerate(chosen, start=1):
        progress(number - 1, len(chosen))
        told = [
            RunPrediction(run.name, run.predictions.get(query.id), run.scores[query.id].vIoU)
            for run in runs
        ]
        window = plot_window(query, told)
        try:
            pictures = _read_window_frames(query, open_video, window)
        except StvgError as error:
            troubles.append(f"{query.id}: {error}")
            continue
        save_figure(
            plot_tubes(query, ground_truth.tracks, told, window, pictures),
            out / FIGURES_DIR / f"tubes-{number}",
        )
        for run, said, witness, seen, ending in zip(
            runs, told, attention_recorders, known_to, FILE_SUFFIXES, strict=False
        ):
            if query.id not in seen:
                continue
            evidence = witness.record(query)
            if not evidence.maps:
                troubles.append(
                    f"{query.id}: the network of {run.path} looks at frames with no map that could be drawn"
                )
                continue
            figure = plot_attention(
                query,
                ground_truth.tracks,
                said,
                window,
                pictures,
                evidence.frame_indices,
                evidence.maps[0],
            )
            save_figure(figure, out / FIGURES_DIR / f"attention-{number}{ending}")
    progress(len(chosen), len(chosen))
    return troubles


def _read_window_frames(
    query: Query, open_video: VideoOpener, window: Span
) -> dict[int, np.ndarray]:
    numbers = sorted(set(sample_frames(window)))
    return dict(zip(numbers, open_video(query.path).read_frames(numbers), strict=True))

"""Which figures a report adds for papers, and where they go: `figures/tubes-<n>`, `figures/attention-<n>` and, of the run that is compared,
`figures/attention-<n>-compared`, each as PNG and PDF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grounding.evaluation.ground_truth import Exam
from grounding.evaluation.results import Judged
from grounding.report.gallery import gallery
from grounding.visualization.paper_figures import Told, attention_figure, frames_in, save_figure, tubes_figure, window_of
from grounding.visualization.video_source import FootageOf
from pipeline.errors import StvgError
from pipeline.records import Query, Span

if TYPE_CHECKING:
    from grounding.visualization.attention_maps import Witness

FOLDER = "figures"
ENDINGS = ("", "-compared")
MOST = 6
"""A query of each kind: near vIoU .8, .5 and .3, a failure and, where two runs are compared, where they differ most."""


def write_figures(
    out: Path,
    exam: Exam,
    runs: Sequence[Judged],
    footage: FootageOf,
    witnesses: Sequence[Witness] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Draw a few telling queries of the first run into `out/figures`; returns what could not be drawn, and why.

    `runs`: the run and, to be drawn beside it, another; `witnesses`: their networks, in the same order, or none.
    """
    known = {query.id: query for query in exam.queries}
    chosen = [known[name] for group in gallery(runs[0], runs[1] if len(runs) > 1 else None, MOST) for name in group.ids]
    known_to = [{one.id for one in witness.features.queries} for witness in witnesses]
    troubles = []
    for number, query in enumerate(chosen, start=1):
        progress(number - 1, len(chosen))
        told = [Told(run.name, run.predictions.get(query.id), run.scores[query.id].vIoU) for run in runs]
        window = window_of(query, told)
        try:
            pictures = _pictures(query, footage, window)
        except StvgError as error:
            troubles.append(f"{query.id}: {error}")
            continue
        save_figure(tubes_figure(query, exam.tracks, told, window, pictures), out / FOLDER / f"tubes-{number}")
        for run, said, witness, seen, ending in zip(runs, told, witnesses, known_to, ENDINGS, strict=False):
            if query.id not in seen:
                continue
            evidence = witness.asked(query)
            if not evidence.attention:
                troubles.append(f"{query.id}: the network of {run.path} looks at frames with no map that could be drawn")
                continue
            figure = attention_figure(query, exam.tracks, said, window, pictures, evidence.frames, evidence.attention[0])
            save_figure(figure, out / FOLDER / f"attention-{number}{ending}")
    progress(len(chosen), len(chosen))
    return troubles


def _pictures(query: Query, footage: FootageOf, window: Span) -> dict[int, np.ndarray]:
    numbers = sorted(set(frames_in(window)))
    return dict(zip(numbers, footage(query.path).pictures(numbers), strict=True))

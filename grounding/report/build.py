"""The report: a folder whose `index.html` opens offline, with the summary, the gallery, and every query's video with its tubes.

`index.html` is one jinja2 template with autoescape; what grows with the queries lies beside it: `data.js`, `queries/`, `videos/`,
`strips/`. Their names are numbers and digests, never ids: whatever sentences, ids and paths contain is shown as text.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from grounding.evaluation.ground_truth import Exam
from grounding.evaluation.results import Judged
from grounding.report.gallery import Group, gallery
from grounding.report.page import render
from grounding.report.page_data import FOLDER as QUERIES
from grounding.report.page_data import details, listed, write_list, write_script
from grounding.report.videos import show_videos
from grounding.visualization.frame_strips import draw_strip, save_strip, strip_frames
from grounding.visualization.video_source import FootageOf
from pipeline.config import StrictModel
from pipeline.errors import StvgError
from pipeline.io.atomic import atomic_write
from pipeline.records import Query

if TYPE_CHECKING:
    from grounding.visualization.attention_maps import Witness

TEMPLATES = Path(__file__).with_name("templates")
STRIPS = "strips"
Advance = Callable[[int, int], None]
Progress = Callable[[str, str], AbstractContextManager[Advance]]
"""`(what is done, its unit)` → a context that gives `advance(done, total)`."""


class ReportConfig(StrictModel):
    """Section `report`: which split is shown, and how much of it."""

    split: str = "test"
    strips: int = Field(24, ge=0)
    """Queries in the gallery."""
    videos: int | None = Field(None, ge=0)
    """At most so many videos; null: all that are asked about."""
    side: int = Field(480, ge=16)
    """Pixels: the longer side of the videos is at most so long."""
    maps: bool = True
    """What the network saw of every query; false: it is not asked."""
    device: str = "auto"
    """Where it is asked: auto, cpu or cuda."""


@dataclass
class Picture:
    """A query of the gallery: its place in the list, and its strip or why there is none."""

    query: Query
    number: int
    file: str | None = None
    frames: list[int] = field(default_factory=list)
    trouble: str | None = None


def _quiet(what: str, unit: str) -> AbstractContextManager[Advance]:
    return nullcontext(lambda done, total: None)


def write_report(
    out: Path,
    exam: Exam,
    runs: Sequence[Judged],
    footage: FootageOf,
    config: ReportConfig,
    witnesses: Sequence[Witness] = (),
    sweep: Path | None = None,
    progress: Progress = _quiet,
) -> Path:
    """Write the folder `out`; returns its `index.html`.

    `runs`: the run that is shown and, to be compared with it, another; `witnesses`: their networks, in the same order, or none;
    `sweep`: the folder of a finished sweep, which is shown too.
    """
    value = runs[0].values[0]
    ranked = sorted((query for query in exam.queries if query.id in runs[0].scores), key=lambda query: -value.get(query.id, -1.0))
    groups = gallery(runs[0], runs[1] if len(runs) > 1 else None, config.strips)
    pictures = {query.id: Picture(query, number) for number, query in enumerate(ranked)}
    ablations = None
    if sweep is not None:
        from grounding.report.sweep_section import take_over  # imports torch

        ablations = take_over(sweep, out)
    _write_videos(out, ranked, groups, runs, footage, config, progress)
    _write_queries(out, ranked, exam, runs, witnesses, progress)
    _write_strips(out, [pictures[name] for group in groups for name in group.ids], exam, runs, footage, progress)
    for file in TEMPLATES.glob("*.*s"):
        shutil.copyfile(file, out / file.name)
    shown = [(group, [pictures[name] for name in group.ids]) for group in groups]
    with atomic_write(out / "index.html") as aside:
        aside.write_text(render(exam, runs, shown, ablations, config.split), encoding="utf-8")
    return out / "index.html"


def _write_videos(
    out: Path,
    ranked: Sequence[Query],
    groups: Sequence[Group],
    runs: Sequence[Judged],
    footage: FootageOf,
    config: ReportConfig,
    progress: Progress,
) -> None:
    """The videos, those of the gallery first, and the list of queries that names them."""
    first = {name for group in groups for name in group.ids}
    with progress("making videos", "videos") as advance:
        in_order = sorted(ranked, key=lambda query: query.id not in first)
        shown = show_videos(in_order, footage, out, config.side, config.videos, advance)
    places = {path: place for place, path in enumerate(shown)}
    rows = [listed(query, runs, places[query.path]) for query in ranked]
    write_list(out, [run.name for run in runs], rows, [video.as_json() for video in shown.values()])


def _write_queries(
    out: Path, ranked: Sequence[Query], exam: Exam, runs: Sequence[Judged], witnesses: Sequence[Witness], progress: Progress
) -> None:
    """Every query's details; the networks see the queries of one video together, so that its features are read once."""
    shutil.rmtree(out / QUERIES, ignore_errors=True)
    known = [{query.id for query in witness.features.queries} for witness in witnesses]
    with progress("looking", "queries") as advance:
        for done, (number, query) in enumerate(sorted(enumerate(ranked), key=lambda one: one[1].video)):
            advance(done, len(ranked))
            seen = [witness.asked(query) if query.id in own else None for witness, own in zip(witnesses, known, strict=True)]
            write_script(out / QUERIES / f"{number}.js", "take", number, details(query, exam.tracks, runs, seen))
        advance(len(ranked), len(ranked))


def _write_strips(
    out: Path, pictures: Sequence[Picture], exam: Exam, runs: Sequence[Judged], footage: FootageOf, progress: Progress
) -> None:
    """The gallery's strips; a video that cannot be read leaves a note in its place."""
    shutil.rmtree(out / STRIPS, ignore_errors=True)
    with progress("drawing", "strips") as advance:
        for done, picture in enumerate(pictures):
            advance(done, len(pictures))
            answers = [run.predictions.get(picture.query.id) for run in runs]
            numbers = strip_frames(picture.query, answers)
            try:
                frames = footage(picture.query.path).pictures(numbers)
                strip = draw_strip(picture.query, exam.tracks, answers, numbers, frames)
            except StvgError as error:
                picture.trouble = str(error)
                continue
            picture.file, picture.frames = f"{STRIPS}/{done:03d}.jpg", numbers
            save_strip(strip, out / picture.file)
        advance(len(pictures), len(pictures))

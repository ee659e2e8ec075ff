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

from grounding.evaluation.ground_truth import GroundTruth
from grounding.evaluation.results import RunResults
from grounding.report.gallery import GalleryGroup, select_gallery
from grounding.report.page import render_page
from grounding.report.page_data import QUERIES_DIR as QUERIES
from grounding.report.page_data import query_details, query_row, write_query_list, write_script
from grounding.report.videos import encode_videos
from grounding.visualization.frame_strips import draw_strip, save_strip, select_strip_frames
from grounding.visualization.video_source import VideoOpener
from pipeline.config import StrictModel
from pipeline.errors import StvgError
from pipeline.io.atomic import atomic_write
from pipeline.records import Query

if TYPE_CHECKING:
    from grounding.visualization.attention_maps import AttentionRecorder

TEMPLATES_DIR = Path(__file__).with_name("templates")
STRIPS_DIR = "strips"
ProgressCallback = Callable[[int, int], None]
ProgressFactory = Callable[[str, str], AbstractContextManager[ProgressCallback]]
"""`(what is done, its unit)` → a context that gives `advance(done, total)`."""


class ReportConfig(StrictModel):
    """Section `report`: which split is shown, and how much of it."""

    split: str = "test"
    gallery_size: int = Field(24, ge=0)
    """Queries in the gallery."""
    videos: int | None = Field(None, ge=0)
    """At most so many videos; null: all that are asked about."""
    max_side: int = Field(480, ge=16)
    """Pixels: the longer side of the videos is at most so long."""
    attention_maps: bool = True
    """What the network saw of every query; false: it is not asked."""
    device: str = "auto"
    """Where it is asked: auto, cpu or cuda."""


@dataclass
class GalleryItem:
    """A query of the gallery: its place in the list, and its strip or why there is none."""

    query: Query
    index: int
    file: str | None = None
    frame_indices: list[int] = field(default_factory=list)
    error: str | None = None


def _ignore_progress(activity: str, unit: str) -> AbstractContextManager[ProgressCallback]:
    return nullcontext(lambda done, total: None)


def write_report(
    out: Path,
    ground_truth: GroundTruth,
    runs: Sequence[RunResults],
    open_video: VideoOpener,
    config: ReportConfig,
    attention_recorders: Sequence[AttentionRecorder] = (),
    sweep_dir: Path | None = None,
    progress: ProgressFactory = _ignore_progress,
) -> Path:
    """Write the folder `out`; returns its `index.html`.

    `runs`: the run that is shown and, to be compared with it, another; `witnesses`: their networks, in the same order, or none;
    `sweep`: the folder of a finished sweep, which is shown too.
    """
    value = runs[0].ranking_scores[0]
    ranked = sorted(
        (query for query in ground_truth.queries if query.id in runs[0].scores),
        key=lambda query: -value.get(query.id, -1.0),
    )
    groups = select_gallery(runs[0], runs[1] if len(runs) > 1 else None, config.gallery_size)
    pictures = {query.id: GalleryItem(query, number) for number, query in enumerate(ranked)}
    ablations = None
    if sweep_dir is not None:
        from grounding.report.sweep_section import copy_sweep_outputs  # imports torch

        ablations = copy_sweep_outputs(sweep_dir, out)
    _write_videos(out, ranked, groups, runs, open_video, config, progress)
    _write_queries(out, ranked, ground_truth, runs, attention_recorders, progress)
    _write_strips(
        out,
        [pictures[name] for group in groups for name in group.query_ids],
        ground_truth,
        runs,
        open_video,
        progress,
    )
    for file in TEMPLATES_DIR.glob("*.*s"):
        shutil.copyfile(file, out / file.name)
    shown = [(group, [pictures[name] for name in group.query_ids]) for group in groups]
    with atomic_write(out / "index.html") as aside:
        aside.write_text(
            render_page(ground_truth, runs, shown, ablations, config.split), encoding="utf-8"
        )
    return out / "index.html"


def _write_videos(
    out: Path,
    ranked_queries: Sequence[Query],
    groups: Sequence[GalleryGroup],
    runs: Sequence[RunResults],
    open_video: VideoOpener,
    config: ReportConfig,
    progress: ProgressFactory,
) -> None:
    """The videos, those of the gallery first, and the list of queries that names them."""
    first = {name for group in groups for name in group.query_ids}
    with progress("making videos", "videos") as advance:
        in_order = sorted(ranked_queries, key=lambda query: query.id not in first)
        shown = encode_videos(in_order, open_video, out, config.max_side, config.videos, advance)
    places = {path: place for place, path in enumerate(shown)}
    rows = [query_row(query, runs, places[query.path]) for query in ranked_queries]
    write_query_list(
        out, [run.name for run in runs], rows, [video.to_dict() for video in shown.values()]
    )


def _write_queries(
    out: Path,
    ranked_queries: Sequence[Query],
    ground_truth: GroundTruth,
    runs: Sequence[RunResults],
    attention_recorders: Sequence[AttentionRecorder],
    progress: ProgressFactory,
) -> None:
    """Every query's details; the networks see the queries of one video together, so that its features are read once."""
    shutil.rmtree(out / QUERIES, ignore_errors=True)
    known = [{query.id for query in witness.dataset.queries} for witness in attention_recorders]
    with progress("looking", "queries") as advance:
        for done, (number, query) in enumerate(
            sorted(enumerate(ranked_queries), key=lambda one: one[1].video)
        ):
            advance(done, len(ranked_queries))
            seen = [
                witness.record(query) if query.id in own else None
                for witness, own in zip(attention_recorders, known, strict=True)
            ]
            write_script(
                out / QUERIES / f"{number}.js",
                "take",
                number,
                query_details(query, ground_truth.tracks, runs, seen),
            )
        advance(len(ranked_queries), len(ranked_queries))


def _write_strips(
    out: Path,
    gallery_items: Sequence[GalleryItem],
    ground_truth: GroundTruth,
    runs: Sequence[RunResults],
    open_video: VideoOpener,
    progress: ProgressFactory,
) -> None:
    """The gallery's strips; a video that cannot be read leaves a note in its place."""
    shutil.rmtree(out / STRIPS_DIR, ignore_errors=True)
    with progress("drawing", "strips") as advance:
        for done, picture in enumerate(gallery_items):
            advance(done, len(gallery_items))
            answers = [run.predictions.get(picture.query.id) for run in runs]
            numbers = select_strip_frames(picture.query, answers)
            try:
                frames = open_video(picture.query.path).read_frames(numbers)
                strip = draw_strip(picture.query, ground_truth.tracks, answers, numbers, frames)
            except StvgError as error:
                picture.error = str(error)
                continue
            picture.file, picture.frame_indices = f"{STRIPS_DIR}/{done:03d}.jpg", numbers
            save_strip(strip, out / picture.file)
        advance(len(gallery_items), len(gallery_items))

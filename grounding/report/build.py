"""The report: a folder whose `index.html` opens offline.

It shows a summary, a gallery, and every query's video with its tubes. `index.html` comes from one
jinja2 template with autoescape. Everything that grows with the number of queries is in other files:
`data.js`, `queries/`, `videos/` and `strips/`. Their names are numbers and digests, never ids.
Content of sentences, ids and paths is always shown as text.
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
from grounding.report.page_data import (
    QUERIES_DIR,
    build_query_details,
    build_query_row,
    write_query_list,
    write_script,
)
from grounding.report.videos import encode_videos
from grounding.visualization.frame_strips import draw_strip, save_strip, select_strip_frames
from grounding.visualization.video_source import VideoOpener
from pipeline.callbacks import ProgressCallback
from pipeline.config import StrictModel
from pipeline.errors import StvgError
from pipeline.io.atomic import atomic_write
from pipeline.records import Query

if TYPE_CHECKING:
    from grounding.visualization.attention_maps import AttentionRecorder

TEMPLATES_DIR = Path(__file__).with_name("templates")
STRIPS_DIR = "strips"
ProgressFactory = Callable[[str, str], AbstractContextManager[ProgressCallback]]
"""Called as `make_progress(activity, unit)`; returns a context that yields a progress callback."""


class ReportConfig(StrictModel):
    """Section `report`: the split to show, and the amount of content."""

    split: str = "test"
    """Split to show."""
    gallery_size: int = Field(24, ge=0)
    """Number of queries in the gallery."""
    videos: int | None = Field(None, ge=0)
    """Maximum number of videos; null: the videos of all queries."""
    max_side: int = Field(480, ge=16)
    """Maximum longer side of the videos, in pixels."""
    attention_maps: bool = True
    """Record the model's attention for every query; false: no model is loaded."""
    device: str = "auto"
    """Device of the model: auto, cpu or cuda."""


@dataclass
class GalleryItem:
    """A query of the gallery.

    Attributes:
        query: The query.
        index: Index of the query in the list of queries.
        file: Path of its frame strip from the page; None without a strip.
        frame_indices: Frames of the strip.
        error: Reason for the strip's absence.
    """

    query: Query
    index: int
    file: str | None = None
    frame_indices: list[int] = field(default_factory=list)
    error: str | None = None


def _ignore_progress(activity: str, unit: str) -> AbstractContextManager[ProgressCallback]:
    """Return a progress callback that does nothing."""
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
    """Write the report.

    Args:
        out: The folder to write.
        ground_truth: Ground truth of the split.
        runs: The run and, optionally, a run that is compared.
        open_video: Opens the video at a query's path.
        config: Section `report`.
        attention_recorders: Models of `runs`, in the same order; empty: no attention maps.
        sweep_dir: Folder of a finished sweep to show, if any.
        progress: Makes the progress display of each step.

    Returns:
        Path of `index.html`.

    Raises:
        InputError: If the sweep has not finished or its table is damaged.
    """
    ranked_queries = _rank_queries(ground_truth, runs[0])
    other = runs[1] if len(runs) > 1 else None
    groups = select_gallery(runs[0], other, config.gallery_size)
    gallery = _build_gallery(groups, ranked_queries)

    # The sweep first: it fails fast.
    ablations = None
    if sweep_dir is not None:
        from grounding.report.sweep_section import copy_sweep_outputs  # imports torch

        ablations = copy_sweep_outputs(sweep_dir, out)

    # Content that grows with the number of queries.
    _write_videos(out, ranked_queries, groups, runs, open_video, config, progress)
    _write_queries(out, ranked_queries, ground_truth, runs, attention_recorders, progress)
    gallery_items = [item for _, items in gallery for item in items]
    _write_strips(out, gallery_items, ground_truth, runs, open_video, progress)

    # Scripts and style sheets.
    for path in TEMPLATES_DIR.glob("*.*s"):
        shutil.copyfile(path, out / path.name)

    # The page last: it shows the gallery's strips.
    page = render_page(ground_truth, runs, gallery, ablations, config.split)
    index_path = out / "index.html"
    with atomic_write(index_path) as temporary_path:
        temporary_path.write_text(page, encoding="utf-8")

    return index_path


def _rank_queries(ground_truth: GroundTruth, run: RunResults) -> list[Query]:
    """Return the scored queries, the best first."""
    scores, _ = run.ranking_scores
    queries = [query for query in ground_truth.queries if query.id in run.scores]

    return sorted(queries, key=lambda query: -scores.get(query.id, -1.0))


def _build_gallery(
    groups: Sequence[GalleryGroup], ranked_queries: Sequence[Query]
) -> list[tuple[GalleryGroup, list[GalleryItem]]]:
    """Return each group of the gallery with its items, still without strips."""
    item_by_id = {}
    for index, query in enumerate(ranked_queries):
        item_by_id[query.id] = GalleryItem(query, index)

    gallery = []
    for group in groups:
        items = [item_by_id[query_id] for query_id in group.query_ids]
        gallery.append((group, items))

    return gallery


def _write_videos(
    out: Path,
    ranked_queries: Sequence[Query],
    groups: Sequence[GalleryGroup],
    runs: Sequence[RunResults],
    open_video: VideoOpener,
    config: ReportConfig,
    progress: ProgressFactory,
) -> None:
    """Write the videos, the gallery's first, and the list of queries that refers to them."""
    gallery_ids = {query_id for group in groups for query_id in group.query_ids}
    gallery_first = sorted(ranked_queries, key=lambda query: query.id not in gallery_ids)

    with progress("encoding videos", "videos") as report_progress:
        videos = encode_videos(
            gallery_first, open_video, out, config.max_side, config.videos, report_progress
        )

    video_index_by_path = {path: index for index, path in enumerate(videos)}
    rows = [
        build_query_row(query, runs, video_index_by_path[query.path]) for query in ranked_queries
    ]
    video_records = [video.to_dict() for video in videos.values()]
    write_query_list(out, [run.name for run in runs], rows, video_records)


def _write_queries(
    out: Path,
    ranked_queries: Sequence[Query],
    ground_truth: GroundTruth,
    runs: Sequence[RunResults],
    attention_recorders: Sequence[AttentionRecorder],
    progress: ProgressFactory,
) -> None:
    """Write every query's details, in place of an earlier report's."""
    shutil.rmtree(out / QUERIES_DIR, ignore_errors=True)

    # Ids of the queries that each store has features of.
    recorded_ids = []
    for recorder in attention_recorders:
        recorded_ids.append({query.id for query in recorder.dataset.queries})

    # Queries of one video follow each other, so that its features are read once.
    by_video = sorted(enumerate(ranked_queries), key=lambda indexed: indexed[1].video)

    total = len(ranked_queries)
    with progress("recording attention", "queries") as report_progress:
        for done, (index, query) in enumerate(by_video):
            report_progress(done, total)

            attentions = []
            for recorder, query_ids in zip(attention_recorders, recorded_ids, strict=True):
                has_features = query.id in query_ids
                attentions.append(recorder.record(query) if has_features else None)

            details = build_query_details(query, ground_truth.tracks, runs, attentions)
            write_script(out / QUERIES_DIR / f"{index}.js", "take", index, details)

        report_progress(total, total)


def _write_strips(
    out: Path,
    gallery_items: Sequence[GalleryItem],
    ground_truth: GroundTruth,
    runs: Sequence[RunResults],
    open_video: VideoOpener,
    progress: ProgressFactory,
) -> None:
    """Write the gallery's strips; an item whose video cannot be read gets an error instead."""
    shutil.rmtree(out / STRIPS_DIR, ignore_errors=True)

    total = len(gallery_items)
    with progress("drawing", "strips") as report_progress:
        for done, item in enumerate(gallery_items):
            report_progress(done, total)

            query = item.query
            predictions = [run.predictions.get(query.id) for run in runs]
            frame_indices = select_strip_frames(query, predictions)
            try:
                frames = open_video(query.path).read_frames(frame_indices)
                strip = draw_strip(query, ground_truth.tracks, predictions, frame_indices, frames)
            except StvgError as error:
                item.error = str(error)
                continue

            item.file = f"{STRIPS_DIR}/{done:03d}.jpg"
            item.frame_indices = frame_indices
            save_strip(strip, out / item.file)

        report_progress(total, total)

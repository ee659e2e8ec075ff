"""The report: a folder whose `index.html` opens offline: headline metrics, groups, curves, pictures, every query.

The page is one jinja2 template with autoescape: whatever sentences, ids and paths contain is shown as text. The
pictures lie beside it in `strips/` under numbers, never under ids.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from grounding.metrics import MEANS, Score, by_id, summarise, summarise_by
from grounding.report_curves import HEIGHT, LEFT, RIGHT, TOP, WIDTH, is_main, read_curves
from grounding.report_strips import FramesOf, choose, draw_strip, save_strip, strip_frames
from pipeline.config import Config
from pipeline.errors import StvgError
from pipeline.records import Prediction, Query, Span, Tracks, replacing

SYSTEMS = (("", "this run"), ("baseline_", "constant"), ("random_", "random"))
BINS = 20


class ReportConfig(Config):
    """Section `report`: which split is shown and how many queries get a picture strip."""

    split: str = "test"
    strips: int = 36


@dataclass(frozen=True)
class Bar:
    """A span on the bar below a strip, in percent of the segment: where it begins and how wide it is."""

    left: float
    width: float


@dataclass
class Row:
    """One query as the page shows it: its scores, spans, and picture if it has one. `missing`: no prediction."""

    query: Query
    score: Score
    prediction: Prediction | None
    anchor: str
    picture: str | None = None
    trouble: str | None = None
    numbers: list[int] = field(default_factory=list)

    @property
    def missing(self) -> bool:
        return self.prediction is None

    @property
    def true_bar(self) -> Bar | None:
        return bar(self.query.truth.span, self.query.segment) if self.query.truth else None

    @property
    def predicted_bar(self) -> Bar | None:
        return bar(self.prediction.span, self.query.segment) if self.prediction else None

    @property
    def marks(self) -> list[float]:
        """Where the pictured frames lie, in percent of the segment."""
        return [bar((number, number), self.query.segment).left for number in self.numbers]


def bar(span: Span, segment: Span) -> Bar:
    """A span `[begin, end)` in percent of its segment, cut to it."""
    begin, end = segment
    low, high = (min(max(edge, begin), end) for edge in span)
    return Bar(left=round(100 * (low - begin) / (end - begin), 2), width=round(100 * max(0, high - low) / (end - begin), 2))


def write_report(
    run: Path,
    out: Path,
    queries: Sequence[Query],
    tracks: Tracks,
    predictions: Sequence[Prediction],
    scores: Sequence[Score],
    metrics: Mapping[str, Any],
    strips: FramesOf,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    strip_count: int = 36,
    sweep: Path | None = None,
) -> Path:
    """Write `out/index.html` and `out/strips/*.jpg`; returns the page.

    `queries` are those of the judged split; `metrics` is the run's flat `metrics.json` (keys as `m_vIoU`, with
    `baseline_` or `random_` before them for the baselines); `strips` gives the frames of a query's path; `sweep` is the
    folder of a finished sweep, whose pictures are shown too.
    """
    rows = make_rows(queries, predictions, scores)
    ablations = None
    if sweep is not None:
        from grounding.report_sweep import take_over  # imports torch

        ablations = take_over(sweep, out)
    shutil.rmtree(out / "strips", ignore_errors=True)
    chosen = choose(scores, by_id(predictions), strip_count)
    rows_by_id = {row.query.id: row for row in rows}
    pictured = [rows_by_id[name] for name in chosen]
    for done, row in enumerate(pictured):
        progress(done, len(pictured))
        _picture(row, tracks, strips, out, f"{done:03d}.jpg")
    progress(len(pictured), len(pictured))
    page = _environment().get_template("report.html").render(**_context(run, rows, pictured, queries, scores, metrics), ablations=ablations)
    with replacing(out / "index.html") as aside:
        aside.write_text(page, encoding="utf-8")
    return out / "index.html"


def make_rows(queries: Sequence[Query], predictions: Sequence[Prediction], scores: Sequence[Score]) -> list[Row]:
    """One row per scored query, the best vIoU first; where only time is judged, tIoU decides after them."""
    known = {query.id: query for query in queries}
    predicted = by_id(predictions)
    ranked = sorted(scores, key=lambda one: (one.vIoU is None, -(one.vIoU or 0.0), -one.tIoU))
    return [Row(known[one.id], one, predicted.get(one.id), f"query-{number}") for number, one in enumerate(ranked)]


def _picture(row: Row, tracks: Tracks, strips: FramesOf, out: Path, name: str) -> None:
    """Draw one strip; a video that cannot be read leaves a note in its place."""
    numbers = strip_frames(row.query, row.prediction)
    try:
        frames = strips(row.query.path, numbers)
    except StvgError as error:
        row.trouble = str(error)
        return
    save_strip(draw_strip(row.query, tracks, row.prediction, numbers, frames), out / "strips" / name)
    row.picture, row.numbers = f"strips/{name}", numbers


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("grounding"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}"
    return environment


def _context(
    run: Path, rows: Sequence[Row], pictured: Sequence[Row], queries: Sequence[Query], scores: Sequence[Score], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    curves = read_curves(run / "curves" / "plots" / "metrics")
    counts = summarise(scores)
    return {
        "title": run.resolve().name,
        "split": ", ".join(sorted({query.split for query in queries})) or "no",
        "videos": len({query.video for query in queries}),
        "columns": MEANS,
        "systems": systems(metrics, scores),
        "counts": {"queries": counts["queries"], "boxed": counts["boxed_queries"], "missing": sum(row.missing for row in rows)},
        "groups": [("form", summarise_by(scores, queries, "form")), ("tag", summarise_by(scores, queries, "tag"))],
        "histogram": histogram(scores),
        "curves": [curve for curve in curves if is_main(curve)],
        "more_curves": [curve for curve in curves if not is_main(curve)],
        "plot": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP},
        "pictured": pictured,
        "pictured_ids": {row.query.id for row in pictured},
        "rows": rows,
        "files": [
            (name, (run / name).read_text(encoding="utf-8")) for name in ("config.yaml", "provenance.json") if (run / name).is_file()
        ],
    }


def systems(metrics: Mapping[str, Any], scores: Sequence[Score]) -> list[tuple[str, dict[str, float | None]]]:
    """The headline table: this run (its scores where `metrics` is silent), then every baseline that `metrics` has."""
    table = []
    for prefix, name in SYSTEMS:
        known = summarise(scores) if not prefix else {}
        values = {column: metrics.get(prefix + column, known.get(column)) for column in MEANS}
        if not prefix or any(value is not None for value in values.values()):
            table.append((name, values))
    return table


def histogram(scores: Sequence[Score]) -> list[tuple[str, int, float]]:
    """Queries by vIoU: `(range, count, height in percent of the highest)` per bin; empty where no boxes are judged."""
    values = [one.vIoU for one in scores if one.vIoU is not None]
    if not values:
        return []
    counts, edges = np.histogram(values, bins=BINS, range=(0, 1))
    names = [f"{low:.2f}–{high:.2f}" for low, high in itertools.pairwise(edges)]
    return [(name, int(count), round(100 * count / max(counts.max(), 1), 1)) for name, count in zip(names, counts, strict=True)]

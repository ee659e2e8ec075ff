"""What `index.html` holds: the summary, the curves, the gallery. Numbers are laid out here, words and marks in the template."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from grounding.evaluation.evaluate import evaluate_published_protocols
from grounding.evaluation.ground_truth import GroundTruth
from grounding.evaluation.published import (
    METRIC_NAMES,
    build_table_lines,
    build_table_notes,
    protocols_for,
)
from grounding.evaluation.results import RunResults
from grounding.metrics.bootstrap import compare_paired
from grounding.metrics.scores import MEAN_METRICS, Score, summarize, summarize_by
from grounding.report.gallery import GalleryGroup
from grounding.structures.tubes import Tubes
from grounding.visualization.learning_curves import (
    HEIGHT,
    MARGIN_LEFT,
    MARGIN_RIGHT,
    MARGIN_TOP,
    WIDTH,
    is_main,
    read_curves,
)

if TYPE_CHECKING:
    from grounding.report.sweep_section import Ablations

BASELINES = (("baseline_", "constant"), ("random_", "random"))
NUM_BINS = 20
RUN_FILES = ("config.yaml", "provenance.json")


def render_page(
    ground_truth: GroundTruth,
    runs: Sequence[RunResults],
    gallery: Sequence[tuple[GalleryGroup, Sequence[Any]]],
    ablations: Ablations | None,
    split: str,
) -> str:
    """The page; text from data is escaped. `gallery`: per group the queries that are pictured."""
    environment = Environment(
        loader=PackageLoader("grounding.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}"
    environment.filters["signed"] = lambda value: "–" if value is None else f"{100 * value:+.1f}"
    return environment.get_template("report.html").render(
        **_build_summary(ground_truth, runs, split),
        **_build_training(runs),
        gallery=gallery,
        ablations=ablations,
    )


def _build_summary(
    ground_truth: GroundTruth, runs: Sequence[RunResults], split: str
) -> dict[str, Any]:
    run, other = runs[0], runs[1] if len(runs) > 1 else None
    scores = list(run.scores.values())
    counts = summarize(scores)
    videos = {query.video for query in ground_truth.queries if query.id in run.scores}
    groups = [(kind, summarize_by(scores, ground_truth.queries, kind)) for kind in ("form", "tag")]
    return {
        "runs": [one.name for one in runs],
        "split": split,
        "counts": {
            "queries": counts["queries"],
            "boxed": counts["boxed_queries"],
            "missing": len(run.scores.keys() - run.predictions.keys()),
            "videos": len(videos),
        },
        "columns": MEAN_METRICS,
        "systems": build_results_table(runs),
        "intervals": {
            name: (run.metrics.get(f"{name}_low"), run.metrics.get(f"{name}_high"))
            for name in MEAN_METRICS
        },
        "differences": compare_paired(
            scores, list(other.scores.values()), ground_truth.video_by_query
        )
        if other
        else {},
        "groups": [(kind, table) for kind, table in groups if table],
        "histogram": build_histogram(scores),
        "published": _build_published_table(ground_truth, run, split),
    }


def _build_training(runs: Sequence[RunResults]) -> dict[str, Any]:
    curves = read_curves(runs[0].path / "curves" / "plots" / "metrics")
    files = [(run.name, name, run.path / name) for run in runs for name in RUN_FILES]
    return {
        "curves": [curve for curve in curves if is_main(curve)],
        "more_curves": [curve for curve in curves if not is_main(curve)],
        "plot": {
            "width": WIDTH,
            "height": HEIGHT,
            "left": MARGIN_LEFT,
            "right": WIDTH - MARGIN_RIGHT,
            "top": MARGIN_TOP,
        },
        "files": [(run, name, read_text(path)) for run, name, path in files if path.is_file()],
    }


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def build_results_table(runs: Sequence[RunResults]) -> list[tuple[str, dict[str, float | None]]]:
    """The headline table: the runs, then every baseline that the first one's metrics have."""
    table = [
        (
            run.name if len(runs) > 1 else "this run",
            _get_mean_metrics(run.metrics, list(run.scores.values())),
        )
        for run in runs
    ]
    for prefix, name in BASELINES:
        values = {column: runs[0].metrics.get(prefix + column) for column in MEAN_METRICS}
        if any(value is not None for value in values.values()):
            table.append((name, values))
    return table


def _get_mean_metrics(
    metrics: Mapping[str, Any], scores: Sequence[Score]
) -> dict[str, float | None]:
    """A run's means; those of its scores where `metrics` is silent."""
    known = summarize(scores)
    return {column: metrics.get(column, known.get(column)) for column in MEAN_METRICS}


def build_histogram(scores: Sequence[Score]) -> list[tuple[str, int, float]]:
    """Queries by vIoU: `(range, count, height in percent of the highest)` per bin; empty where no boxes are judged."""
    values = [one.vIoU for one in scores if one.vIoU is not None]
    if not values:
        return []
    counts, edges = np.histogram(values, bins=NUM_BINS, range=(0, 1))
    names = [f"{low:.2f}–{high:.2f}" for low, high in itertools.pairwise(edges)]
    return [
        (name, int(count), round(100 * count / max(counts.max(), 1), 1))
        for name, count in zip(names, counts, strict=True)
    ]


def _build_published_table(
    ground_truth: GroundTruth, run: RunResults, split: str
) -> dict[str, Any] | None:
    """The paper's table with this run in it; None where nothing was published of the data set's split."""
    if ground_truth.dataset_name is None or not protocols_for(ground_truth.dataset_name, split):
        return None
    tubes = Tubes.from_predictions(run.predictions.values())
    ours, refused = evaluate_published_protocols(
        ground_truth, tubes, split, {"every-frame": list(run.scores.values())}
    )
    lines = build_table_lines(ground_truth.dataset_name, split, ours)
    forms = [
        (form, list(group)) for form, group in itertools.groupby(lines, lambda line: line.form)
    ]
    return {
        "dataset": ground_truth.dataset_name,
        "metrics": METRIC_NAMES,
        "forms": forms,
        "notes": [*build_table_notes(ground_truth.dataset_name, split), *refused],
    }

"""Content of `index.html`: summary, learning curves and gallery.

This module formats numbers; texts and markup are in the templates.
"""

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
    get_published_protocols,
)
from grounding.evaluation.results import RunResults
from grounding.metrics.bootstrap import Difference, compare_paired
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
"""Baselines: prefix of their metrics, and their name in the results table."""
NUM_BINS = 20
"""Number of bins of the histogram over vIoU."""
RUN_FILES = ("config.yaml", "provenance.json")
"""Files of a run that the page shows."""
NO_VALUE = "–"


def render_page(
    ground_truth: GroundTruth,
    runs: Sequence[RunResults],
    gallery: Sequence[tuple[GalleryGroup, Sequence[Any]]],
    ablations: Ablations | None,
    split: str,
) -> str:
    """Render the page. All text from data is escaped.

    Args:
        ground_truth: Ground truth of the split.
        runs: The run and, optionally, a run that is compared.
        gallery: Groups of the gallery, each with its items (`GalleryItem`).
        ablations: Content of a sweep's section, if any.
        split: Name of the split.

    Returns:
        HTML of the page.
    """
    environment = Environment(
        loader=PackageLoader("grounding.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = _format_score
    environment.filters["percent"] = _format_percent
    environment.filters["signed"] = _format_signed_percent

    template = environment.get_template("report.html")

    return template.render(
        **_build_summary(ground_truth, runs, split),
        **_build_training(runs),
        gallery=gallery,
        ablations=ablations,
    )


def _format_score(value: float | None) -> str:
    """Return a score in [0, 1] with three digits."""
    return NO_VALUE if value is None else f"{value:.3f}"


def _format_percent(value: float | None) -> str:
    """Return a score in [0, 1] in percent."""
    return NO_VALUE if value is None else f"{100 * value:.1f}"


def _format_signed_percent(value: float | None) -> str:
    """Return a difference of scores in percent, with its sign."""
    return NO_VALUE if value is None else f"{100 * value:+.1f}"


def _build_summary(
    ground_truth: GroundTruth, runs: Sequence[RunResults], split: str
) -> dict[str, Any]:
    """Return the template variables of the summary."""
    run = runs[0]
    scores = list(run.scores.values())

    return {
        "runs": [shown_run.name for shown_run in runs],
        "split": split,
        "counts": _count_queries(ground_truth, run),
        "columns": MEAN_METRICS,
        "systems": build_results_table(runs),
        "intervals": _get_intervals(run),
        "differences": _compare_runs(ground_truth, runs),
        "groups": _build_group_tables(ground_truth, scores),
        "histogram": build_histogram(scores),
        "published": _build_published_table(ground_truth, run, split),
    }


def _count_queries(ground_truth: GroundTruth, run: RunResults) -> dict[str, Any]:
    """Return the numbers of queries, of queries with boxes or without prediction, and of videos."""
    totals = summarize(list(run.scores.values()))
    queries_without_prediction = run.scores.keys() - run.predictions.keys()
    videos = {query.video for query in ground_truth.queries if query.id in run.scores}

    return {
        "queries": totals["queries"],
        "boxed": totals["boxed_queries"],
        "missing": len(queries_without_prediction),
        "videos": len(videos),
    }


def _get_intervals(run: RunResults) -> dict[str, tuple[float | None, float | None]]:
    """Return the confidence interval of each mean metric, None where the run has none."""
    intervals = {}
    for name in MEAN_METRICS:
        intervals[name] = (run.metrics.get(f"{name}_low"), run.metrics.get(f"{name}_high"))

    return intervals


def _compare_runs(
    ground_truth: GroundTruth, runs: Sequence[RunResults]
) -> Mapping[str, Difference]:
    """Return the differences between two runs by metric; nothing for one run."""
    if len(runs) < 2:
        return {}

    scores = list(runs[0].scores.values())
    other_scores = list(runs[1].scores.values())

    return compare_paired(scores, other_scores, ground_truth.video_by_query)


def _build_group_tables(
    ground_truth: GroundTruth, scores: Sequence[Score]
) -> list[tuple[str, dict[str, dict[str, float]]]]:
    """Return the means by form and by tag, each only if queries have one."""
    tables = []
    for kind in ("form", "tag"):
        table = summarize_by(scores, ground_truth.queries, kind)
        if table:
            tables.append((kind, table))

    return tables


def _build_training(runs: Sequence[RunResults]) -> dict[str, Any]:
    """Return the template variables of the learning curves and the runs' files."""
    curves = read_curves(runs[0].path / "curves" / "plots" / "metrics")

    files = []
    for run in runs:
        for name in RUN_FILES:
            path = run.path / name
            if path.is_file():
                files.append((run.name, name, read_text(path)))

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
        "files": files,
    }


def read_text(path: Path) -> str:
    """Read a text file; bytes that are not UTF-8 are replaced.

    Args:
        path: The file.

    Returns:
        Its text.
    """
    return path.read_text(encoding="utf-8", errors="replace")


def build_results_table(runs: Sequence[RunResults]) -> list[tuple[str, dict[str, float | None]]]:
    """Build the headline table: the runs, then the baselines of the first run's metrics.

    Args:
        runs: The run and, optionally, a run that is compared.

    Returns:
        `(name, mean metrics)` of each row.
    """
    table = []
    for run in runs:
        name = run.name if len(runs) > 1 else "this run"
        table.append((name, _get_mean_metrics(run.metrics, list(run.scores.values()))))

    for prefix, name in BASELINES:
        values = {column: runs[0].metrics.get(prefix + column) for column in MEAN_METRICS}
        if any(value is not None for value in values.values()):
            table.append((name, values))

    return table


def _get_mean_metrics(
    metrics: Mapping[str, Any], scores: Sequence[Score]
) -> dict[str, float | None]:
    """Return a run's means; from its scores where `metrics` has none."""
    means = summarize(scores)

    return {column: metrics.get(column, means.get(column)) for column in MEAN_METRICS}


def build_histogram(scores: Sequence[Score]) -> list[tuple[str, int, float]]:
    """Count queries by vIoU.

    Args:
        scores: Scores of the run.

    Returns:
        `(range, count, height in percent of the highest bin)` of each bin; empty if no ground truth
        has boxes.
    """
    values = [score.vIoU for score in scores if score.vIoU is not None]
    if not values:
        return []

    counts, edges = np.histogram(values, bins=NUM_BINS, range=(0, 1))
    highest = max(counts.max(), 1)

    bins = []
    for (low, high), count in zip(itertools.pairwise(edges), counts, strict=True):
        height = round(100 * count / highest, 1)
        bins.append((f"{low:.2f}–{high:.2f}", int(count), height))

    return bins


def _build_published_table(
    ground_truth: GroundTruth, run: RunResults, split: str
) -> dict[str, Any] | None:
    """Return the published results with this run's; None if none exist for the data set's split."""
    dataset_name = ground_truth.dataset_name
    if dataset_name is None or not get_published_protocols(dataset_name, split):
        return None

    # This run, by the protocols of the published results.
    tubes = Tubes.from_predictions(run.predictions.values())
    scores_by_protocol = {"every-frame": list(run.scores.values())}
    run_metrics, refusals = evaluate_published_protocols(
        ground_truth, tubes, split, scores_by_protocol
    )

    lines = build_table_lines(dataset_name, split, run_metrics)
    lines_by_form = []
    for form, group in itertools.groupby(lines, lambda line: line.form):
        lines_by_form.append((form, list(group)))

    return {
        "dataset": dataset_name,
        "metrics": METRIC_NAMES,
        "forms": lines_by_form,
        "notes": [*build_table_notes(dataset_name, split), *refusals],
    }

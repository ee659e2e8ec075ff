"""Tables of `stvg-eval`: metrics beside baselines, another run, and published results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grounding.evaluation.evaluate import evaluate_published_protocols
from grounding.evaluation.ground_truth import GroundTruth
from grounding.evaluation.published import build_paper_table, get_published_protocols
from grounding.evaluation.run import EvaluationReport
from grounding.metrics.bootstrap import Difference
from grounding.metrics.scores import MEAN_METRICS, Score, summarize_by
from grounding.structures.tubes import Tubes
from pipeline.records import Query

MISSING_CELL = "–"

OUTPUT_WIDTH = 120
"""Columns of a table outside a terminal: wide enough for every table."""


def show_report(report: EvaluationReport) -> None:
    """Print all tables of an evaluation; none if there is no ground truth.

    Args:
        report: Report of the evaluation.
    """
    options = report.options
    ground_truth = report.ground_truth
    if ground_truth.is_unlabeled:
        return

    show_metrics(report.title, report.metrics, report.scores, ground_truth.queries)
    if report.differences:
        show_differences(f"compared with {options.compare_path}", report.differences)
    show_published(
        ground_truth, report.tubes, options.protocol, options.settings.split, report.scores
    )


def show_metrics(
    title: str, metrics: Mapping[str, float], scores: Sequence[Score], queries: Sequence[Query]
) -> None:
    """Print the metrics with intervals and baselines, then the means by form and by tag.

    Args:
        title: Title of the first table.
        metrics: Flat metrics, as in `metrics.json`.
        scores: Scores per query.
        queries: The queries, with forms and tags.
    """
    table = _create_table(title, "queries", *MEAN_METRICS)
    _add_row(table, "this", metrics)
    _add_interval_row(table, metrics)

    for name, prefix in (("best constant", "baseline_"), ("random", "random_")):
        baseline_metrics = {
            key.removeprefix(prefix): value
            for key, value in metrics.items()
            if key.startswith(prefix)
        }
        if baseline_metrics:
            _add_row(table, name, baseline_metrics)
    create_console().print(table)

    groups = {**summarize_by(scores, queries, "form"), **summarize_by(scores, queries, "tag")}
    if groups:
        table = _create_table("by form and by tag", "queries", *MEAN_METRICS)
        for name, values in groups.items():
            _add_row(table, name, values)
        create_console().print(table)


def _add_interval_row(table: Table, metrics: Mapping[str, float]) -> None:
    """Add the 95 % intervals of the means, if there are any."""
    if not any(f"{name}_low" in metrics for name in MEAN_METRICS):
        return

    cells = []
    for name in MEAN_METRICS:
        low = metrics.get(f"{name}_low")
        high = metrics.get(f"{name}_high")
        cells.append(MISSING_CELL if low is None else f"{low:.3f}–{high:.3f}")
    table.add_row("95 % interval", "", *cells, style="dim")


def show_differences(title: str, differences: Mapping[str, Difference]) -> None:
    """Print the comparison with another run on the same queries.

    Args:
        title: Title of the table.
        differences: Paired differences by metric.
    """
    columns = ("this", "other", "difference", "95 % interval", "p", "better", "worse")
    table = _create_table(title, *columns)
    for metric, difference in differences.items():
        if difference.low is None or difference.high is None:
            interval = MISSING_CELL
        else:
            interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
        p_value = MISSING_CELL if difference.p is None else f"{difference.p:.4f}"
        table.add_row(
            metric,
            f"{difference.current:.4f}",
            f"{difference.other:.4f}",
            f"{difference.mean:+.4f}",
            interval,
            p_value,
            str(difference.better),
            str(difference.worse),
        )
    create_console().print(table)


def show_published(
    ground_truth: GroundTruth, tubes: Tubes, protocol: str, split: str, scores: Sequence[Score]
) -> None:
    """Print the published results of the split with this run's, once per protocol.

    The protocols are the evaluation's, every-frame, and those of the published rows. Nothing is
    printed without published results.

    Args:
        ground_truth: Ground truth of the split.
        tubes: Predicted tubes.
        protocol: Protocol of `scores`.
        split: The split.
        scores: Scores per query.
    """
    dataset_name = ground_truth.dataset_name
    if dataset_name is None or not get_published_protocols(dataset_name, split):
        return

    means_by_protocol, refusals = evaluate_published_protocols(
        ground_truth, tubes, split, {protocol: scores}
    )
    for refusal in refusals:
        create_console().print(Text(refusal, style="yellow"))
    create_console().print(build_paper_table(dataset_name, split, means_by_protocol))


def create_console() -> Console:
    """Create a console on stdout.

    Returns:
        The console. Outside a terminal it has `OUTPUT_WIDTH` columns.
    """
    console = Console()
    if console.is_terminal:
        return console
    return Console(width=OUTPUT_WIDTH)


def _create_table(title: str, *columns: str) -> Table:
    """Create a table with a column of names and right-aligned columns of numbers."""
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _add_row(table: Table, name: str, values: Mapping[str, float]) -> None:
    """Add a row of counts and means; a missing value is a dash."""
    cells = []
    for column in table.columns[1:]:
        if isinstance(column.header, str):
            cells.append(_format_cell(values.get(column.header)))
    table.add_row(Text(name), *cells)


def _format_cell(value: float | None) -> str:
    """Format a count as it is, a mean with four decimals, and a missing value as a dash."""
    if value is None:
        return MISSING_CELL
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}"

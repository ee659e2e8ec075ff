"""The tables `stvg-eval` prints: this run beside the baselines, another run, and published results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grounding.evaluation.evaluate import evaluate_published_protocols
from grounding.evaluation.ground_truth import GroundTruth
from grounding.evaluation.published import build_paper_table, protocols_for
from grounding.metrics.bootstrap import Difference
from grounding.metrics.scores import MEAN_METRICS, Score, summarize_by
from grounding.structures.tubes import Tubes
from pipeline.records import Query

MISSING_CELL = "–"


def show_metrics(
    title: str, metrics: Mapping[str, float], scores: Sequence[Score], queries: Sequence[Query]
) -> None:
    """This run with its 95 % intervals beside the baselines, and its means by form and by tag."""
    table = _create_table(title, "queries", *MEAN_METRICS)
    _add_row(table, "this", metrics)
    if any(f"{name}_low" in metrics for name in MEAN_METRICS):
        pairs = [(metrics.get(f"{name}_low"), metrics.get(f"{name}_high")) for name in MEAN_METRICS]
        intervals = [
            MISSING_CELL if low is None else f"{low:.3f}–{high:.3f}" for low, high in pairs
        ]
        table.add_row("95 % interval", "", *intervals, style="dim")
    for name, prefix in (("best constant", "baseline_"), ("random", "random_")):
        own = {
            key.removeprefix(prefix): value
            for key, value in metrics.items()
            if key.startswith(prefix)
        }
        if own:
            _add_row(table, name, own)
    create_console().print(table)
    groups = {**summarize_by(scores, queries, "form"), **summarize_by(scores, queries, "tag")}
    if groups:
        table = _create_table("by form and by tag", "queries", *MEAN_METRICS)
        for name, values in groups.items():
            _add_row(table, name, values)
        create_console().print(table)


def show_differences(title: str, differences: Mapping[str, Difference]) -> None:
    """This run against another on the same queries."""
    table = _create_table(
        title, "this", "other", "difference", "95 % interval", "p", "better", "worse"
    )
    for name, one in differences.items():
        interval = (
            MISSING_CELL
            if one.low is None or one.high is None
            else f"{one.low:+.4f} to {one.high:+.4f}"
        )
        means = (f"{one.ours:.4f}", f"{one.other:.4f}", f"{one.mean:+.4f}", interval)
        table.add_row(
            name,
            *means,
            MISSING_CELL if one.p is None else f"{one.p:.4f}",
            str(one.better),
            str(one.worse),
        )
    create_console().print(table)


def show_published(
    ground_truth: GroundTruth, tubes: Tubes, protocol: str, split: str, scores: Sequence[Score]
) -> None:
    """The published results of this data set's split with this run: as judged (`known`), by every-frame, and as the rows were."""
    if ground_truth.dataset_name is None or not protocols_for(ground_truth.dataset_name, split):
        return
    ours, refused = evaluate_published_protocols(ground_truth, tubes, split, {protocol: scores})
    for why in refused:
        create_console().print(Text(why, style="yellow"))
    create_console().print(build_paper_table(ground_truth.dataset_name, split, ours))


def create_console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    wide = Console()
    return wide if wide.is_terminal else Console(width=120)


def _create_table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _add_row(table: Table, name: str, values: Mapping[str, float]) -> None:
    """A row of counts and means; a mean that is not known is a dash."""
    cells = [
        values.get(column.header) for column in table.columns[1:] if isinstance(column.header, str)
    ]
    table.add_row(
        Text(name),
        *(
            MISSING_CELL if cell is None else str(cell) if isinstance(cell, int) else f"{cell:.4f}"
            for cell in cells
        ),
    )

"""`stvg-prepare`: a validated index of queries with boxes, and a report of every defect."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console.app import (
    Assignments,
    ConfigFile,
    Debug,
    Version,
    handle_errors,
    log_to,
    new_app,
    print_info,
    print_warning,
)
from cli.console.progress import show_progress

if TYPE_CHECKING:
    from cli.console.dataset_options import DatasetConfig
    from pipeline.datasets.data_cards import CardCheck
    from pipeline.datasets.prepare import PrepareReport

app = new_app()
log = logging.getLogger("cli")

LOG_WIDTH = 120
"""Columns of a table outside a terminal: wide enough that no cell is cut."""

DEFECT_HEADERS = ("kind", "how many", "left out", "for example")
VERDICTS = ("ok", "differs", "absent")
CELL_STYLES = {"differs": "bold red", "absent": "dim", "ok": "green"}


@app.command()
@handle_errors
def prepare(
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="Data set: shapes, vidstg, hcstvg-v1, hcstvg-v2, jsonl or cvat.",
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="PATH", help="Folder of the data set; for jsonl, the file."),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            "--index",
            metavar="OUT",
            help="The .jsonl index to write. tracks.npz and defects.json are written beside it.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Write nothing. Compare the annotations with the numbers in the data set's card.",
        ),
    ] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Check a data set and write its index of queries.

    The videos and annotations of `shapes` are generated first.
    """
    from cli.console.dataset_options import PrepareConfig, load_dataset_config
    from pipeline.config import load
    from pipeline.datasets import get_parser
    from pipeline.datasets.prepare import check_index_path, write_index
    from pipeline.datasets.shapes.make import make_shapes

    dataset_config = load_dataset_config(config, dataset, root, index)
    settings = load(PrepareConfig, "prepare", config, assignments or [])
    if verify:
        raise typer.Exit(verify_card(dataset_config))
    check_index_path(dataset_config.index_path, dataset_config.root_path)

    # The log file may lie in the folder that must be empty for shapes, so it is opened later.
    if dataset_config.name == "shapes":
        with show_progress("making shapes", unit="videos") as advance:
            make_shapes(dataset_config.root_path, settings.shapes, settings.workers, advance)

    with show_progress("preparing") as advance:
        parsed = get_parser(dataset_config.name)(dataset_config.root_path, advance)

        # The log file is opened only now: without data, no file is left behind.
        log_to(dataset_config.index_path.with_suffix(".log"))
        report = write_index(dataset_config.name, parsed, dataset_config.index_path, advance)

    print_report(report)
    raise typer.Exit(report.exit_code(settings.allow_failed))


def verify_card(dataset_config: DatasetConfig) -> int:
    """Compare the annotations with the data set's card, number by number, and print the result.

    Args:
        dataset_config: Section `dataset`.

    Returns:
        Exit code: 0 if all numbers agree, 1 otherwise.
    """
    from pipeline.datasets import get_parser
    from pipeline.datasets.data_cards import checks_pass, compare_with_card, load_card
    from pipeline.datasets.video_checks import assume_valid_videos

    card = load_card(dataset_config.name)
    with show_progress("reading annotations") as advance:
        parse = get_parser(dataset_config.name)
        parsed = parse(dataset_config.root_path, advance, assume_valid_videos)

    checks = compare_with_card(card, parsed)
    print_table(
        f"{dataset_config.name} against its data card",
        ("of", "number", "card says", "found", ""),
        [_check_cells(check) for check in checks],
    )

    excluded_defects = [defect for defect in parsed.defects.to_list() if defect["excluded"]]
    if excluded_defects:
        rows = [_defect_cells(defect) for defect in excluded_defects]
        print_table("what was left out", DEFECT_HEADERS, rows)

    counts = []
    for verdict in VERDICTS:
        count = sum(check.verdict == verdict for check in checks)
        counts.append(f"{count} {verdict}")
    print_info(", ".join(counts))
    return int(not checks_pass(checks))


def _check_cells(check: CardCheck) -> tuple[str, ...]:
    """Return the cells of one comparison with the card."""
    return (
        check.scope,
        check.statistic,
        _format_value(check.expected),
        "-" if check.actual is None else _format_value(check.actual),
        check.verdict,
    )


def _format_value(value: Any) -> str:
    """Format a number with thousands separators, a list as in the card, other values as text."""
    if isinstance(value, list):
        return f"[{', '.join(map(_format_value, value))}]"
    if isinstance(value, int | float):
        return f"{value:,}".removesuffix(".0")
    return str(value)


def print_report(report: PrepareReport) -> None:
    """Print the totals by split, and the defects by kind.

    Args:
        report: Report of the preparation.
    """
    splits = ", ".join(f"{name} {count}" for name, count in report.queries_by_split.items())
    print_info(
        f"{report.index_path}: {report.queries} queries about {report.videos} videos ({splits})"
    )

    if report.defects:
        rows = [_defect_cells(defect) for defect in report.defects]
        print_table("what was wrong", DEFECT_HEADERS, rows)

    print_table(
        "totals",
        ("split", "queries", "videos", "without video", "without boxes", "left out"),
        _split_count_rows(report),
    )
    print_info(
        f"{report.checked_videos} videos checked; {report.edit_lists} of {report.checked_videos}"
        " videos have an edit list"
    )

    if report.num_failures:
        counts = (
            ("left out", report.num_excluded),
            ("without video", report.without_video),
            ("without boxes", report.without_boxes),
        )
        failures = ", ".join(f"{count} {label}" for label, count in counts if count)
        print_warning(f"{failures}; all are in {report.index_path.with_name('defects.json')}")


def _defect_cells(defect: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of one kind of defect, with its first entry as the example."""
    first = defect["entries"][0] if defect["entries"] else None
    example = f"{first['entry']}: {first['detail']}" if first else ""
    return (
        defect["kind"],
        _format_value(defect["count"]),
        _format_value(defect["excluded"]),
        example,
    )


def _split_count_rows(report: PrepareReport) -> list[tuple[str, ...]]:
    """Return a row of counts for each split, and a row for all splits."""
    rows: list[tuple[str, ...]] = []
    for split, counts in report.split_counts.items():
        left_out = _format_value(sum(counts.left_out.values()))
        if counts.left_out:
            kinds = [f"{kind} {_format_value(count)}" for kind, count in counts.left_out.items()]
            left_out = f"{left_out}: {', '.join(kinds)}"
        rows.append(
            (
                split,
                _format_value(counts.queries),
                _format_value(counts.videos),
                _format_value(counts.without_video),
                _format_value(counts.without_boxes),
                left_out,
            )
        )

    totals = (
        report.queries,
        report.videos,
        report.without_video,
        report.without_boxes,
        report.num_excluded,
    )
    rows.append(("all", *map(_format_value, totals)))
    return rows


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, as wide as the terminal, and write it to the log as plain text.

    Args:
        title: Title of the table.
        headers: Header of each column.
        rows: Cells of each row. Long cells continue on the next line.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        cells = [Text(cell, CELL_STYLES.get(cell, "")) for cell in row]
        table.add_row(*cells)

    width = None if sys.stdout.isatty() else LOG_WIDTH
    Console(file=sys.stdout, width=width).print(table)

    log_text = io.StringIO()
    Console(file=log_text, width=LOG_WIDTH).print(table)
    log.info("%s", log_text.getvalue().strip())


def main() -> None:
    """Run the command."""
    app()

"""`stvg-prepare`: raw annotations → a validated index of queries, their boxes, and a report of every defect."""

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
"""Columns of a table that is not shown on a terminal: enough that nothing is cut."""


@app.command()
@handle_errors
def prepare(
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", metavar="NAME", help="shapes, vidstg, hcstvg-v1, hcstvg-v2, jsonl or cvat."
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="PATH", help="The data set's folder; for jsonl the file."),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            "--index",
            metavar="OUT",
            help="The index to write, a .jsonl; tracks.npz and defects.json lie beside it.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Write nothing: hold the annotations against the numbers in the data set's card.",
        ),
    ] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
) -> None:
    """Check a data set and write its index of queries; `shapes` is made first."""
    from cli.console.dataset_options import PrepareConfig, load_dataset_config
    from pipeline.config import load
    from pipeline.datasets import get_parser
    from pipeline.datasets.prepare import check_index_path, write_index
    from pipeline.datasets.shapes.make import make_shapes

    source = load_dataset_config(config, dataset, root, index)
    settings = load(PrepareConfig, "prepare", config, assignments or [])
    if verify:
        raise typer.Exit(verify_card(source))
    check_index_path(source.index_path, source.root_path)
    if (
        source.name == "shapes"
    ):  # before the log file, which may lie in the folder that must be empty
        with show_progress("making shapes", unit="videos") as advance:
            make_shapes(source.root_path, settings.shapes, settings.workers, advance)
    with show_progress("preparing") as advance:
        parsed = get_parser(source.name)(source.root_path, advance)
        log_to(
            source.index_path.with_suffix(".log")
        )  # not before: where there is no data, nothing is left behind
        made = write_index(source.name, parsed, source.index_path, advance)
    print_report(made)
    raise typer.Exit(made.exit_code(settings.allow_failed))


def verify_card(source: DatasetConfig) -> int:
    """Compare the annotations with the data set's card, number by number; the exit code: 0 where all agree, else 1."""
    from pipeline.datasets import get_parser
    from pipeline.datasets.data_cards import checks_pass, compare_with_card, load_card
    from pipeline.datasets.video_checks import assume_valid_videos

    card = load_card(source.name)
    with show_progress("reading annotations") as advance:
        parsed = get_parser(source.name)(source.root_path, advance, assume_valid_videos)
    rows = compare_with_card(card, parsed)
    print_table(
        f"{source.name} against its data card",
        ("of", "number", "card says", "found", ""),
        [_check_cells(row) for row in rows],
    )
    left_out = [defect for defect in parsed.defects.to_list() if defect["excluded"]]
    if left_out:
        print_table(
            "what was left out", DEFECT_HEADERS, [_defect_cells(defect) for defect in left_out]
        )
    counts = {
        verdict: sum(row.verdict == verdict for row in rows)
        for verdict in ("ok", "differs", "absent")
    }
    print_info(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return int(not checks_pass(rows))


def _check_cells(row: CardCheck) -> tuple[str, ...]:
    return (
        row.scope,
        row.statistic,
        _format_value(row.expected),
        "-" if row.actual is None else _format_value(row.actual),
        row.verdict,
    )


def _format_value(value: Any) -> str:
    """A number with its thousands marked, a list as the card writes it, a text as it is."""
    if isinstance(value, list):
        return f"[{', '.join(map(_format_value, value))}]"
    return f"{value:,}".removesuffix(".0") if isinstance(value, int | float) else str(value)


def print_report(report: PrepareReport) -> None:
    """The report: what there is, what was wrong by kind, and the totals by split."""
    splits = ", ".join(f"{name} {count}" for name, count in report.queries_by_split.items())
    print_info(
        f"{report.index_path}: {report.queries} queries about {report.videos} videos ({splits})"
    )
    if report.defects:
        print_table(
            "what was wrong", DEFECT_HEADERS, [_defect_cells(defect) for defect in report.defects]
        )
    print_table(
        "totals",
        ("split", "queries", "videos", "without video", "without boxes", "left out"),
        _split_count_rows(report),
    )
    print_info(
        f"{report.checked_videos} videos checked; {report.edit_lists} of {report.checked_videos} videos have an edit list"
    )
    counts = (
        ("left out", report.left_out),
        ("without video", report.without_video),
        ("without boxes", report.without_boxes),
    )
    if report.num_failures:
        print_warning(
            ", ".join(f"{count} {what}" for what, count in counts if count)
            + f"; all are in {report.index_path.with_name('defects.json')}"
        )


DEFECT_HEADERS = ("kind", "how many", "left out", "for example")


def _defect_cells(defect: dict[str, Any]) -> tuple[str, ...]:
    first = defect["entries"][0] if defect["entries"] else None
    example = f"{first['entry']}: {first['detail']}" if first else ""
    return (
        defect["kind"],
        _format_value(defect["count"]),
        _format_value(defect["excluded"]),
        example,
    )


def _split_count_rows(made: PrepareReport) -> list[tuple[str, ...]]:
    """A row per split, and one of all."""
    rows = []
    for split, total in made.split_counts.items():
        kinds = ", ".join(
            f"{kind} {_format_value(count)}" for kind, count in total.left_out.items()
        )
        left_out = f"{_format_value(sum(total.left_out.values()))}" + (
            f": {kinds}" if kinds else ""
        )
        rows.append(
            (
                split,
                *map(
                    _format_value,
                    (total.queries, total.videos, total.without_video, total.without_boxes),
                ),
                left_out,
            )
        )
    return [
        *rows,
        (
            "all",
            *map(
                _format_value,
                (made.queries, made.videos, made.without_video, made.without_boxes, made.left_out),
            ),
        ),
    ]


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, as wide as the terminal, and as plain text in the log file. Long cells go on in the next line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"differs": "bold red", "absent": "dim", "ok": "green"}
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for head in headers:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, styles.get(cell, "")) for cell in row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else LOG_WIDTH).print(table)
    plain = io.StringIO()
    Console(file=plain, width=LOG_WIDTH).print(table)
    log.info("%s", plain.getvalue().strip())


def main() -> None:
    app()

"""`stvg-prepare`: raw annotations → a validated index of queries, their boxes, and a report of every defect."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console.app import Assignments, ConfigFile, Debug, guarded, log_to, new_app, say, warn
from cli.console.progress import progress

if TYPE_CHECKING:
    from cli.console.dataset_options import DatasetConfig
    from pipeline.datasets.data_cards import Row
    from pipeline.datasets.prepare import PrepareReport

app = new_app()
log = logging.getLogger("cli")
LOG_WIDTH = 120
"""Columns of a table that is not shown on a terminal: enough that nothing is cut."""


@app.command()
@guarded
def prepare(
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="shapes, vidstg, hcstvg-v1, hcstvg-v2, jsonl or cvat.")
    ] = None,
    root: Annotated[Path | None, typer.Option("--root", metavar="PATH", help="The data set's folder; for jsonl the file.")] = None,
    index: Annotated[
        Path | None, typer.Option("--index", metavar="OUT", help="The index to write, a .jsonl; tracks.npz and defects.json lie beside it.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Write nothing: hold the annotations against the numbers in the data set's card.")
    ] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
) -> None:
    """Check a data set and write its index of queries; `shapes` is made first."""
    from cli.console.dataset_options import PrepareConfig, dataset_config
    from pipeline.config import load
    from pipeline.datasets import parser_of
    from pipeline.datasets.prepare import check_index_path, write_index
    from pipeline.datasets.shapes.make import make_shapes

    source = dataset_config(config, dataset, root, index)
    settings = load(PrepareConfig, "prepare", config, assignments or [])
    if verify:
        raise typer.Exit(verify_card(source))
    check_index_path(source.index_path, source.root_path)
    if source.name == "shapes":  # before the log file, which may lie in the folder that must be empty
        with progress("making shapes", unit="videos") as advance:
            make_shapes(source.root_path, settings.shapes, settings.workers, advance)
    with progress("preparing") as advance:
        parsed = parser_of(source.name)(source.root_path, advance)
        log_to(source.index_path.with_suffix(".log"))  # not before: where there is no data, nothing is left behind
        made = write_index(source.name, parsed, source.index_path, advance)
    tell(made)
    raise typer.Exit(made.exit_code(settings.allow_failed))


def verify_card(source: DatasetConfig) -> int:
    """Compare the annotations with the data set's card, number by number; the exit code: 0 where all agree, else 1."""
    from pipeline.datasets import parser_of
    from pipeline.datasets.data_cards import agree, compare, load_card
    from pipeline.datasets.video_checks import any_video

    card = load_card(source.name)
    with progress("reading annotations") as advance:
        parsed = parser_of(source.name)(source.root_path, advance, any_video)
    rows = compare(card, parsed)
    show(f"{source.name} against its data card", ("of", "number", "card says", "found", ""), [_verify_cells(row) for row in rows])
    left_out = [defect for defect in parsed.defects.to_list() if defect["excluded"]]
    if left_out:
        show("what was left out", DEFECT_HEADS, [_defect_cells(defect) for defect in left_out])
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("ok", "differs", "absent")}
    say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return int(not agree(rows))


def _verify_cells(row: Row) -> tuple[str, ...]:
    return (row.part, row.number, _value(row.stated), "-" if row.found is None else _value(row.found), row.verdict)


def _value(value: Any) -> str:
    """A number with its thousands marked, a list as the card writes it, a text as it is."""
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:,}".removesuffix(".0") if isinstance(value, int | float) else str(value)


def tell(made: PrepareReport) -> None:
    """The report: what there is, what was wrong by kind, and the totals by split."""
    splits = ", ".join(f"{name} {count}" for name, count in made.splits.items())
    say(f"{made.index_path}: {made.queries} queries about {made.videos} videos ({splits})")
    if made.defects:
        show("what was wrong", DEFECT_HEADS, [_defect_cells(defect) for defect in made.defects])
    show("totals", ("split", "queries", "videos", "without video", "without boxes", "left out"), _total_cells(made))
    say(f"{made.checked} videos checked; {made.edit_lists} of {made.checked} videos have an edit list")
    counts = (("left out", made.left_out), ("without video", made.without_video), ("without boxes", made.without_boxes))
    if made.failures:
        warn(", ".join(f"{count} {what}" for what, count in counts if count) + f"; all are in {made.index_path.with_name('defects.json')}")


DEFECT_HEADS = ("kind", "how many", "left out", "for example")


def _defect_cells(defect: dict[str, Any]) -> tuple[str, ...]:
    first = defect["entries"][0] if defect["entries"] else None
    example = f"{first['entry']}: {first['detail']}" if first else ""
    return (defect["kind"], _value(defect["count"]), _value(defect["excluded"]), example)


def _total_cells(made: PrepareReport) -> list[tuple[str, ...]]:
    """A row per split, and one of all."""
    rows = []
    for split, total in made.totals.items():
        kinds = ", ".join(f"{kind} {_value(count)}" for kind, count in total.left_out.items())
        left_out = f"{_value(sum(total.left_out.values()))}" + (f": {kinds}" if kinds else "")
        rows.append((split, *map(_value, (total.queries, total.videos, total.without_video, total.without_boxes)), left_out))
    return [*rows, ("all", *map(_value, (made.queries, made.videos, made.without_video, made.without_boxes, made.left_out)))]


def show(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, as wide as the terminal, and as plain text in the log file. Long cells go on in the next line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"differs": "bold red", "absent": "dim", "ok": "green"}
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, styles.get(cell, "")) for cell in row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else LOG_WIDTH).print(table)
    plain = io.StringIO()
    Console(file=plain, width=LOG_WIDTH).print(table)
    log.info("%s", plain.getvalue().strip())


def main() -> None:
    app()

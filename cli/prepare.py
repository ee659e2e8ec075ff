"""`stvg-prepare`: raw annotations → a validated index of queries, their boxes, and a report of every defect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.app import Assignments, ConfigFile, Debug, guarded, log_to, new_app, say, warn
from cli.progress import progress

if TYPE_CHECKING:
    from pipeline.prepare import PrepareReport

app = new_app()


@app.command()
@guarded
def prepare(
    dataset: Annotated[str | None, typer.Option("--dataset", metavar="NAME", help="shapes, vidstg or jsonl.")] = None,
    root: Annotated[Path | None, typer.Option("--root", metavar="PATH", help="The data set's folder; for jsonl the file.")] = None,
    index: Annotated[
        Path | None, typer.Option("--index", metavar="OUT", help="The index to write; tracks.npz and defects.json lie beside it.")
    ] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
) -> None:
    """Check a data set and write its index of queries; `shapes` is made first."""
    from cli.settings import PrepareConfig, dataset_config
    from pipeline.config import load
    from pipeline.datasets.shapes.make import make_shapes
    from pipeline.prepare import prepare as prepare_index

    source = dataset_config(config, dataset, root, index)
    settings = load(PrepareConfig, "prepare", config, assignments or [])
    if source.name == "shapes":  # before the log file, which may lie in the folder that must be empty
        with progress("making shapes", unit="videos") as advance:
            make_shapes(source.root_path, settings.shapes, settings.workers, advance)
    log_to(source.index_path.with_suffix(".log"))
    with progress("preparing") as advance:
        made = prepare_index(source.name, source.root_path, source.index_path, advance)
    tell(made)
    raise typer.Exit(made.exit_code(settings.allow_failed))


def tell(made: PrepareReport) -> None:
    """The report in a few lines: what there is, then what was wrong."""
    splits = ", ".join(f"{name} {count}" for name, count in made.splits.items())
    say(f"{made.index_path}: {made.queries} queries about {made.videos} videos ({splits})")
    for defect in made.defects:
        first = defect["entries"][0] if defect["entries"] else None
        warn(f"{defect['kind']}: {defect['count']}" + (f", for example {first['entry']}: {first['detail']}" if first else ""))
    counts = (("left out", made.left_out), ("without video", made.without_video), ("without boxes", made.without_boxes))
    if made.failures:
        warn(", ".join(f"{count} {what}" for what, count in counts if count) + f"; all are in {made.index_path.with_name('defects.json')}")


def main() -> None:
    app()

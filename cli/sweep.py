"""`stvg-sweep`: every variant of a table trained and judged over seeds → one table with intervals and pictures; resumable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from cli.console.progress import ProgressLines

if TYPE_CHECKING:
    from grounding.sweep.run import SweepProgress

app = new_app()


@app.command()
@handle_errors
def sweep(
    features: Annotated[
        Path,
        typer.Option("--features", metavar="STORE", help="The store that stvg-extract filled."),
    ] = Path("store"),
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="The folder of all runs and of the table.",
            show_default="sweeps/TABLE",
        ),
    ] = None,
    table: Annotated[
        str,
        typer.Option(
            "--table",
            metavar="NAME",
            help="csdvl, cgstvg, cgstvg_context, cgstvg_thresholds, costa or systems.",
        ),
    ] = "csdvl",
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", help="How many seeds each variant is trained with, from `seed` on."
        ),
    ] = 3,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="The preset that variants change; by default the one of the store's data set.",
        ),
    ] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
) -> None:
    """Run an ablation table. Stopped at any moment, the same command goes on; what is finished is not made again.

    --set keys are of section `train`; how runs are judged is section `evaluate` of --config.
    """
    from cli.console.sweep_tables import show_claims, show_section
    from grounding.evaluation.config import EvaluateConfig
    from grounding.sweep.markdown import list_warnings
    from grounding.sweep.outputs import write_table
    from grounding.sweep.run import plan_sweep, run_sweep
    from grounding.sweep.statistics import compute_statistics
    from grounding.sweep.tables import load_table
    from grounding.systems.registry import apply_preset
    from pipeline.config import load, merge, parse_assignments, read_section

    chosen = load_table(table)
    given = merge(read_section(config, "train"), parse_assignments(assignments or []))
    folder, evaluate = out or Path("sweeps") / table, load(EvaluateConfig, "evaluate", config, [])
    planned = plan_sweep(
        chosen,
        features,
        folder,
        lambda system: apply_preset(given, preset, system, features),
        evaluate,
        seeds,
    )
    log_to(folder / "log.txt")
    with show_sweep_progress() as watch:
        results = run_sweep(planned, watch)
    found = compute_statistics(planned, results)
    for warning in list_warnings(found):
        print_warning(warning.strip("*"))
    for path in write_table(found, folder):
        print_info(f"wrote {path}")
    for part in found["sections"]:
        show_section(found, part)
    if found["claims"]:
        show_claims(found)


@contextmanager
def show_sweep_progress() -> Iterator[Callable[[SweepProgress], None]]:
    """Two bars on a terminal, runs and steps over all of them; plain lines in the log, and on stderr elsewhere."""
    terminal = sys.stderr.isatty()
    lines = ProgressLines("sweep", "steps", None if terminal else sys.stderr)

    def in_lines(place: SweepProgress) -> None:
        lines.label = f"{place.activity} (run {min(place.finished_runs + 1, place.total_runs)} of {place.total_runs})"
        if place.total_steps:
            lines(place.finished_steps, place.total_steps)

    if not terminal:
        yield in_lines
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), speed_estimate_period=120) as bars:
        runs, steps = bars.add_task("runs", total=None), bars.add_task("steps", total=None)

        def watch(place: SweepProgress) -> None:
            bars.update(
                runs,
                completed=place.finished_runs,
                total=place.total_runs,
                description=place.activity,
            )
            bars.update(steps, completed=place.finished_steps, total=place.total_steps or None)
            in_lines(place)

        yield watch


def main() -> None:
    app()

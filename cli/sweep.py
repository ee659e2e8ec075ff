"""`stvg-sweep`: an ablation table, trained and evaluated over several seeds; resumable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from cli.console.progress import ProgressLines

if TYPE_CHECKING:
    from grounding.sweep.run import SweepProgress

app = new_app()

SPEED_PERIOD_SECONDS = 120
"""Period of the bar's speed estimate: evaluation pauses the steps for a while."""


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
            help="Folder for all runs and the table.",
            show_default="sweeps/TABLE",
        ),
    ] = None,
    table: Annotated[
        str,
        typer.Option(
            "--table",
            metavar="NAME",
            help="Ablation table: csdvl, cgstvg, cgstvg_context, cgstvg_thresholds, costa or "
            "systems.",
        ),
    ] = "csdvl",
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            metavar="N",
            help="Number of seeds for each variant. The first is the setting `seed`.",
        ),
    ] = 3,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="Preset that the variants change. Default: the preset of the store's data set.",
        ),
    ] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Train and evaluate all variants of an ablation table.

    The command can be stopped at any moment. Run it again to go on: finished runs are kept.

    --set takes keys of section 'train'. Section 'evaluate' of --config sets the evaluation.
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

    sweep_table = load_table(table)
    train_section = merge(read_section(config, "train"), parse_assignments(assignments or []))
    sweep_dir = out or Path("sweeps") / table
    evaluate_config = load(EvaluateConfig, "evaluate", config, [])

    def load_train_section(system: str) -> Mapping[str, Any]:
        return apply_preset(train_section, preset, system, features)

    # Plan and run.
    plan = plan_sweep(sweep_table, features, sweep_dir, load_train_section, evaluate_config, seeds)
    log_to(sweep_dir / "log.txt")
    with show_sweep_progress() as on_progress:
        scores = run_sweep(plan, on_progress)

    # Write and show the table.
    statistics = compute_statistics(plan, scores)
    for warning in list_warnings(statistics):
        print_warning(warning.strip("*"))
    for path in write_table(statistics, sweep_dir):
        print_info(f"wrote {path}")
    for section in statistics["sections"]:
        show_section(statistics, section)
    if statistics["claims"]:
        show_claims(statistics)


@contextmanager
def show_sweep_progress() -> Iterator[Callable[[SweepProgress], None]]:
    """Show the progress of a sweep while the context is open.

    A terminal has two bars, for runs and for steps of all runs. The log, and stderr outside a
    terminal, have plain lines.

    Yields:
        The callback of the sweep.
    """
    is_terminal = sys.stderr.isatty()
    lines = ProgressLines("sweep", "steps", None if is_terminal else sys.stderr)

    def write_line(progress: SweepProgress) -> None:
        run_number = min(progress.finished_runs + 1, progress.total_runs)
        lines.label = f"{progress.activity} (run {run_number} of {progress.total_runs})"
        if progress.total_steps:
            lines(progress.finished_steps, progress.total_steps)

    if not is_terminal:
        yield write_line
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
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, speed_estimate_period=SPEED_PERIOD_SECONDS) as bars:
        run_bar = bars.add_task("runs", total=None)
        step_bar = bars.add_task("steps", total=None)

        def update_bars(progress: SweepProgress) -> None:
            bars.update(
                run_bar,
                completed=progress.finished_runs,
                total=progress.total_runs,
                description=progress.activity,
            )
            bars.update(
                step_bar,
                completed=progress.finished_steps,
                total=progress.total_steps or None,
            )
            write_line(progress)

        yield update_bars


def main() -> None:
    """Run the command."""
    app()

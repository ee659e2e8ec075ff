"""`stvg-train`: training on a store, into a run directory with weights and curves; resumable.

On several GPUs: `torchrun --nproc-per-node N --no-python -- stvg-train …`. Without the `--`,
torchrun reads our `--run` as its own option.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

app = new_app()


@app.command()
@handle_errors
def train(
    features: Annotated[
        Path,
        typer.Option("--features", metavar="STORE", help="The store that stvg-extract filled."),
    ] = Path("store"),
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="DIR", help="Run directory to write.", show_default="runs/MODEL"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="System: csdvl, stvgformer, cgstvg or costa.",
            show_default="csdvl",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="Training settings: shapes, vidstg, hcstvg-v1 or hcstvg-v2. "
            "csdvl and stvgformer also have shapes-large. cgstvg also has vidstg-code, "
            "hcstvg-v1-code and hcstvg-v2-code, the settings of its released code. "
            "Default: the preset of the store's data set.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the stopped run in DIR. It is an error if there is no run.",
        ),
    ] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Train a system on cached features.

    Ctrl-C saves a checkpoint and stops. Run the same command again to go on.
    """
    from grounding.systems.registry import apply_preset, get_system
    from grounding.training.distributed import init_distributed
    from grounding.training.run_directory import lock_run_dir, prepare_run_dir
    from grounding.training.train import train as train_model
    from pipeline.config import merge, parse_assignments, read_section, validate

    # Merge file, --set and preset into the system's config.
    section = merge(read_section(config, "train"), parse_assignments(assignments or []))
    system = model or section.get("system", "csdvl")
    settings = validate(
        get_system(system).config_class,
        apply_preset(section, preset, system, features),
        "section 'train'",
    )
    run = run or Path("runs") / settings.system

    with init_distributed() as processes, lock_run_dir(run, processes):
        moved_run = prepare_run_dir(features, run, settings, resume, processes)
        if processes.is_main:
            log_to(run / "log.txt")
        if moved_run is not None:
            print_info(
                f"the run that was in {run} is now in {moved_run}; delete it when it is not needed"
            )

        # Only the main process shows progress.
        if processes.is_main:
            with show_progress("training", unit="steps") as advance:
                train_model(features, run, settings, advance, print_warning, processes)
            print_info(f"trained {run}")
        else:
            train_model(features, run, settings, _ignore_progress, print_warning, processes)


def _ignore_progress(done: int, total: int) -> None:
    """Show nothing; the callback of processes other than the main one."""


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()

"""`stvg-train`: a store → a run directory with weights, metrics, curves; resumable.

On several GPUs: `torchrun --nproc-per-node N --no-python -- stvg-train …`; without the `--` torchrun takes our `--run` for its own.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

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
            "--run", metavar="DIR", help="The run directory to write.", show_default="runs/MODEL"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="csdvl, stvgformer, cgstvg or costa.", show_default="csdvl"),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="shapes, vidstg, hcstvg-v1 or hcstvg-v2 (csdvl also shapes-large; cgstvg also vidstg-code, …: the released code's"
            " choices); by default the one of the store's data set.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the stopped run in DIR; an error if there is none."
        ),
    ] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
) -> None:
    """Train a system's transformers and heads on cached features. Ctrl-C saves first; the same command goes on."""
    from grounding.systems.registry import apply_preset, get_system
    from grounding.training.distributed import init_distributed
    from grounding.training.run_directory import lock_run_dir, prepare_run_dir
    from grounding.training.train import train as train_model
    from pipeline.config import merge, parse_assignments, read_section, validate

    given = merge(read_section(config, "train"), parse_assignments(assignments or []))
    system = model or given.get("system", "csdvl")
    settings = validate(
        get_system(system).config_class,
        apply_preset(given, preset, system, features),
        "section 'train'",
    )
    run = run or Path("runs") / settings.system
    with init_distributed() as processes, lock_run_dir(run, processes):
        moved = prepare_run_dir(features, run, settings, resume, processes)
        if processes.is_main:
            log_to(run / "log.txt")
        if moved is not None:
            print_info(
                f"the run that was in {run} is now in {moved}; delete it when it is not needed"
            )
        with (
            show_progress("training", unit="steps")
            if processes.is_main
            else nullcontext(lambda done, total: None) as advance
        ):
            train_model(features, run, settings, advance, print_warning, processes)
        if processes.is_main:
            print_info(f"trained {run}")


def main() -> None:
    app()


if __name__ == "__main__":
    main()

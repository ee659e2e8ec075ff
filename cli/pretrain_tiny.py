"""`stvg-pretrain-tiny`: training of the small encoders for `shapes`, on generated scenes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.console.app import Debug, Version, handle_errors, log, log_to, new_app, print_info
from cli.console.progress import show_progress

app = new_app()

LOG_EVERY = 100
"""Steps between two lines in the log."""


@app.command()
@handle_errors
def pretrain_tiny(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for appearance.safetensors, motion.safetensors and text.safetensors.",
        ),
    ],
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Seed of the scenes and of training.")
    ] = 1,
    scenes: Annotated[
        int,
        typer.Option(
            "--scenes",
            metavar="N",
            min=2,
            help="Scenes to generate. One tenth is held out for validation.",
        ),
    ] = 500,
    appearance_steps: Annotated[
        int,
        typer.Option(
            "--appearance-steps", metavar="N", min=1, help="Training steps, each of 32 frames."
        ),
    ] = 1100,
    motion_steps: Annotated[
        int,
        typer.Option(
            "--motion-steps", metavar="N", min=1, help="Training steps, each of 24 clips."
        ),
    ] = 800,
    text_steps: Annotated[
        int,
        typer.Option(
            "--text-steps", metavar="N", min=1, help="Training steps, each of 64 sentences."
        ),
    ] = 600,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            min=1,
            help="Processes that generate scenes.",
            show_default="number of cores",
        ),
    ] = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Train the small encoders.

    The default options reproduce the weights that come with the package.
    """
    from pipeline.pretrain import pretrain_tiny as pretrain

    steps = {"appearance": appearance_steps, "motion": motion_steps, "text": text_steps}
    total = scenes + sum(steps.values())

    # Units of the stages that are complete, and units of the current stage.
    num_finished = 0
    stage_total = 0

    log_to(out / "log.txt")
    with show_progress("pretraining") as advance:

        def on_progress(stage: str, done: int, stage_units: int) -> None:
            nonlocal num_finished, stage_total
            if done == 1:
                num_finished += stage_total
                stage_total = stage_units
            if done % LOG_EVERY == 0 or done == stage_units:
                log.info("%s: %d of %d", stage, done, stage_units)
            advance(num_finished + done, total)

        num_workers = workers or os.cpu_count() or 1
        report = pretrain(out, seed, scenes, steps, num_workers, on_progress)

    for name, value in report.items():
        print_info(f"{name}: {value:.3f} on held-out scenes")
    print_info(f"{out}: appearance, motion and text.safetensors")


def main() -> None:
    """Run the command."""
    app()

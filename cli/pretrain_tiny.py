"""`stvg-pretrain-tiny`: train the small backbones that `shapes` uses, on scenes drawn for it alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.console.app import Debug, handle_errors, log, log_to, new_app, print_info
from cli.console.progress import show_progress

app = new_app()
LOG_EVERY = 100


@app.command()
@handle_errors
def pretrain_tiny(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where appearance, motion and text.safetensors are written.",
        ),
    ],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of scenes and training.")] = 1,
    scenes: Annotated[
        int,
        typer.Option("--scenes", min=2, help="Scenes to draw; a tenth is held out to judge by."),
    ] = 500,
    appearance_steps: Annotated[
        int, typer.Option("--appearance-steps", min=1, help="Training steps of 32 frames.")
    ] = 1100,
    motion_steps: Annotated[
        int, typer.Option("--motion-steps", min=1, help="Training steps of 24 clips.")
    ] = 800,
    text_steps: Annotated[
        int, typer.Option("--text-steps", min=1, help="Training steps of 64 sentences.")
    ] = 600,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes that draw scenes.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Make small weights as the shipped ones were made; the defaults are theirs."""
    from pipeline.pretrain import pretrain_tiny as pretrain

    steps = {"appearance": appearance_steps, "motion": motion_steps, "text": text_steps}
    total, before, part = scenes + sum(steps.values()), 0, 0
    log_to(out / "log.txt")
    with show_progress("pretraining") as advance:

        def show(what: str, done: int, of: int) -> None:
            nonlocal before, part
            if done == 1:
                before, part = before + part, of
            if done % LOG_EVERY == 0 or done == of:
                log.info("%s: %d of %d", what, done, of)
            advance(before + done, total)

        report = pretrain(out, seed, scenes, steps, workers or os.cpu_count() or 1, show)
    for name, value in report.items():
        print_info(f"{name}: {value:.3f} on held-out scenes")
    print_info(f"{out}: appearance, motion and text.safetensors")


def main() -> None:
    app()

"""`stvg-train`: a store → a run directory with weights, metrics, curves; resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.app import Assignments, ConfigFile, Debug, guarded, log_to, new_app, say
from cli.progress import progress

app = new_app()


@app.command()
@guarded
def train(
    features: Annotated[Path, typer.Option("--features", metavar="STORE", help="The store that stvg-extract filled.")] = Path("store"),
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="The run directory to write.")] = Path("runs/csdvl"),
    model: Annotated[str, typer.Option("--model", help="csdvl.")] = "csdvl",
    preset: Annotated[
        str | None, typer.Option("--preset", help="shapes, vidstg, hcstvg-v1 or hcstvg-v2; by default the one of the store's data set.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the stopped run in DIR; an error if there is none.")] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
) -> None:
    """Train the two streams, the collaboration block and the heads on cached features."""
    from grounding.presets import preset as preset_of
    from grounding.train import TrainConfig, open_run, sole_writer
    from grounding.train import train as train_model
    from pipeline.config import merge, parse_assignments, read_section, validate
    from pipeline.errors import InputError
    from pipeline.store import Store

    if model != "csdvl":
        raise InputError(f"--model {model!r} is not known; csdvl is")
    section = read_section(config, "train")
    written = section.pop("preset", None)
    named = preset or written or Store(features).manifest.dataset
    values = merge(merge(preset_of(named), section), parse_assignments(assignments or []))
    settings = validate(TrainConfig, values, "section 'train'")
    with sole_writer(run):
        open_run(features, run, settings, resume)
        log_to(run / "log.txt")
        with progress("training", unit="steps") as advance:
            train_model(features, run, settings, advance)
    say(f"trained {run}")


def main() -> None:
    app()

"""`stvg-report`: a judged run → a folder with `index.html` that opens offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.app import Assignments, ConfigFile, Debug, guarded, log_to, new_app, say
from cli.progress import progress

if TYPE_CHECKING:
    from grounding.report_strips import FramesOf

app = new_app()


@app.command()
@guarded
def report(
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="The run to show; stvg-eval must have judged it.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    features: Annotated[Path, typer.Option("--features", metavar="STORE", help="The store whose index holds the truth.")] = Path("store"),
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="What the index's video paths are relative to, if it has moved.")
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option("--sweep", metavar="DIR", help="A finished stvg-sweep, whose table and curves are shown too."),
    ] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
) -> None:
    """Write a page with the metrics, the training curves, pictures of tubes and every query."""
    from grounding.exam import of_split, read_index
    from grounding.judge import read_metrics, read_predictions
    from grounding.metrics import read_scores
    from grounding.report import ReportConfig, write_report
    from pipeline.config import load
    from pipeline.store import Store

    settings = load(ReportConfig, "report", config, assignments or [])
    metrics = read_metrics(run / "metrics.json")
    log_to(run / "log.txt")
    queries, tracks = read_index(features / "index.jsonl")
    answers = read_predictions(run / "predictions" / f"{settings.split}.jsonl")
    scores = read_scores(run / "scores" / f"{settings.split}.json")
    videos = frames_under(root or Path(Store(features).manifest.root))
    with progress("drawing", unit="queries") as advance:
        chosen = of_split(queries, settings.split)
        page = write_report(run, out, chosen, tracks, answers, scores, metrics, videos, advance, strip_count=settings.strips, sweep=sweep)
    say(f"wrote {page}")


def frames_under(root: Path) -> FramesOf:
    """How the report gets its pictures: frames of the videos under `root`, RGB uint8 `[H, W, 3]`."""
    from pipeline.decode import open_frames, probe
    from pipeline.errors import VideoError

    def frames_of(path: str, numbers: Any) -> list[Any]:
        facts = probe(root / path)
        if numbers[-1] >= facts.frame_count:
            raise VideoError("decode", "changed", f"{root / path} has {facts.frame_count} frames, the index says more")
        with open_frames(root / path, facts, numbers) as frames:
            return [picture for _, picture in frames]

    return frames_of


def main() -> None:
    app()

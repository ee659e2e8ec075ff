"""`stvg-report`: a judged run → a folder with `index.html` that opens offline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console.app import (
    Assignments,
    ConfigFile,
    Debug,
    handle_errors,
    log_to_run,
    new_app,
    print_info,
    print_warning,
)
from cli.console.progress import show_progress

if TYPE_CHECKING:
    from grounding.report.build import ReportConfig
    from grounding.visualization.attention_maps import AttentionRecorder
    from grounding.visualization.video_source import VideoOpener, VideoSource

app = new_app()


@app.command()
@handle_errors
def report(
    run: Annotated[
        Path,
        typer.Option(
            "--run", metavar="DIR", help="The run to show; stvg-eval must have judged it."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="DIR",
            help="Another run that stvg-eval judged, shown beside the first.",
        ),
    ] = None,
    features: Annotated[
        Path,
        typer.Option("--features", metavar="STORE", help="The store whose index holds the truth."),
    ] = Path("store"),
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help="What the index's video paths are relative to, if it has moved.",
        ),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(
            "--sweep",
            metavar="DIR",
            help="A finished stvg-sweep, whose table and curves are shown too.",
        ),
    ] = None,
    figures: Annotated[
        bool,
        typer.Option(
            "--figures",
            help="Add figures for papers, of a few telling queries: OUT/figures, PNG and PDF.",
        ),
    ] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
) -> None:
    """Write a page with the metrics, the curves, and every query's video with its tubes and what the network saw."""
    from grounding.evaluation.ground_truth import load_ground_truth
    from grounding.evaluation.results import RunResults, load_run_pair
    from grounding.report.build import ReportConfig, write_report
    from pipeline.config import load
    from pipeline.store import Store

    settings = load(ReportConfig, "report", config, assignments or [])
    runs = (
        [RunResults.from_run(run, settings.split)]
        if compare is None
        else [*load_run_pair(run, compare, settings.split)]
    )
    log_to_run(run)
    exam = load_ground_truth(features / "index.jsonl", settings.split)
    footage = make_video_opener(root or Path(Store(features).manifest.root))
    witnesses = build_attention_recorders([one.path for one in runs], features, settings)
    print_info(
        f"wrote {write_report(out, exam, runs, footage, settings, witnesses, sweep, show_progress)}"
    )
    if figures:
        from grounding.report.figures import FIGURES_DIR, write_figures

        with show_progress("drawing figures", unit="queries") as advance:
            troubles = write_figures(out, exam, runs, footage, witnesses, advance)
        for trouble in troubles:
            print_warning(f"figures, query {trouble}")
        print_info(f"wrote {out / FIGURES_DIR}")


def build_attention_recorders(
    runs: Sequence[Path], store: Path, settings: ReportConfig
) -> list[AttentionRecorder]:
    """The runs' networks, to be asked what they see; none where that is not wanted."""
    from grounding.visualization.attention_maps import AttentionRecorder
    from pipeline.errors import StvgError

    if not settings.attention_maps:
        return []
    try:
        return [
            AttentionRecorder.from_run(run, store, settings.split, settings.device) for run in runs
        ]
    except StvgError as error:
        raise type(error)(
            f"{error}; or leave out what the networks saw, with --set attention_maps=false"
        ) from None


def make_video_opener(root: Path) -> VideoOpener:
    """How the report gets its pictures: from the videos under `root`."""
    from grounding.visualization.video_source import VideoSource
    from pipeline.video import open_frames, probe

    def footage_of(path: str) -> VideoSource:
        facts = probe(root / path)
        about = facts.path.stat()

        def read(numbers: Sequence[int]) -> Iterator[Any]:
            with open_frames(facts.path, facts, numbers) as frames:
                for _, picture in frames:
                    yield picture

        return VideoSource(path, facts.edges, f"{about.st_size}-{about.st_mtime_ns}", read)

    return footage_of


def main() -> None:
    app()

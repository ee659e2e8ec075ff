"""`stvg-report`: report of an evaluated run, a folder with a page that opens offline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console.app import (
    Assignments,
    ConfigFile,
    Debug,
    Version,
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
        typer.Option("--run", metavar="DIR", help="Run directory that stvg-eval has evaluated."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="DIR",
            help="Another run that stvg-eval has evaluated, shown beside the first.",
        ),
    ] = None,
    features: Annotated[
        Path,
        typer.Option(
            "--features", metavar="STORE", help="Store whose index holds the ground truth."
        ),
    ] = Path("store"),
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help="Folder of the videos, if it has moved since extraction.",
        ),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(
            "--sweep",
            metavar="DIR",
            help="Folder of a finished stvg-sweep. Its table and curves are shown too.",
        ),
    ] = None,
    figures: Annotated[
        bool,
        typer.Option(
            "--figures",
            help="Also draw figures for papers of a few selected queries: OUT/figures, PNG and "
            "PDF.",
        ),
    ] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Write a page with metrics, learning curves, and each query's video.

    The videos show the tubes and the attention maps of the model.
    """
    from grounding.evaluation.ground_truth import load_ground_truth
    from grounding.evaluation.results import RunResults, load_run_pair
    from grounding.report.build import ReportConfig, write_report
    from pipeline.config import load
    from pipeline.store import Store

    settings = load(ReportConfig, "report", config, assignments or [])

    # Load the results of the runs; errors come before the log is opened.
    if compare is None:
        runs = [RunResults.from_run(run, settings.split)]
    else:
        runs = list(load_run_pair(run, compare, settings.split))
    log_to_run(run)

    ground_truth = load_ground_truth(features / "index.jsonl", settings.split)
    open_video = make_video_opener(root or Path(Store(features).manifest.root))
    run_paths = [run_results.path for run_results in runs]
    recorders = build_attention_recorders(run_paths, features, settings)

    page = write_report(
        out, ground_truth, runs, open_video, settings, recorders, sweep, show_progress
    )
    print_info(f"wrote {page}")

    if figures:
        from grounding.report.figures import FIGURES_DIR, write_figures

        with show_progress("drawing figures", unit="queries") as advance:
            problems = write_figures(out, ground_truth, runs, open_video, recorders, advance)
        for problem in problems:
            print_warning(f"figures, query {problem}")
        print_info(f"wrote {out / FIGURES_DIR}")


def build_attention_recorders(
    runs: Sequence[Path], store: Path, settings: ReportConfig
) -> list[AttentionRecorder]:
    """Load the models of the runs, for attention maps and temporal scores.

    Args:
        runs: Run directories.
        store: Store with the features.
        settings: Section `report`.

    Returns:
        A recorder for each run; empty if the settings turn attention maps off.

    Raises:
        StvgError: A model or the store cannot be used.
    """
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
            f"{error}; or leave out the attention maps with --set attention_maps=false"
        ) from None


def make_video_opener(root: Path) -> VideoOpener:
    """Make the function that opens videos for the report.

    Args:
        root: Folder that the index's video paths are relative to.

    Returns:
        A function from a video path to its source of frames.
    """
    from grounding.visualization.video_source import VideoSource
    from pipeline.video import open_frames, probe

    def open_video(path: str) -> VideoSource:
        info = probe(root / path)
        stat = info.path.stat()

        def read_frames(frame_indices: Sequence[int]) -> Iterator[Any]:
            with open_frames(info.path, info, frame_indices) as frames:
                for _, image in frames:
                    yield image

        # Size and time of the file tell cached images of another version apart.
        file_version = f"{stat.st_size}-{stat.st_mtime_ns}"
        return VideoSource(path, info.edges, file_version, read_frames)

    return open_video


def main() -> None:
    """Run the command."""
    app()

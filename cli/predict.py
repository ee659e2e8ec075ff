"""`stvg-predict`: tubes for sentences about one video, as JSON or drawn on the video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from grounding.predictor.grounder import Grounder
    from grounding.predictor.results import GroundingResult, QueryResult

app = new_app()


@app.command()
@handle_errors
def predict(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="The video.")],
    sentences: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='"SENTENCE"…',
            help="Sentences that describe events. Quote each sentence.",
            show_default=False,
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries", metavar="FILE", help="Text file with more sentences, one per line."
        ),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            metavar="DIR",
            help="Run directory of the model. Repeat for an ensemble.",
            show_default="runs/shapes",
        ),
    ] = None,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="OUT",
            help="Write the tubes to this JSON file. Without it, a table is printed.",
        ),
    ] = None,
    video_out: Annotated[
        Path | None,
        typer.Option(
            "--video",
            metavar="OUT.mp4",
            help="Write the video with the tube drawn on it. Several sentences write OUT-1.mp4, "
            "OUT-2.mp4, and so on.",
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option(
            "--top",
            metavar="N",
            min=1,
            help="Maximum number of tubes per sentence, each of another event. A window gives "
            "one tube.",
        ),
    ] = 1,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            metavar="DIR",
            help="Keep the video's features in this folder, so that further sentences about the "
            "video need no decoding.",
        ),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            "--window",
            metavar="SECONDS",
            help="A longer video is processed in windows of this length. Default: the length of "
            "the run's training segments.",
        ),
    ] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Find when and where in a video the event of each sentence happens.

    --config and --set take these keys of section 'evaluate': frames, batch, device,
    refine_boundaries, subframe_boundaries.
    """
    from grounding.systems.provenance import read_provenance
    from pipeline.video.container import check_regular_file
    from pipeline.video.process_decoder import ProcessDecoder

    # Check the paths first: importing the models' libraries takes seconds.
    runs = run or [Path("runs/shapes")]
    check_regular_file(video)
    for run_dir in runs:
        read_provenance(run_dir)
    file_sentences = read_sentences(queries) if queries is not None else []

    # The decoder's process starts while libraries and models are loaded.
    with ProcessDecoder() as decoder:
        from grounding.evaluation.config import EvaluateConfig
        from grounding.predictor.grounder import Grounder, validate_sentences
        from pipeline.config import load
        from pipeline.io.jsonl import write_json

        # Check all other inputs before a model is loaded.
        texts = validate_sentences([*(sentences or ()), *file_sentences])
        video_paths = build_drawing_paths(video_out, video, len(texts))
        settings = load(EvaluateConfig, "evaluate", config, assignments or [])

        grounder = Grounder(
            *runs,
            device=settings.device,
            num_frames=settings.frames,
            batch_size=settings.batch,
            refine_boundaries=settings.refine_boundaries,
            subframe_boundaries=settings.subframe_boundaries,
            window_seconds=window,
            decoder=decoder,
        )
        log_to_run(runs[0])

        warning = grounder.domain_warning(video)
        if warning:
            print_warning(warning)
        result = ground_sentences(grounder, video, texts, top, keep)

    if json_out is not None:
        write_json(json_out, result.model_dump(mode="json"))
        print_info(f"wrote {json_out}")
    else:
        print_result(result)

    for index, path in enumerate(video_paths):
        draw_result(path, video, result.queries[index])


def ground_sentences(
    grounder: Grounder, video: Path, texts: list[str], top: int, cache_dir: Path | None
) -> GroundingResult:
    """Ground sentences in a video, with progress displays.

    Args:
        grounder: The models.
        video: The video.
        texts: Sentences.
        top: Maximum number of tubes per sentence.
        cache_dir: Folder that keeps the video's features; None to keep nothing.

    Returns:
        The tubes of each sentence.
    """
    with show_progress("decoding", unit="frames") as advance:
        if cache_dir is None:
            return grounder.ground(video, texts, top, advance)
        features = grounder.encode_video(video, cache_dir, advance)

    with show_progress("predicting", unit="windows") as advance:
        return grounder.ground_encoded(features, texts, top, advance)


def read_sentences(path: Path) -> list[str]:
    """Read the sentences of a text file.

    Args:
        path: UTF-8 text file with one sentence per line.

    Returns:
        The lines, without blank ones.

    Raises:
        InputError: The file cannot be read.
    """
    from pipeline.errors import InputError

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(
            f"--queries {path} cannot be read ({reason}): give a text file with one sentence per"
            " line"
        ) from None
    return [line for line in text.splitlines() if line.strip()]


def build_drawing_paths(out: Path | None, video: Path, count: int) -> list[Path]:
    """Return the video file to write for each sentence.

    Args:
        out: Value of `--video`; None for no files.
        video: The input video.
        count: Number of sentences.

    Returns:
        `out` itself for one sentence, or `out` with a number from 1 for each of several.

    Raises:
        InputError: `out` is not an .mp4 file, or would overwrite the input video.
    """
    from pipeline.errors import InputError

    if out is None:
        return []
    if out.suffix.lower() != ".mp4":
        raise InputError(f"--video {out} must end in .mp4: no other format is written")

    if count == 1:
        paths = [out]
    else:
        paths = [
            out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, count + 1)
        ]

    for path in paths:
        if path.resolve() == video.resolve():
            raise InputError(f"--video {out} would overwrite the input video: give another file")
    return paths


def print_result(result: GroundingResult) -> None:
    """Print the tubes as a table on stdout.

    Args:
        result: Tubes of each sentence.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("sentence", "seconds", "frames", "score", "box in the middle")
    for query in result.queries:
        for rank, tube in enumerate((query, *query.others)):
            # The sentence stands only beside its first tube.
            text = query.text if rank == 0 else ""
            begin_seconds, end_seconds = tube.span_seconds
            begin, end = tube.span_frames

            middle_box = tube.boxes[len(tube.boxes) // 2]
            x1, y1, x2, y2 = (round(coordinate) for coordinate in middle_box[1:])
            table.add_row(
                Text(text),
                f"{begin_seconds:.2f}–{end_seconds:.2f}",
                f"[{begin}, {end})",
                f"{tube.score:.3f}",
                Text(f"({x1}, {y1})–({x2}, {y2})"),
            )
    Console().print(table)


def draw_result(out: Path, video: Path, result: QueryResult) -> None:
    """Write the video with a tube drawn on it.

    The frames are decoded again.

    Args:
        out: The .mp4 file to write.
        video: The input video.
        result: Tube of one sentence.
    """
    from grounding.visualization.tube_video import LabeledTube, draw_tube
    from pipeline.video import open_frames, probe

    info = probe(video)
    boxes = {frame: (x1, y1, x2, y2) for frame, x1, y1, x2, y2 in result.boxes}
    tube = LabeledTube(result.text, result.span_frames, boxes)

    with (
        show_progress(f"drawing {out.name}", unit="frames") as advance,
        open_frames(info.path, info, range(info.frame_count)) as frames,
    ):
        images = (image for _, image in frames)
        draw_tube(out, images, info.edges, info.size, tube, advance)
    print_info(f"wrote {out}")


def main() -> None:
    """Run the command."""
    app()

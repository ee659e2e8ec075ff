"""`stvg-predict`: one video and sentences about it → tubes as JSON, and the video with each tube drawn on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from grounding.predictor.grounder import Grounder
    from grounding.predictor.results import GroundingResult, QueryResult

app = new_app()


@app.command()
@handle_errors
def predict(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="The video to look in.")],
    sentences: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='"SENTENCE"…', help="What to look for; quote each sentence.", show_default=False
        ),
    ] = None,
    queries: Annotated[
        Path | None, typer.Option("--queries", metavar="FILE", help="More sentences, one per line.")
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            metavar="DIR",
            help="The run whose model answers, by default runs/shapes; given again, an ensemble.",
        ),
    ] = None,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="OUT", help="Write the tubes here; without it a table is shown."
        ),
    ] = None,
    video_out: Annotated[
        Path | None,
        typer.Option(
            "--video",
            metavar="OUT.mp4",
            help="Draw the tube on the video (several sentences: OUT-1.mp4, OUT-2.mp4…).",
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option(
            "--top",
            min=1,
            help="Tubes per sentence, of different events, at most; a window gives one.",
        ),
    ] = 1,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            metavar="DIR",
            help="Keep the video's features here: further sentences about it need not decode it again.",
        ),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            "--window",
            metavar="SECONDS",
            help="A longer video is looked at in windows of this length, by default as long as what the run was trained on.",
        ),
    ] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
) -> None:
    """Say when what a sentence describes happens in a video, and where.

    --config and --set: frames, batch, device, refine and between of section 'evaluate'.
    """
    from pipeline.video.process_decoder import ProcessDecoder

    with ProcessDecoder() as decoder:  # it starts while libraries and networks are loaded
        from grounding.evaluation.config import EvaluateConfig
        from grounding.predictor.grounder import Grounder, validate_sentences
        from pipeline.config import load
        from pipeline.io.jsonl import write_json

        texts = validate_sentences(
            [*(sentences or ()), *(read_sentences(queries) if queries is not None else ())]
        )
        drawings = drawing_paths(video_out, video, len(texts))
        settings = load(EvaluateConfig, "evaluate", config, assignments or [])
        runs = run or [Path("runs/shapes")]
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
        if doubt := grounder.domain_warning(video):
            print_warning(doubt)
        answers = ground_sentences(grounder, video, texts, top, keep)
    if json_out is not None:
        write_json(json_out, answers.model_dump(mode="json"))
        print_info(f"wrote {json_out}")
    else:
        print_result(answers)
    for number, drawing in enumerate(drawings):
        draw_result(drawing, video, answers.queries[number])


def ground_sentences(
    grounder: Grounder, video: Path, texts: list[str], top: int, cache_dir: Path | None
) -> GroundingResult:
    """The answers, while a bar shows what is looked at, and where features are kept also what is answered."""
    with show_progress("looking", unit="frames") as advance:
        if cache_dir is None:
            return grounder.ground(video, texts, top, advance)
        seen = grounder.encode_video(video, cache_dir, advance)
    with show_progress("answering", unit="windows") as advance:
        return grounder.ground_encoded(seen, texts, top, advance)


def read_sentences(path: Path) -> list[str]:
    """The sentences of a file, one per line; blank lines are passed over."""
    from pipeline.errors import InputError

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(
            f"--queries {path} cannot be read ({reason}): name a text file with one sentence per line"
        ) from None
    return [line for line in text.splitlines() if line.strip()]


def drawing_paths(out: Path | None, video: Path, count: int) -> list[Path]:
    """Where each sentence's video goes: `out` itself, or numbered from 1; the video that is asked about is never overwritten."""
    from pipeline.errors import InputError

    if out is None:
        return []
    if out.suffix.lower() != ".mp4":
        raise InputError(f"--video {out} must end in .mp4: that is what is written")
    paths = (
        [out]
        if count == 1
        else [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, count + 1)]
    )
    for path in paths:
        if path.resolve() == video.resolve():
            raise InputError(
                f"--video {out} would overwrite the video that is asked about: name another file"
            )
    return paths


def print_result(result: GroundingResult) -> None:
    """The answers as a table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("sentence", "seconds", "frames", "score", "box in the middle")
    for answer in result.queries:
        for text, tube in ((answer.text, answer), *(("", other) for other in answer.others)):
            begin, end = tube.span_frames
            x1, y1, x2, y2 = (round(side) for side in tube.boxes[len(tube.boxes) // 2][1:])
            seconds = "{:.2f}–{:.2f}".format(*tube.span_seconds)
            table.add_row(
                Text(text),
                seconds,
                f"[{begin}, {end})",
                f"{tube.score:.3f}",
                Text(f"({x1}, {y1})–({x2}, {y2})"),
            )
    Console().print(table)


def draw_result(out: Path, video: Path, result: QueryResult) -> None:
    """The video with an answer drawn on it, its frames read once more."""
    from grounding.visualization.draw_tube import LabeledTube, draw_tube
    from pipeline.video import open_frames, probe

    facts = probe(video)
    tube = LabeledTube(
        result.text,
        result.span_frames,
        {frame: (x1, y1, x2, y2) for frame, x1, y1, x2, y2 in result.boxes},
    )
    with (
        show_progress(f"drawing {out.name}", unit="frames") as advance,
        open_frames(facts.path, facts, range(facts.frame_count)) as frames,
    ):
        draw_tube(out, (picture for _, picture in frames), facts.edges, facts.size, tube, advance)
    print_info(f"wrote {out}")


def main() -> None:
    app()

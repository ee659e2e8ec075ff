"""`stvg-eval`: a run's model, or a file of predictions, against the truth → metrics and a per-query table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console.app import (
    Assignments,
    ConfigFile,
    Debug,
    handle_errors,
    log,
    log_to,
    new_app,
    print_info,
    print_warning,
)
from cli.console.progress import show_progress

if TYPE_CHECKING:
    from grounding.evaluation.config import EvaluateConfig
    from grounding.evaluation.ground_truth import GroundTruth
    from grounding.metrics.bootstrap import Difference
    from grounding.metrics.scores import Score
    from pipeline.records import Prediction

app = new_app()


@app.command()
@handle_errors
def evaluate(
    run: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            metavar="DIR",
            help="A run: its model answers, and results are written there. Given again, an ensemble: results are only shown; see --save.",
        ),
    ] = None,
    features: Annotated[
        Path,
        typer.Option(
            "--features", metavar="STORE", help="The store with the run's features and the truth."
        ),
    ] = Path("store"),
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            metavar="FILE",
            help="What to judge by: an index with `tracks.npz` beside it, or the HC-STVG challenge's .json.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="FILE",
            help="Tubes, one JSON object per line, or the challenge's .json.",
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol", help="How tubes are judged: every-frame, official, tubedetr or stcat."
        ),
    ] = "every-frame",
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="DIR|FILE",
            help="Another run that stvg-eval judged, or its predictions.",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="OUT",
            help="Write what runs answer here too: --predictions and --compare read it.",
        ),
    ] = None,
    challenge: Annotated[
        Path | None,
        typer.Option(
            "--challenge", metavar="OUT", help="Write the tubes as the challenge's .json."
        ),
    ] = None,
    cvat: Annotated[
        Path | None,
        typer.Option(
            "--cvat",
            metavar="DIR",
            help="Write tubes and truth as CVAT's tracks, a file per video, into a new folder.",
        ),
    ] = None,
    fiftyone: Annotated[
        Path | None,
        typer.Option(
            "--fiftyone",
            metavar="DIR",
            help="Write tubes and truth as a FiftyOne data set into a new folder.",
        ),
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the metrics here too.")
    ] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
) -> None:
    """Judge predicted tubes: m_vIoU, m_tIoU, m_sIoU, vIoU@R with intervals, beside two baselines and published results.

    A run's own files are always judged by every-frame.
    """
    from cli.console.evaluate_tables import show_differences, show_metrics, show_published
    from cli.console.exports import check_exports, read_scored_predictions, write_exports
    from grounding.evaluation.config import EvaluateConfig
    from grounding.evaluation.evaluate import evaluate, missing_predictions
    from grounding.evaluation.ground_truth import load_ground_truth, read_tubes
    from grounding.evaluation.hcstvg_challenge import write_challenge
    from grounding.evaluation.results import write_results
    from grounding.metrics.protocols import check_protocol
    from grounding.structures.tubes import Tubes
    from pipeline.config import load
    from pipeline.errors import InputError
    from pipeline.io.jsonl import write_json, write_jsonl

    check_protocol(protocol)
    runs = run or []
    if bool(runs) == (predictions is not None):
        raise InputError(
            "name either a run (--run DIR) or a file of predictions (--predictions FILE --truth FILE)"
        )
    if save is not None and not runs:
        raise InputError(
            f"--save {save} writes what runs answer: name a run (--run DIR), or leave it out"
        )
    settings = load(EvaluateConfig, "evaluate", config, assignments or [])
    if runs:
        from grounding.systems.checkpoint import (
            read_provenance,
        )  # takes torch, which files alone need not wait for

        for one in runs:
            read_provenance(one)  # before the log file, which would make the folder
    if len(runs) == 1:
        log_to(runs[0] / "log.txt")
    check_no_overwrite([truth, predictions, compare], [json_out, challenge, save])
    if predictions is not None and truth is None and not (features / "index.jsonl").exists():
        raise InputError(
            "name what to judge by: --truth FILE, an index (tracks.npz beside it) or the challenge's .json"
        )
    exam = load_ground_truth(
        truth or features / "index.jsonl", settings.split, settings.first_frame
    )
    check_protocol(protocol, exam.true_tubes)
    check_exports(exam, cvat, fiftyone)
    if runs:
        answers = predict_runs(runs, features, settings, exam)
        tubes = Tubes.from_predictions(answers)
        if len(runs) == 1:
            write_results(
                runs[0], settings.split, answers, *evaluate(exam, tubes, seed=settings.seed)
            )
        if save is not None:
            write_jsonl(save, answers)
            print_info(f"wrote {len(answers)} tubes to {save}")
    else:
        tubes = read_tubes(predictions or Path(), settings.first_frame)
    if predictions is not None and (missing := missing_predictions(exam, tubes)):
        print_warning(
            f"{len(missing)} of {len(exam.true_tubes.tubes)} queries have no prediction, for example {missing[0]!r}: they score 0, "
            "but protocol stcat leaves them out of its means"
        )
    scores, metrics = evaluate(exam, tubes, protocol, settings.seed)
    differences = (
        {} if compare is None else compute_differences(compare, exam, scores, protocol, settings)
    )
    if challenge is not None:
        write_challenge(challenge, tubes, settings.first_frame)
        print_info(f"wrote {len(tubes)} tubes to {challenge}")
    write_exports(
        cvat,
        fiftyone,
        exam,
        tubes,
        scores,
        answers if runs else read_scored_predictions(predictions),
    )
    if json_out is not None:
        found = {f"{name}_difference": asdict(one) for name, one in differences.items()}
        write_json(json_out, {**metrics, **found, "protocol": protocol})
    log.info("protocol %s, metrics %s", protocol, json.dumps(metrics))
    title = (
        f"{', '.join(map(str, runs)) or predictions}, split {settings.split}"
        if exam.queries
        else str(predictions)
    )
    show_metrics(f"{title}, protocol {protocol}", metrics, scores, exam.queries)
    if differences:
        show_differences(f"compared with {compare}", differences)
    show_published(exam, tubes, protocol, settings.split, scores)


def compute_differences(
    other_run: Path,
    ground_truth: GroundTruth,
    scores: Sequence[Score],
    protocol: str,
    settings: EvaluateConfig,
) -> dict[str, Difference]:
    """These scores against those of another run that was judged, or of its predictions."""
    from grounding.evaluation.evaluate import score_predictions
    from grounding.evaluation.ground_truth import read_tubes
    from grounding.metrics.bootstrap import compare_paired
    from pipeline.errors import InputError

    other = (
        other_run / "predictions" / f"{settings.split}.jsonl" if other_run.is_dir() else other_run
    )
    if not other.exists():
        raise InputError(
            f"{other} does not exist: --compare needs a run that stvg-eval has judged, or a file of predictions"
        )
    return compare_paired(
        scores,
        score_predictions(ground_truth, read_tubes(other, settings.first_frame), protocol),
        ground_truth.video_by_query,
        settings.seed,
    )


def check_no_overwrite(inputs: Sequence[Path | None], outputs: Sequence[Path | None]) -> None:
    """InputError where a file to write is one of those to read."""
    from pipeline.errors import InputError

    read = {path.resolve() for path in inputs if path is not None}
    for path in outputs:
        if path is not None and path.resolve() in read:
            raise InputError(
                f"{path} is read, and would be written over: name another file to write"
            )


def predict_runs(
    runs: Sequence[Path], store: Path, settings: EvaluateConfig, ground_truth: GroundTruth
) -> list[Prediction]:
    """What the runs' models answer; queries that the store has no features of score 0, and their videos are named."""
    from grounding.evaluation.evaluate import predict_split

    with show_progress("answering", unit="queries") as advance:
        answers, missing = predict_split(runs, store, settings, advance)
    if missing:
        videos = sorted({query.video for query in ground_truth.queries if query.id in set(missing)})
        named = ", ".join(videos[:20]) + (
            f" and {len(videos) - 20} more" if len(videos) > 20 else ""
        )
        count = f"{len(missing)} of {len(ground_truth.queries)} queries score 0"
        print_warning(
            f"{count}: store {store} has no features of video {named}; {store / 'failures.jsonl'} says why"
        )
        log.warning("queries without features: %s", ", ".join(missing))
    return answers


def main() -> None:
    app()

"""What `stvg-eval` writes for other tools, and how it says what to do with it. Import inside command bodies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cli.console.app import print_info, print_warning
from cli.console.progress import show_progress
from grounding.evaluation.ground_truth import GroundTruth
from grounding.exchange.annotated_videos import (
    check_has_queries,
    check_output_dir,
    iterate_annotated_videos,
)
from grounding.exchange.cvat import write_cvat_folder
from grounding.exchange.fiftyone import write_fiftyone
from grounding.metrics.scores import Score
from grounding.structures.tubes import Tubes
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Prediction


def check_exports(ground_truth: GroundTruth, cvat: Path | None, fiftyone: Path | None) -> None:
    """InputError, before any model answers, where what is asked for cannot be written."""
    for option, out in (("--cvat", cvat), ("--fiftyone", fiftyone)):
        if out is not None:
            check_has_queries(ground_truth, option)
            check_output_dir(out)


def write_exports(
    cvat: Path | None,
    fiftyone: Path | None,
    ground_truth: GroundTruth,
    tubes: Tubes,
    scores: Sequence[Score],
    predictions: Iterable[Prediction],
) -> None:
    """CVAT's files, FiftyOne's data set, or both; `answers` are the tubes with the model's confidence, where it is known."""
    if cvat is None and fiftyone is None:
        return
    videos = list(
        iterate_annotated_videos(
            ground_truth, tubes, scores, {answer.id: answer.score for answer in predictions}
        )
    )
    if cvat is not None:
        with show_progress("writing for CVAT", unit="videos") as advance:
            boxless = write_cvat_folder(cvat, videos, advance)
        print_info(
            f"wrote the tracks of {len(videos)} videos to {cvat}; labels.json holds the labels for the 'Raw' tab of a new task"
        )
        if boxless:
            print_warning(
                f"{boxless} tubes have no box in their video, and CVAT has no tracks without any: they are not in {cvat}"
            )
    if fiftyone is not None:
        with show_progress("writing for FiftyOne", unit="videos") as advance:
            write_fiftyone(fiftyone, videos, advance)
        call = f"fiftyone.Dataset.from_dir({str(fiftyone)!r}, fiftyone.types.FiftyOneDataset, rel_dir=ROOT)"
        print_info(
            f"wrote {len(videos)} videos to {fiftyone}: {call}, with the folder of the data set as ROOT"
        )


def read_scored_predictions(predictions: Path | None) -> Iterable[Prediction]:
    """A file's predictions; none where it is the challenge's, which says nothing of confidence."""
    return (
        ()
        if predictions is None or predictions.suffix == ".json"
        else read_jsonl(predictions, Prediction)
    )

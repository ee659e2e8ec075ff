"""Exports of `stvg-eval` for annotation tools. Import inside command bodies."""

from __future__ import annotations

from pathlib import Path

from cli.console.app import print_info, print_warning
from cli.console.progress import show_progress
from grounding.evaluation.ground_truth import GroundTruth
from grounding.evaluation.run import EvaluationReport
from grounding.exchange.annotated_videos import (
    check_has_queries,
    check_output_dir,
    iterate_annotated_videos,
)
from grounding.exchange.cvat import write_cvat_folder
from grounding.exchange.fiftyone import write_fiftyone


def check_exports(ground_truth: GroundTruth, cvat: Path | None, fiftyone: Path | None) -> None:
    """Check before any prediction that the exports can be written.

    Args:
        ground_truth: Ground truth of the split.
        cvat: Folder for CVAT; None for no export.
        fiftyone: Folder for FiftyOne; None for no export.

    Raises:
        InputError: A folder is not empty, or the ground truth names no videos.
    """
    for option, out in (("--cvat", cvat), ("--fiftyone", fiftyone)):
        if out is not None:
            check_has_queries(ground_truth, option)
            check_output_dir(out)


def write_exports(report: EvaluationReport, cvat: Path | None, fiftyone: Path | None) -> None:
    """Write predictions and ground truth for CVAT and for FiftyOne.

    Args:
        report: Report of the evaluation.
        cvat: Folder for CVAT; None for no export.
        fiftyone: Folder for FiftyOne; None for no export.
    """
    if cvat is None and fiftyone is None:
        return

    confidences = {
        prediction.id: prediction.score for prediction in report.load_scored_predictions()
    }
    videos = list(
        iterate_annotated_videos(report.ground_truth, report.tubes, report.scores, confidences)
    )

    if cvat is not None:
        with show_progress("writing for CVAT", unit="videos") as advance:
            num_boxless = write_cvat_folder(cvat, videos, advance)
        print_info(
            f"wrote the tracks of {len(videos)} videos to {cvat}; labels.json holds the labels for"
            " the 'Raw' tab of a new task"
        )
        if num_boxless:
            print_warning(
                f"{num_boxless} tubes have no box in their video, and CVAT has no tracks without"
                f" boxes: these tubes are not in {cvat}"
            )

    if fiftyone is not None:
        with show_progress("writing for FiftyOne", unit="videos") as advance:
            write_fiftyone(fiftyone, videos, advance)
        call = (
            f"fiftyone.Dataset.from_dir({str(fiftyone)!r}, fiftyone.types.FiftyOneDataset,"
            " rel_dir=ROOT)"
        )
        print_info(
            f"wrote {len(videos)} videos to {fiftyone}: load them with {call}, where ROOT is the"
            " folder of the data set"
        )

"""A whole evaluation: runs or files of predictions in, metrics and result files out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grounding.evaluation.config import EvaluateConfig
from grounding.evaluation.evaluate import (
    evaluate,
    list_missing_predictions,
    predict_split,
    score_predictions,
)
from grounding.evaluation.ground_truth import GroundTruth, load_ground_truth, read_tubes
from grounding.evaluation.hcstvg_challenge import write_challenge
from grounding.evaluation.results import write_results
from grounding.metrics.bootstrap import Difference, compare_paired
from grounding.metrics.protocols import check_protocol
from grounding.metrics.scores import Score
from grounding.structures.tubes import Tubes
from grounding.systems.provenance import read_provenance
from pipeline.callbacks import MessageCallback, ProgressCallback
from pipeline.errors import InputError
from pipeline.io.jsonl import read_jsonl, write_json, write_jsonl
from pipeline.records import Prediction

ProgressFactory = Callable[[str, str], AbstractContextManager[ProgressCallback]]
"""Called as `show_progress(label, unit)`; opens a display and gives its callback."""

RESULTS_PROTOCOL = "every-frame"
"""Protocol of the result files in a run."""

MAX_NAMED_VIDEOS = 20
"""Videos without features that a warning names."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationOptions:
    """Inputs and outputs of an evaluation, and its settings.

    Attributes:
        settings: Section `evaluate` of the configuration.
        runs: Run directories whose models predict. Several predict as one ensemble.
        predictions_path: File of predictions to evaluate instead of runs.
        store: Store with the features of the runs, and with an index.
        ground_truth_path: Index or challenge file; by default the store's index.
        protocol: Evaluation protocol of metrics and comparisons.
        compare_path: Another run, or a file of predictions, to compare with.
        save_path: File to write the runs' predictions to.
        challenge_path: File to write the tubes to, in the format of the HC-STVG challenge.
        json_path: File to write the metrics to.
    """

    settings: EvaluateConfig
    runs: Sequence[Path] = ()
    predictions_path: Path | None = None
    store: Path = Path("store")
    ground_truth_path: Path | None = None
    protocol: str = "every-frame"
    compare_path: Path | None = None
    save_path: Path | None = None
    challenge_path: Path | None = None
    json_path: Path | None = None


@dataclass(frozen=True)
class EvaluationReport:
    """Results of an evaluation.

    Attributes:
        options: Options of the evaluation.
        ground_truth: Ground truth of the split.
        tubes: Predicted tubes.
        predictions: Predictions of the runs; None for tubes that were read from a file.
        scores: Scores per query, under the protocol of the options.
        metrics: Flat metrics, as in `metrics.json`.
        differences: Comparison with the other run by metric; empty without one.
    """

    options: EvaluationOptions
    ground_truth: GroundTruth
    tubes: Tubes
    predictions: Sequence[Prediction] | None
    scores: Sequence[Score]
    metrics: dict[str, float]
    differences: dict[str, Difference]

    @property
    def title(self) -> str:
        """Runs or file, split and protocol, as the title of a table."""
        options = self.options
        source = ", ".join(str(run) for run in options.runs) or str(options.predictions_path)

        # The challenge's file has no splits.
        if self.ground_truth.queries:
            source = f"{source}, split {options.settings.split}"
        return f"{source}, protocol {options.protocol}"

    def to_json(self) -> dict[str, Any]:
        """Return metrics, comparison and protocol as one JSON object.

        Returns:
            The metrics, `<metric>_difference` for each comparison, and `protocol`.
        """
        differences = {
            f"{metric}_difference": asdict(difference)
            for metric, difference in self.differences.items()
        }
        return {**self.metrics, **differences, "protocol": self.options.protocol}

    def load_scored_predictions(self) -> Sequence[Prediction]:
        """Return the predictions with their confidence.

        Returns:
            Predictions of the runs or of the file. Empty for a challenge file, which has no
            confidence.
        """
        path = self.options.predictions_path
        if self.predictions is not None:
            return self.predictions
        if path is None or path.suffix == ".json":
            return ()
        return list(read_jsonl(path, Prediction))


def check_options(options: EvaluationOptions) -> None:
    """Check the options of an evaluation, as far as possible without reading the ground truth.

    Args:
        options: The options.

    Raises:
        InputError: Options are missing or contradict each other, a run is not a run directory, or
            an output would overwrite an input.
    """
    check_protocol(options.protocol)
    runs, predictions_path = options.runs, options.predictions_path
    if bool(runs) == (predictions_path is not None):
        raise InputError(
            "give either a run (--run DIR) or a file of predictions"
            " (--predictions FILE --truth FILE)"
        )
    if options.save_path is not None and not runs:
        raise InputError(
            f"--save {options.save_path} writes the predictions of runs: give a run (--run DIR),"
            " or leave out --save"
        )

    for run in runs:
        read_provenance(run)

    _check_no_overwrite(
        [options.ground_truth_path, predictions_path, options.compare_path],
        [options.json_path, options.challenge_path, options.save_path],
    )
    if (
        predictions_path is not None
        and options.ground_truth_path is None
        and not _get_ground_truth_path(options).exists()
    ):
        raise InputError(
            "give the ground truth: --truth FILE, an index (with tracks.npz beside it) or the"
            " challenge's .json"
        )


def load_checked_ground_truth(options: EvaluationOptions) -> GroundTruth:
    """Load the ground truth of an evaluation, and check that the protocol can use it.

    Args:
        options: The options.

    Returns:
        Ground truth of the split.

    Raises:
        InputError: The ground truth cannot be read, lacks the split, or does not hold what the
            protocol needs.
    """
    settings = options.settings
    path = _get_ground_truth_path(options)
    ground_truth = load_ground_truth(path, settings.split, settings.first_frame)
    if ground_truth.is_unlabeled:
        if options.compare_path is not None:
            raise InputError(
                f"--compare {options.compare_path}: no query of split {settings.split!r} in {path}"
                " has a ground truth, so nothing can be compared; leave out --compare"
            )
        return ground_truth

    check_protocol(options.protocol, ground_truth.true_tubes)
    return ground_truth


def run_evaluation(
    options: EvaluationOptions,
    ground_truth: GroundTruth,
    show_progress: ProgressFactory,
    on_message: MessageCallback,
    on_warning: MessageCallback,
) -> EvaluationReport:
    """Predict if there are runs, score, compare, and write the result files.

    The result files of a single run are always scored under protocol every-frame.

    Args:
        options: Options that passed `check_options`.
        ground_truth: Ground truth from `load_checked_ground_truth`.
        show_progress: Factory of a progress display.
        on_message: Callback for each file that was written.
        on_warning: Callback for queries without features or without a prediction.

    Returns:
        The report.

    Raises:
        InputError: A file, a run or the store does not fit.
    """
    settings = options.settings
    predictions: list[Prediction] | None = None

    # Get the predicted tubes.
    if options.runs:
        predictions = _predict_runs(options, ground_truth, show_progress, on_warning)
        tubes = Tubes.from_predictions(predictions)
        _save_predictions(options, ground_truth, predictions, on_message)
    else:
        assert options.predictions_path is not None
        tubes = read_tubes(options.predictions_path, settings.first_frame)
        _warn_missing_predictions(ground_truth, tubes, on_warning)

    # Score them, and compare them with another run.
    scores: list[Score] = []
    metrics: dict[str, float] = {}
    differences: dict[str, Difference] = {}
    if ground_truth.is_unlabeled:
        on_warning(
            f"nothing was scored: none of the {len(ground_truth.queries)} queries of split"
            f" {settings.split!r} has a ground truth"
        )
    else:
        scores, metrics = _score(options, ground_truth, tubes, predictions)
        if options.compare_path is not None:
            differences = _compare_with(options, options.compare_path, ground_truth, scores)

    if options.challenge_path is not None:
        write_challenge(options.challenge_path, tubes, settings.first_frame)
        on_message(f"wrote {len(tubes)} tubes to {options.challenge_path}")

    return EvaluationReport(
        options=options,
        ground_truth=ground_truth,
        tubes=tubes,
        predictions=predictions,
        scores=scores,
        metrics=metrics,
        differences=differences,
    )


def write_report_json(report: EvaluationReport) -> None:
    """Write the metrics to the options' `json_path`, if there is one.

    Args:
        report: The report.
    """
    if report.options.json_path is not None:
        write_json(report.options.json_path, report.to_json())


def _get_ground_truth_path(options: EvaluationOptions) -> Path:
    """Return the file of the ground truth."""
    return options.ground_truth_path or options.store / "index.jsonl"


def _check_no_overwrite(inputs: Sequence[Path | None], outputs: Sequence[Path | None]) -> None:
    """Raise an InputError if an output file is also an input file."""
    input_paths = {path.resolve() for path in inputs if path is not None}
    for path in outputs:
        if path is not None and path.resolve() in input_paths:
            raise InputError(
                f"{path} is an input and would be overwritten: give another file to write"
            )


def _predict_runs(
    options: EvaluationOptions,
    ground_truth: GroundTruth,
    show_progress: ProgressFactory,
    on_warning: MessageCallback,
) -> list[Prediction]:
    """Predict the split, and warn of queries without features: they score 0."""
    store = options.store
    with show_progress("predicting", "queries") as progress:
        predictions, missing = predict_split(options.runs, store, options.settings, progress)
    if not missing:
        return predictions

    # Name the videos, because a missing video has a line in the store's file of failures.
    missing_ids = set(missing)
    videos = sorted({query.video for query in ground_truth.queries if query.id in missing_ids})
    video_names = ", ".join(videos[:MAX_NAMED_VIDEOS])
    if len(videos) > MAX_NAMED_VIDEOS:
        video_names += f" and {len(videos) - MAX_NAMED_VIDEOS} more"
    on_warning(
        f"{len(missing)} of {len(ground_truth.queries)} queries score 0: store {store} has no"
        f" features of video {video_names}; {store / 'failures.jsonl'} says why"
    )
    log.warning("queries without features: %s", ", ".join(missing))
    return predictions


def _save_predictions(
    options: EvaluationOptions,
    ground_truth: GroundTruth,
    predictions: list[Prediction],
    on_message: MessageCallback,
) -> None:
    """Write the predictions of runs to `save_path`, and into a run if they cannot be scored."""
    paths = []
    if ground_truth.is_unlabeled and len(options.runs) == 1:
        paths.append(options.runs[0] / "predictions" / f"{options.settings.split}.jsonl")
    if options.save_path is not None:
        paths.append(options.save_path)

    for path in paths:
        write_jsonl(path, predictions)
        on_message(f"wrote {len(predictions)} tubes to {path}")


def _score(
    options: EvaluationOptions,
    ground_truth: GroundTruth,
    tubes: Tubes,
    predictions: Sequence[Prediction] | None,
) -> tuple[list[Score], dict[str, float]]:
    """Return the scores and metrics of the protocol, and write the result files of a single run."""
    settings = options.settings
    if predictions is None or len(options.runs) != 1:
        return evaluate(ground_truth, tubes, options.protocol, settings.seed)

    scores, metrics = evaluate(ground_truth, tubes, RESULTS_PROTOCOL, settings.seed)
    write_results(options.runs[0], settings.split, predictions, scores, metrics)
    if options.protocol == RESULTS_PROTOCOL:
        return scores, metrics
    return evaluate(ground_truth, tubes, options.protocol, settings.seed)


def _warn_missing_predictions(
    ground_truth: GroundTruth, tubes: Tubes, on_warning: MessageCallback
) -> None:
    """Warn of queries that a file of predictions lacks."""
    missing_ids = list_missing_predictions(ground_truth, tubes)
    if missing_ids:
        num_queries = len(ground_truth.true_tubes.tubes)
        on_warning(
            f"{len(missing_ids)} of {num_queries} queries have no prediction, for example"
            f" {missing_ids[0]!r}: they score 0, but protocol stcat leaves them out of its means"
        )


def _compare_with(
    options: EvaluationOptions,
    compare_path: Path,
    ground_truth: GroundTruth,
    scores: Sequence[Score],
) -> dict[str, Difference]:
    """Compare scores with those of another evaluated run, or of a file of predictions."""
    settings = options.settings
    path = compare_path
    if path.is_dir():
        path = path / "predictions" / f"{settings.split}.jsonl"
    if not path.exists():
        raise InputError(
            f"{path} does not exist: --compare needs a run that stvg-eval has evaluated, or a file"
            " of predictions"
        )

    other_tubes = read_tubes(path, settings.first_frame)
    other_scores = score_predictions(ground_truth, other_tubes, options.protocol)
    return compare_paired(scores, other_scores, ground_truth.video_by_query, settings.seed)

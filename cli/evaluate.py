"""`stvg-eval`: evaluation of runs or of files of predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.console.app import (
    Assignments,
    ConfigFile,
    Debug,
    Version,
    handle_errors,
    log,
    log_to,
    new_app,
    print_info,
    print_warning,
)
from cli.console.progress import show_progress

app = new_app()


@app.command()
@handle_errors
def evaluate(
    run: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            metavar="DIR",
            help="Run directory. Its model predicts, and the results are written there. "
            "Repeat for an ensemble: results are then only shown (see --save).",
        ),
    ] = None,
    features: Annotated[
        Path,
        typer.Option(
            "--features",
            metavar="STORE",
            help="Store with the run's features and with the ground truth.",
        ),
    ] = Path("store"),
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            metavar="FILE",
            help="Ground truth: an index with tracks.npz beside it, or a .json file of the "
            "HC-STVG challenge. Default: the store's index.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="FILE",
            help="Predictions to evaluate instead of a run: one JSON object per line, or a .json "
            "file of the HC-STVG challenge.",
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            metavar="NAME",
            help="Evaluation protocol: every-frame, official, tubedetr or stcat.",
        ),
    ] = "every-frame",
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="DIR|FILE",
            help="Compare with another run that stvg-eval has evaluated, or with its predictions.",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="OUT",
            help="Also write the predictions of the runs to this file. --predictions and "
            "--compare read it.",
        ),
    ] = None,
    challenge: Annotated[
        Path | None,
        typer.Option(
            "--challenge",
            metavar="OUT",
            help="Write the predictions as a .json file of the HC-STVG challenge.",
        ),
    ] = None,
    cvat: Annotated[
        Path | None,
        typer.Option(
            "--cvat",
            metavar="DIR",
            help="Write predictions and ground truth as CVAT tracks, one file per video, into a "
            "new folder.",
        ),
    ] = None,
    fiftyone: Annotated[
        Path | None,
        typer.Option(
            "--fiftyone",
            metavar="DIR",
            help="Write predictions and ground truth as a FiftyOne data set into a new folder.",
        ),
    ] = None,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT", help="Also write the metrics to this JSON file."),
    ] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Evaluate predicted tubes: m_vIoU, m_tIoU, m_sIoU and vIoU@R with 95 % intervals.

    The table shows them beside two baselines and published results.

    The result files in a run are always scored under protocol every-frame.
    """
    from cli.console.evaluate_tables import show_report
    from cli.console.exports import check_exports, write_exports
    from grounding.evaluation.config import EvaluateConfig
    from grounding.evaluation.run import (
        EvaluationOptions,
        check_options,
        load_checked_ground_truth,
        run_evaluation,
        write_report_json,
    )
    from grounding.metrics.protocols import check_protocol
    from pipeline.config import load

    check_protocol(protocol)
    options = EvaluationOptions(
        settings=load(EvaluateConfig, "evaluate", config, assignments or []),
        runs=run or [],
        predictions_path=predictions,
        store=features,
        ground_truth_path=truth,
        protocol=protocol,
        compare_path=compare,
        save_path=save,
        challenge_path=challenge,
        json_path=json_out,
    )

    # The options are checked before the log file is opened, which makes the run's folder.
    check_options(options)
    if len(options.runs) == 1:
        log_to(options.runs[0] / "log.txt")

    ground_truth = load_checked_ground_truth(options)
    check_exports(ground_truth, cvat, fiftyone)
    report = run_evaluation(options, ground_truth, show_progress, print_info, print_warning)

    write_exports(report, cvat, fiftyone)
    write_report_json(report)
    log.info("protocol %s, metrics %s", protocol, json.dumps(report.metrics))
    show_report(report)


def main() -> None:
    """Run the command."""
    app()

"""`stvg-eval`: predictions of a run, or of a file, against the truth → metrics and a per-query table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.app import Assignments, ConfigFile, Debug, guarded, log_to, new_app, say

app = new_app()


@app.command()
@guarded
def evaluate(
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="A run directory: its predictions are judged, its results written.")
    ] = None,
    features: Annotated[Path, typer.Option("--features", metavar="STORE", help="The store whose index holds the truth.")] = Path("store"),
    truth: Annotated[
        Path | None, typer.Option("--truth", metavar="FILE", help="An index to judge by, with `tracks.npz` beside it.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="FILE", help="Predictions, one JSON object per line.")
    ] = None,
    protocol: Annotated[str, typer.Option("--protocol", help="How tubes are judged: every-frame.")] = "every-frame",
    json_out: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write the metrics here too.")] = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    debug: Debug = False,
) -> None:
    """Judge predicted tubes: m_vIoU, m_tIoU, m_sIoU, vIoU@R, and two baselines beside them."""
    from grounding.judge import EvaluateConfig, judge, of_split, read_index, read_predictions, write_results
    from pipeline.config import load
    from pipeline.errors import InputError
    from pipeline.records import write_json

    if protocol != "every-frame":
        raise InputError(f"--protocol {protocol!r} is not known; every-frame is")
    if (run is None) == (predictions is None):
        raise InputError("name either a run (--run DIR) or a file of predictions (--predictions FILE --truth FILE)")
    if run is not None:
        log_to(run / "log.txt")
    settings = load(EvaluateConfig, "evaluate", config, assignments or [])
    queries, tracks = read_index(truth or features / "index.jsonl")
    answers = read_predictions(predictions or (run or Path()) / "predictions" / f"{settings.split}.jsonl")
    train = [query for query in queries if query.split == "train"]
    scores, metrics = judge(of_split(queries, settings.split), tracks, answers, train, settings.seed)
    if run is not None:
        write_results(run, settings.split, answers, scores, metrics)
    if json_out is not None:
        write_json(json_out, metrics)
    for name, value in metrics.items():
        say(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")


def main() -> None:
    app()

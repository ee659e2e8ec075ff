"""`stvg-eval`: a run's model, or a file of predictions, against the truth → metrics and a per-query table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.app import Assignments, ConfigFile, Debug, guarded, log, log_to, new_app, warn
from cli.progress import progress

if TYPE_CHECKING:
    from grounding.judge import EvaluateConfig
    from grounding.metrics import Score
    from pipeline.records import Prediction, Query

app = new_app()


@app.command()
@guarded
def evaluate(
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="A run directory: its model answers, its results are written there.")
    ] = None,
    features: Annotated[Path, typer.Option("--features", metavar="STORE", help="The store with the run's features and the truth.")] = Path(
        "store"
    ),
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
    from grounding.checkpoint import read_provenance
    from grounding.judge import EvaluateConfig, judge, of_split, read_index, read_predictions, write_results
    from pipeline.config import load
    from pipeline.errors import InputError
    from pipeline.records import write_json

    if protocol != "every-frame":
        raise InputError(f"--protocol {protocol!r} is not known; every-frame is")
    if (run is None) == (predictions is None):
        raise InputError("name either a run (--run DIR) or a file of predictions (--predictions FILE --truth FILE)")
    settings = load(EvaluateConfig, "evaluate", config, assignments or [])
    if run is not None:
        read_provenance(run)  # before the log file, which would make the folder
        log_to(run / "log.txt")
    queries, tracks = read_index(truth or features / "index.jsonl")
    judged = of_split(queries, settings.split)
    answers = read_predictions(predictions) if predictions is not None else answers_of(run or Path(), features, settings, judged)
    train = [query for query in queries if query.split == "train"]
    scores, metrics = judge(judged, tracks, answers, train, settings.seed)
    if run is not None:
        write_results(run, settings.split, answers, scores, metrics)
    if json_out is not None:
        write_json(json_out, metrics)
    log.info("metrics %s", json.dumps(metrics))
    show(metrics, scores, judged, f"{run or predictions}, split {settings.split}")


def answers_of(run: Path, store: Path, settings: EvaluateConfig, queries: Sequence[Query]) -> list[Prediction]:
    """What the run's model answers; queries that the store has no features of score 0, and their videos are named."""
    from grounding.judge import predict_split

    with progress("answering", unit="queries") as advance:
        answers, missing = predict_split(run, store, settings, advance)
    if missing:
        videos = sorted({query.video for query in queries if query.id in set(missing)})
        named = ", ".join(videos[:20]) + (f" and {len(videos) - 20} more" if len(videos) > 20 else "")
        count = f"{len(missing)} of {len(queries)} queries score 0"
        warn(f"{count}: store {store} has no features of video {named}; {store / 'failures.jsonl'} says why")
        log.warning("queries without features: %s", ", ".join(missing))
    return answers


def show(metrics: Mapping[str, float], scores: Sequence[Score], queries: Sequence[Query], title: str) -> None:
    """Two tables on stdout: this run beside the baselines, and by form and by tag."""
    from rich.console import Console

    from grounding.metrics import summarise_by

    console = Console()
    systems = {"this": {**metrics}}
    for name, prefix in (("best constant", "baseline_"), ("random", "random_")):
        own = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
        if own:
            systems[name] = own
    console.print(table_of(title, systems))
    groups = {**summarise_by(scores, queries, "form"), **summarise_by(scores, queries, "tag")}
    if groups:
        console.print(table_of("by form and by tag", groups))


def table_of(title: str, rows: Mapping[str, Mapping[str, float]]) -> Any:
    """A table of means, one row per name; a mean that is not known is a dash."""
    from rich.table import Table
    from rich.text import Text

    from grounding.metrics import MEANS

    columns = ("queries", *MEANS)
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, values in rows.items():
        cells = [values.get(column) for column in columns]
        table.add_row(Text(name), *("–" if cell is None else str(cell) if isinstance(cell, int) else f"{cell:.4f}" for cell in cells))
    return table


def main() -> None:
    app()

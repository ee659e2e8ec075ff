"""Result files of a run: metrics, predictions, scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from grounding.metrics.scores import Score, index_by_id, read_scores, write_scores
from pipeline.errors import InputError
from pipeline.io.jsonl import read_jsonl, write_json, write_jsonl
from pipeline.records import Prediction


def write_results(
    run: Path,
    split: str,
    predictions: Sequence[Prediction],
    scores: Sequence[Score],
    metrics: dict[str, float],
) -> None:
    """Write `predictions/<split>.jsonl`, `scores/<split>.json`, and the metrics into `metrics.json`.

    The test split's keys are plain and come first; another split's keys begin with its name (`val_m_vIoU`). Those of a
    split that was judged before are kept, nothing else.
    """
    write_jsonl(run / "predictions" / f"{split}.jsonl", predictions)
    write_scores(run / "scores" / f"{split}.json", scores)
    path = run / "metrics.json"
    old = read_metrics(path) if path.exists() else {}
    if split == "test":
        others = tuple(
            f"{file.stem}_" for file in (run / "scores").glob("*.json") if file.stem != "test"
        )
        merged = metrics | {key: value for key, value in old.items() if key.startswith(others)}
    else:
        merged = {key: value for key, value in old.items() if not key.startswith(f"{split}_")}
        merged |= {f"{split}_{key}": value for key, value in metrics.items()}
    write_json(path, merged)


def read_metrics(path: Path) -> dict[str, float]:
    """A run's flat `metrics.json`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run stvg-eval first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}): run stvg-eval again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must be one mapping of names to numbers: run stvg-eval again")
    return content


def read_predictions(path: Path) -> list[Prediction]:
    """The predictions of one split: `predictions/<split>.jsonl`."""
    return list(read_jsonl(path, Prediction))


@dataclass(frozen=True)
class RunResults:
    """A run's `predictions` and `scores` of one split by query, and its flat `metrics` of that split (keys as `m_vIoU`)."""

    path: Path
    name: str
    predictions: Mapping[str, Prediction]
    scores: Mapping[str, Score]
    metrics: Mapping[str, float]

    @classmethod
    def from_run(cls, run: Path, split: str) -> RunResults:
        """What stvg-eval wrote of a split; an InputError names the file that is missing."""
        prefix = "" if split == "test" else f"{split}_"
        metrics = {
            name.removeprefix(prefix): value
            for name, value in read_metrics(run / "metrics.json").items()
            if name.startswith(prefix)
        }
        predictions = index_by_id(read_predictions(run / "predictions" / f"{split}.jsonl"))
        return cls(
            run,
            run.resolve().name,
            predictions,
            {one.id: one for one in read_scores(run / "scores" / f"{split}.json")},
            metrics,
        )

    @cached_property
    def ranking_scores(self) -> tuple[dict[str, float], str]:
        """What ranks the queries, by id, and its name: vIoU, or tIoU where no truth has boxes."""
        boxed = {name: one.vIoU for name, one in self.scores.items() if one.vIoU is not None}
        return (
            (boxed, "vIoU")
            if boxed
            else ({name: one.tIoU for name, one in self.scores.items()}, "tIoU")
        )


def load_run_pair(run: Path, other: Path, split: str) -> tuple[RunResults, RunResults]:
    """Two runs under names that tell them apart; an InputError where they do not score the same queries."""
    ours, theirs = (RunResults.from_run(path, split) for path in (run, other))
    if unshared := ours.scores.keys() ^ theirs.scores.keys():
        raise InputError(
            f"{run} and {other} do not score the same queries: {len(unshared)} are in one only, for example {min(unshared)!r}"
        )
    if ours.name == theirs.name:
        ours, theirs = replace(ours, name=str(run)), replace(theirs, name=str(other))
    return ours, theirs

"""A run that was judged, as the report and the figures show it: its answers, their scores and means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from grounding.judge import read_metrics, read_predictions
from grounding.metrics import Score, by_id, read_scores
from pipeline.errors import InputError
from pipeline.records import Prediction


@dataclass(frozen=True)
class Judged:
    """A run's `predictions` and `scores` of one split by query, and its flat `metrics` of that split (keys as `m_vIoU`)."""

    path: Path
    name: str
    predictions: Mapping[str, Prediction]
    scores: Mapping[str, Score]
    metrics: Mapping[str, float]

    @classmethod
    def of_run(cls, run: Path, split: str) -> Judged:
        """What stvg-eval wrote of a split; an InputError names the file that is missing."""
        prefix = "" if split == "test" else f"{split}_"
        metrics = {
            name.removeprefix(prefix): value for name, value in read_metrics(run / "metrics.json").items() if name.startswith(prefix)
        }
        predictions = by_id(read_predictions(run / "predictions" / f"{split}.jsonl"))
        return cls(run, run.resolve().name, predictions, {one.id: one for one in read_scores(run / "scores" / f"{split}.json")}, metrics)

    @cached_property
    def values(self) -> tuple[dict[str, float], str]:
        """What ranks the queries, by id, and its name: vIoU, or tIoU where no truth has boxes."""
        boxed = {name: one.vIoU for name, one in self.scores.items() if one.vIoU is not None}
        return (boxed, "vIoU") if boxed else ({name: one.tIoU for name, one in self.scores.items()}, "tIoU")


def two_runs(run: Path, other: Path, split: str) -> tuple[Judged, Judged]:
    """Two runs under names that tell them apart; an InputError where they do not score the same queries."""
    ours, theirs = (Judged.of_run(path, split) for path in (run, other))
    if unshared := ours.scores.keys() ^ theirs.scores.keys():
        raise InputError(f"{run} and {other} do not score the same queries: {len(unshared)} are in one only, for example {min(unshared)!r}")
    if ours.name == theirs.name:
        ours, theirs = replace(ours, name=str(run)), replace(theirs, name=str(other))
    return ours, theirs

"""Result files of a run: metrics, summary, predictions, scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from grounding.metrics.scores import Score, index_by_id, read_scores, write_scores
from pipeline.errors import InputError
from pipeline.io.jsonl import read_jsonl, write_json, write_jsonl
from pipeline.records import Prediction

SUMMARY_KEYS = {
    "m_vIoU": "m_vIoU",
    "m_tIoU": "m_tIoU",
    "m_sIoU": "m_sIoU",
    "vIoU@0.3": "vIoU@0.3",
    "vIoU@0.5": "vIoU@0.5",
    "m_vIoU_low": "m_vIoU_low",
    "m_vIoU_high": "m_vIoU_high",
    "baseline_m_vIoU": "baseline_m_vIoU",
    "look-alike_m_vIoU": "look-alike_m_vIoU",
    "same-motion_m_vIoU": "same-motion_m_vIoU",
    "queries": "queries",
    "unanswered": "missing_predictions",
}
"""Metrics of a split that `summary.json` holds: key in `metrics.json` → key in `summary.json`."""


def write_results(
    run: Path,
    split: str,
    predictions: Sequence[Prediction],
    scores: Sequence[Score],
    metrics: dict[str, float],
) -> None:
    """Write the results of one split into a run.

    The files are `predictions/<split>.jsonl`, `scores/<split>.json`, `metrics.json` with all
    metrics, and `summary.json` with about a dozen of them. In `metrics.json` the keys of the test
    split are plain and come first; the keys of another split begin with its name (`val_m_vIoU`).
    Metrics of splits that were evaluated before are kept, other keys are not.

    Args:
        run: Run directory.
        split: Split that was evaluated.
        predictions: Predictions of the split's queries.
        scores: Scores of the split's queries.
        metrics: Flat metrics of the split.
    """
    write_jsonl(run / "predictions" / f"{split}.jsonl", predictions)
    write_scores(run / "scores" / f"{split}.json", scores)

    # Every split that was evaluated has a file of scores.
    splits = sorted(file.stem for file in (run / "scores").glob("*.json"))
    other_prefixes = tuple(f"{name}_" for name in splits if name != "test")

    # Merge with the metrics of the other splits.
    path = run / "metrics.json"
    old_metrics = read_metrics(path) if path.exists() else {}
    if split == "test":
        kept_metrics = {
            key: value for key, value in old_metrics.items() if key.startswith(other_prefixes)
        }
        all_metrics = metrics | kept_metrics
    else:
        prefix = f"{split}_"
        all_metrics = {
            key: value for key, value in old_metrics.items() if not key.startswith(prefix)
        }
        all_metrics |= {prefix + key: value for key, value in metrics.items()}

    write_json(path, all_metrics)
    write_json(run / "summary.json", select_summary(all_metrics, ["", *other_prefixes]))


def select_summary(metrics: Mapping[str, float], prefixes: Iterable[str]) -> dict[str, float]:
    """Select the metrics that matter most.

    Args:
        metrics: Flat metrics of a run, as in `metrics.json`.
        prefixes: Beginnings of the keys of each split: empty for the test split, `val_` for
            split `val`.

    Returns:
        The metrics of `SUMMARY_KEYS` that exist, split by split.
    """
    summary = {}
    for prefix in prefixes:
        for key, summary_key in SUMMARY_KEYS.items():
            if prefix + key in metrics:
                summary[prefix + summary_key] = metrics[prefix + key]
    return summary


def read_metrics(path: Path) -> dict[str, float]:
    """Read the flat metrics of a run.

    Args:
        path: The run's `metrics.json`.

    Returns:
        Metrics by name.

    Raises:
        InputError: The file is missing or is not a JSON mapping.
    """
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
    """Read the predictions of one split.

    Args:
        path: A file `predictions/<split>.jsonl`.

    Returns:
        The predictions, in file order.

    Raises:
        InputError: The file is missing, or a line is not a prediction.
    """
    return list(read_jsonl(path, Prediction))


@dataclass(frozen=True)
class RunResults:
    """Results of a run on one split.

    Attributes:
        path: Run directory.
        name: Name that is shown.
        predictions: Predictions by query id.
        scores: Scores by query id.
        metrics: Flat metrics of the split, with plain keys (`m_vIoU`).
    """

    path: Path
    name: str
    predictions: Mapping[str, Prediction]
    scores: Mapping[str, Score]
    metrics: Mapping[str, float]

    @classmethod
    def from_run(cls, run: Path, split: str) -> RunResults:
        """Read the files that stvg-eval wrote for a split.

        Args:
            run: Run directory.
            split: The split.

        Returns:
            The results.

        Raises:
            InputError: A file is missing or invalid; the message names the file.
        """
        prefix = "" if split == "test" else f"{split}_"
        metrics = {
            key.removeprefix(prefix): value
            for key, value in read_metrics(run / "metrics.json").items()
            if key.startswith(prefix)
        }
        predictions = index_by_id(read_predictions(run / "predictions" / f"{split}.jsonl"))
        scores = {score.id: score for score in read_scores(run / "scores" / f"{split}.json")}
        return cls(run, run.resolve().name, predictions, scores, metrics)

    @cached_property
    def ranking_scores(self) -> tuple[dict[str, float], str]:
        """Score that ranks the queries, by id, and its name.

        The score is vIoU, or tIoU if no ground truth has boxes.
        """
        viou_scores = {
            query_id: score.vIoU
            for query_id, score in self.scores.items()
            if score.vIoU is not None
        }
        if viou_scores:
            return viou_scores, "vIoU"
        return {query_id: score.tIoU for query_id, score in self.scores.items()}, "tIoU"


def load_run_pair(run: Path, other: Path, split: str) -> tuple[RunResults, RunResults]:
    """Load the results of two runs for comparison.

    Args:
        run: First run directory.
        other: Second run directory.
        split: The split.

    Returns:
        Both results. If the directories have the same name, the results are named by their paths.

    Raises:
        InputError: A file is missing, or the runs do not score the same queries.
    """
    first = RunResults.from_run(run, split)
    second = RunResults.from_run(other, split)

    unshared_ids = first.scores.keys() ^ second.scores.keys()
    if unshared_ids:
        raise InputError(
            f"{run} and {other} do not score the same queries: {len(unshared_ids)} are in one"
            f" only, for example {min(unshared_ids)!r}"
        )

    if first.name == second.name:
        first = replace(first, name=str(run))
        second = replace(second, name=str(other))
    return first, second

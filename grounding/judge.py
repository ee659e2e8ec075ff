"""From predictions to a run's results: per-query scores, the flat metrics with their baselines, the files they go to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from grounding.baselines import best_constant, random_predictions
from grounding.metrics import MEANS, Score, score, summarise, write_scores
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.records import Prediction, Query, Tracks, read_jsonl, write_json, write_jsonl

BASELINES = ("baseline_", "random_")
COUNTS = ("queries", "boxed_queries")
PLAIN_KEYS = {prefix + key for prefix in ("", *BASELINES) for key in (*MEANS, *COUNTS)}


class EvaluateConfig(Config):
    """Section `evaluate`: which split is judged; `seed` is the random baseline's."""

    split: str = "test"
    seed: int = 0


def read_index(path: Path) -> tuple[list[Query], Tracks]:
    """An index and the boxes beside it (`tracks.npz`, which only an index with boxes needs)."""
    queries = list(read_jsonl(path, Query))
    boxed = any(query.truth is not None and query.truth.track is not None for query in queries)
    return queries, Tracks.load(path.with_name("tracks.npz")) if boxed else Tracks()


def of_split(queries: Sequence[Query], split: str) -> list[Query]:
    """The queries of one split; a split that is not there is refused with those that are."""
    found = [query for query in queries if query.split == split]
    if not found:
        raise InputError(f"no query is of split {split!r}; the index has {', '.join(sorted({query.split for query in queries})) or 'none'}")
    return found


def baseline_metrics(train: Sequence[Query], tracks: Tracks, queries: Sequence[Query], seed: int = 0) -> dict[str, float]:
    """`baseline_*` (the best constant chosen on `train`) and `random_*`, judged on `queries`; {} without any truth in train."""
    answers = {"random_": random_predictions(queries, seed)}
    if any(query.truth is not None for query in train):
        answers = {"baseline_": best_constant(train, tracks, queries), **answers}
    summaries = {prefix: summarise(score(queries, tracks, answer)) for prefix, answer in answers.items()}
    return {prefix + key: value for prefix, summary in summaries.items() for key, value in summary.items() if key not in COUNTS}


def judge(
    queries: Sequence[Query], tracks: Tracks, predictions: Sequence[Prediction], train: Sequence[Query] = (), seed: int = 0
) -> tuple[list[Score], dict[str, float]]:
    """Scores of one split's `queries`, and its metrics: means, counts, and the baselines' means beside them."""
    scores = score(queries, tracks, predictions)
    if not scores:
        raise InputError("none of these queries has a truth to judge by: use an index whose queries carry `truth`")
    return scores, summarise(scores) | baseline_metrics(train, tracks, queries, seed)


def write_results(run: Path, split: str, predictions: Sequence[Prediction], scores: Sequence[Score], metrics: dict[str, float]) -> None:
    """Write `predictions/<split>.jsonl`, `scores/<split>.json`, and the metrics into `metrics.json`.

    The test split's keys are plain and come first; another split's keys begin with its name (`val_m_vIoU`).
    """
    write_jsonl(run / "predictions" / f"{split}.jsonl", predictions)
    write_scores(run / "scores" / f"{split}.json", scores)
    path = run / "metrics.json"
    old = read_metrics(path) if path.exists() else {}
    if split == "test":
        merged = metrics | {key: value for key, value in old.items() if key not in PLAIN_KEYS}
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

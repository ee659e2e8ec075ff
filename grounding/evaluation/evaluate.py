"""From a run, or predictions, to results: per-query scores, the flat metrics with their baselines, the files they go to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from grounding.evaluation.baselines import predict_best_constant, predict_random
from grounding.evaluation.config import EvaluateConfig
from grounding.evaluation.ground_truth import GroundTruth
from grounding.evaluation.published import MeansByProtocol, protocols_for, rows_for
from grounding.metrics.bootstrap import confidence_intervals
from grounding.metrics.protocols import score_tubes
from grounding.metrics.scores import Score, build_scores, check_known_ids, summarize, summarize_by
from grounding.structures.tubes import Tubes
from pipeline.errors import InputError
from pipeline.records import Prediction, Query
from pipeline.store import Store

COUNT_METRICS = ("queries", "boxed_queries")
ProgressCallback = Callable[[int, int], None]


def predict_split(
    runs: Sequence[Path],
    store: Path,
    config: EvaluateConfig,
    progress: ProgressCallback = lambda done, total: None,
) -> tuple[list[Prediction], list[str]]:
    """What the runs' models answer together to one split of a store, and the ids of queries that the store has no features of."""
    # Imported here: judging files, and reporting, must not wait for torch.
    from grounding.inference.ensemble import Ensemble
    from grounding.inference.predict import predict
    from pipeline.devices import resolve_device

    ensemble = Ensemble.from_runs(runs, resolve_device(config.device), config.frames)
    features = ensemble.load_dataset(Store(store), config.split)
    with ensemble.autocast():
        answers = predict(
            ensemble.models,
            features,
            features.queries,
            config.batch,
            progress,
            config.refine_boundaries,
            config.subframe_boundaries,
        )
    return answers, features.missing_query_ids


def evaluate(
    ground_truth: GroundTruth, predictions: Tubes, protocol: str = "every-frame", seed: int = 0
) -> tuple[list[Score], dict[str, float]]:
    """Scores, and the metrics: means, counts (`unanswered`: queries without a prediction), 95 % intervals, the baselines'
    means, and those by form and by tag.
    """
    scores = score_predictions(ground_truth, predictions, protocol)
    metrics = (
        summarize(scores)
        | {"unanswered": len(missing_predictions(ground_truth, predictions))}
        | confidence_intervals(scores, ground_truth.video_by_query, seed)
    )
    return scores, metrics | compute_baseline_metrics(
        ground_truth, protocol, seed
    ) | compute_group_metrics(scores, ground_truth.queries)


def missing_predictions(ground_truth: GroundTruth, predictions: Tubes) -> list[str]:
    """The queries with a truth but without a prediction."""
    there = set(predictions.ids)
    return [name for name in ground_truth.true_tubes.tubes.ids if name not in there]


def score_predictions(
    ground_truth: GroundTruth, predictions: Tubes, protocol: str = "every-frame"
) -> list[Score]:
    """Each query's scores by one protocol."""
    check_known_ids(predictions, ground_truth.query_ids)
    if not len(ground_truth.true_tubes.tubes):
        raise InputError(
            "none of these queries has a truth to judge by: use an index whose queries carry `truth`"
        )
    scores = build_scores(score_tubes(ground_truth.true_tubes, predictions, protocol))
    if not scores:
        raise InputError(
            f"none of the {len(ground_truth.true_tubes.tubes)} queries has a prediction, and protocol {protocol} leaves such queries out"
        )
    return scores


def evaluate_published_protocols(
    ground_truth: GroundTruth,
    predictions: Tubes,
    split: str,
    scores_by_protocol: Mapping[str, Sequence[Score]],
) -> tuple[MeansByProtocol, list[str]]:
    """Means by the protocols that stand in `known` (their scores), by every-frame, and by those of the split's published rows; by
    form where these are. And which protocols refused the predictions, in words: one may want them complete.
    """
    dataset = ground_truth.dataset_name or ""
    by_form = any(row.form is not None for row in rows_for(dataset, split))
    ours: dict[str, dict[str, dict[str, float]]] = {}
    refused = []
    for name in dict.fromkeys([*scores_by_protocol, "every-frame", *protocols_for(dataset, split)]):
        try:
            scores = (
                scores_by_protocol[name]
                if name in scores_by_protocol
                else score_predictions(ground_truth, predictions, name)
            )
        except InputError as error:
            refused.append(f"not judged by {name}: {error}")
            continue
        ours[name] = (
            summarize_by(scores, ground_truth.queries, "form")
            if by_form
            else {"": summarize(scores)}
        )
    return ours, refused


def compute_baseline_metrics(
    ground_truth: GroundTruth, protocol: str = "every-frame", seed: int = 0
) -> dict[str, float]:
    """`baseline_*` (the best constant chosen on train; absent without any truth there) and `random_*`, judged alike."""
    if not ground_truth.queries:
        return {}
    answers = {"random_": predict_random(ground_truth.queries, seed)}
    if any(query.truth is not None for query in ground_truth.train_queries):
        answers = {
            "baseline_": predict_best_constant(
                ground_truth.train_queries, ground_truth.tracks, ground_truth.queries
            ),
            **answers,
        }
    found: dict[str, float] = {}
    for prefix, answer in answers.items():
        summary = summarize(
            build_scores(
                score_tubes(ground_truth.true_tubes, Tubes.from_predictions(answer), protocol)
            )
        )
        found |= {prefix + key: value for key, value in summary.items() if key not in COUNT_METRICS}
    return found


def compute_group_metrics(scores: Sequence[Score], queries: Sequence[Query]) -> dict[str, float]:
    """The means by form, then by tag, under flat names: `declarative_m_vIoU`, `look-alike_m_vIoU`."""
    groups = [
        *summarize_by(scores, queries, "form").items(),
        *summarize_by(scores, queries, "tag").items(),
    ]
    return {
        f"{name}_{key}": value
        for name, summary in groups
        for key, value in summary.items()
        if key not in COUNT_METRICS
    }

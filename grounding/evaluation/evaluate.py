"""Metrics of predictions: scores per query, means, intervals, baselines, groups of queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from grounding.evaluation.baselines import predict_best_constant, predict_random
from grounding.evaluation.config import EvaluateConfig
from grounding.evaluation.ground_truth import GroundTruth
from grounding.evaluation.published import (
    MeansByProtocol,
    get_published_protocols,
    get_published_rows,
)
from grounding.metrics.bootstrap import confidence_intervals
from grounding.metrics.protocols import score_tubes
from grounding.metrics.scores import Score, build_scores, check_known_ids, summarize, summarize_by
from grounding.structures.tubes import Tubes
from pipeline.callbacks import ProgressCallback
from pipeline.errors import InputError
from pipeline.records import Prediction, Query
from pipeline.store import Store

COUNT_METRICS = ("queries", "boxed_queries")
"""Keys of a summary that are counts, not means."""


def predict_split(
    runs: Sequence[Path],
    store: Path,
    config: EvaluateConfig,
    progress: ProgressCallback = lambda done, total: None,
) -> tuple[list[Prediction], list[str]]:
    """Predict the queries of one split of a store.

    Args:
        runs: Run directories. Several runs predict as one ensemble.
        store: Store with the features.
        config: Split, device and inference settings.
        progress: Callback that counts queries.

    Returns:
        The predictions, and the ids of queries without features in the store.

    Raises:
        InputError: The runs or the store do not fit together.
    """
    # Evaluation of files, and the report, must not wait for torch.
    from grounding.inference.ensemble import Ensemble
    from grounding.inference.predict import predict
    from pipeline.devices import resolve_device

    ensemble = Ensemble.from_runs(runs, resolve_device(config.device), config.frames)
    dataset = ensemble.load_dataset(Store(store), config.split)

    with ensemble.autocast():
        predictions = predict(
            ensemble.models,
            dataset,
            dataset.queries,
            config.batch,
            progress,
            config.refine_boundaries,
            config.subframe_boundaries,
        )
    return predictions, dataset.missing_query_ids


def evaluate(
    ground_truth: GroundTruth, predictions: Tubes, protocol: str = "every-frame", seed: int = 0
) -> tuple[list[Score], dict[str, float]]:
    """Score predictions and summarize the scores.

    Args:
        ground_truth: Ground truth of one split.
        predictions: Predicted tubes.
        protocol: Evaluation protocol, one of `grounding.metrics.protocols.PROTOCOLS`.
        seed: Seed of the intervals and of the random baseline.

    Returns:
        Scores per query, and flat metrics: means, counts (`unanswered`: queries without a
        prediction), 95 % intervals, means of the baselines, means by sentence form and by tag.

    Raises:
        InputError: A prediction names an unknown query, or no query can be scored.
    """
    scores = score_predictions(ground_truth, predictions, protocol)

    metrics = summarize(scores)
    metrics |= {"unanswered": len(list_missing_predictions(ground_truth, predictions))}
    metrics |= confidence_intervals(scores, ground_truth.video_by_query, seed)
    metrics |= compute_baseline_metrics(ground_truth, protocol, seed)
    metrics |= compute_group_metrics(scores, ground_truth.queries)
    return scores, metrics


def list_missing_predictions(ground_truth: GroundTruth, predictions: Tubes) -> list[str]:
    """Return the ids of queries that have a ground truth but no prediction.

    Args:
        ground_truth: Ground truth of one split.
        predictions: Predicted tubes.

    Returns:
        Query ids, in the order of the ground truth.
    """
    predicted_ids = set(predictions.ids)
    true_ids = ground_truth.true_tubes.tubes.ids
    return [query_id for query_id in true_ids if query_id not in predicted_ids]


def score_predictions(
    ground_truth: GroundTruth, predictions: Tubes, protocol: str = "every-frame"
) -> list[Score]:
    """Score each query under one protocol.

    Args:
        ground_truth: Ground truth of one split.
        predictions: Predicted tubes.
        protocol: Evaluation protocol.

    Returns:
        One score per query that the protocol covers.

    Raises:
        InputError: A prediction names an unknown query, no query has a ground truth, or the
            protocol refuses the predictions.
    """
    check_known_ids(predictions, ground_truth.query_ids)

    num_queries = len(ground_truth.true_tubes.tubes)
    if not num_queries:
        raise InputError(
            "none of these queries has a ground truth: use an index whose queries carry `truth`"
        )

    scores = build_scores(score_tubes(ground_truth.true_tubes, predictions, protocol))
    if not scores:
        raise InputError(
            f"none of the {num_queries} queries has a prediction, and protocol {protocol} leaves"
            " such queries out"
        )
    return scores


def evaluate_published_protocols(
    ground_truth: GroundTruth,
    predictions: Tubes,
    split: str,
    scores_by_protocol: Mapping[str, Sequence[Score]],
) -> tuple[MeansByProtocol, list[str]]:
    """Evaluate predictions under each protocol of the split's published results.

    Args:
        ground_truth: Ground truth of the split.
        predictions: Predicted tubes.
        split: The split.
        scores_by_protocol: Scores that were computed already. Their protocols come first,
            then every-frame, then the protocols of the published rows.

    Returns:
        Means by protocol (by sentence form too, if the published rows are), and a message for
        each protocol that refused the predictions, for example because some are missing.
    """
    dataset_name = ground_truth.dataset_name or ""
    has_forms = any(row.form is not None for row in get_published_rows(dataset_name, split))
    protocols = [*scores_by_protocol, "every-frame", *get_published_protocols(dataset_name, split)]

    means_by_protocol: dict[str, dict[str, dict[str, float]]] = {}
    refusals = []
    for protocol in dict.fromkeys(protocols):
        # Scores of a protocol that were computed before are reused.
        try:
            if protocol in scores_by_protocol:
                scores = scores_by_protocol[protocol]
            else:
                scores = score_predictions(ground_truth, predictions, protocol)
        except InputError as error:
            refusals.append(f"not evaluated under {protocol}: {error}")
            continue

        if has_forms:
            means_by_protocol[protocol] = summarize_by(scores, ground_truth.queries, "form")
        else:
            means_by_protocol[protocol] = {"": summarize(scores)}
    return means_by_protocol, refusals


def compute_baseline_metrics(
    ground_truth: GroundTruth, protocol: str = "every-frame", seed: int = 0
) -> dict[str, float]:
    """Evaluate the baselines of `grounding.evaluation.baselines`.

    Args:
        ground_truth: Ground truth of one split.
        protocol: Evaluation protocol.
        seed: Seed of the random baseline.

    Returns:
        Means under flat names: `baseline_*` for the best constant, which needs a train split with
        ground truth, and `random_*`. Empty without an index.
    """
    if not ground_truth.queries:
        return {}

    baselines = {}
    if any(query.truth is not None for query in ground_truth.train_queries):
        baselines["baseline_"] = predict_best_constant(
            ground_truth.train_queries, ground_truth.tracks, ground_truth.queries
        )
    baselines["random_"] = predict_random(ground_truth.queries, seed)

    metrics: dict[str, float] = {}
    for prefix, predictions in baselines.items():
        tubes = Tubes.from_predictions(predictions)
        scores = build_scores(score_tubes(ground_truth.true_tubes, tubes, protocol))
        metrics |= _prefix_means(prefix, summarize(scores))
    return metrics


def compute_group_metrics(scores: Sequence[Score], queries: Sequence[Query]) -> dict[str, float]:
    """Compute means by sentence form, then by tag.

    Args:
        scores: Scores per query.
        queries: The queries, with forms and tags.

    Returns:
        Means under flat names: `declarative_m_vIoU`, `look-alike_m_vIoU`.
    """
    attributes: tuple[Literal["form", "tag"], ...] = ("form", "tag")
    metrics: dict[str, float] = {}
    for attribute in attributes:
        for group, summary in summarize_by(scores, queries, attribute).items():
            metrics |= _prefix_means(f"{group}_", summary)
    return metrics


def _prefix_means(prefix: str, summary: Mapping[str, float]) -> dict[str, float]:
    """Return the means of a summary, without counts, under prefixed names."""
    return {prefix + key: value for key, value in summary.items() if key not in COUNT_METRICS}

"""From a run, or predictions, to results: per-query scores, the flat metrics with their baselines, the files they go to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from grounding.evaluation.baselines import best_constant, random_predictions
from grounding.evaluation.config import EvaluateConfig
from grounding.evaluation.ground_truth import Exam
from grounding.evaluation.published import Ours, protocols_of, rows_for
from grounding.metrics.bootstrap import confidence
from grounding.metrics.protocols import judge_tubes
from grounding.metrics.scores import Score, refuse_strangers, scores_of, summarise, summarise_by
from grounding.structures.tubes import Tubes
from pipeline.errors import InputError
from pipeline.records import Prediction, Query
from pipeline.store import Store

COUNTS = ("queries", "boxed_queries")
Progress = Callable[[int, int], None]


def predict_split(
    runs: Sequence[Path],
    store: Path,
    config: EvaluateConfig,
    progress: Progress = lambda done, total: None,
) -> tuple[list[Prediction], list[str]]:
    """What the runs' models answer together to one split of a store, and the ids of queries that the store has no features of."""
    # Imported here: judging files, and reporting, must not wait for torch.
    from grounding.inference.ensemble import Ensemble
    from grounding.inference.predict import predict
    from pipeline.devices import resolve_device

    ensemble = Ensemble.of_runs(runs, resolve_device(config.device), config.frames)
    features = ensemble.features_of(Store(store), config.split)
    with ensemble.computing():
        answers = predict(
            ensemble.models,
            features,
            features.queries,
            config.batch,
            progress,
            config.refine,
            config.between,
        )
    return answers, features.missing_query_ids


def judge(
    exam: Exam, predictions: Tubes, protocol: str = "every-frame", seed: int = 0
) -> tuple[list[Score], dict[str, float]]:
    """Scores, and the metrics: means, counts (`unanswered`: queries without a prediction), 95 % intervals, the baselines'
    means, and those by form and by tag.
    """
    scores = score_exam(exam, predictions, protocol)
    metrics = (
        summarise(scores)
        | {"unanswered": len(unanswered(exam, predictions))}
        | confidence(scores, exam.videos, seed)
    )
    return scores, metrics | baseline_metrics(exam, protocol, seed) | group_metrics(
        scores, exam.queries
    )


def unanswered(exam: Exam, predictions: Tubes) -> list[str]:
    """The queries with a truth but without a prediction."""
    there = set(predictions.ids)
    return [name for name in exam.truths.tubes.ids if name not in there]


def score_exam(exam: Exam, predictions: Tubes, protocol: str = "every-frame") -> list[Score]:
    """Each query's scores by one protocol."""
    refuse_strangers(predictions, exam.ids)
    if not len(exam.truths.tubes):
        raise InputError(
            "none of these queries has a truth to judge by: use an index whose queries carry `truth`"
        )
    scores = scores_of(judge_tubes(exam.truths, predictions, protocol))
    if not scores:
        raise InputError(
            f"none of the {len(exam.truths.tubes)} queries has a prediction, and protocol {protocol} leaves such queries out"
        )
    return scores


def judged_as_published(
    exam: Exam, tubes: Tubes, split: str, known: Mapping[str, Sequence[Score]]
) -> tuple[Ours, list[str]]:
    """Means by the protocols that stand in `known` (their scores), by every-frame, and by those of the split's published rows; by
    form where these are. And which protocols refused the predictions, in words: one may want them complete.
    """
    dataset = exam.dataset or ""
    by_form = any(row.form is not None for row in rows_for(dataset, split))
    ours: dict[str, dict[str, dict[str, float]]] = {}
    refused = []
    for name in dict.fromkeys([*known, "every-frame", *protocols_of(dataset, split)]):
        try:
            scores = known[name] if name in known else score_exam(exam, tubes, name)
        except InputError as error:
            refused.append(f"not judged by {name}: {error}")
            continue
        ours[name] = (
            summarise_by(scores, exam.queries, "form") if by_form else {"": summarise(scores)}
        )
    return ours, refused


def baseline_metrics(exam: Exam, protocol: str = "every-frame", seed: int = 0) -> dict[str, float]:
    """`baseline_*` (the best constant chosen on train; absent without any truth there) and `random_*`, judged alike."""
    if not exam.queries:
        return {}
    answers = {"random_": random_predictions(exam.queries, seed)}
    if any(query.truth is not None for query in exam.train):
        answers = {"baseline_": best_constant(exam.train, exam.tracks, exam.queries), **answers}
    found: dict[str, float] = {}
    for prefix, answer in answers.items():
        summary = summarise(
            scores_of(judge_tubes(exam.truths, Tubes.from_predictions(answer), protocol))
        )
        found |= {prefix + key: value for key, value in summary.items() if key not in COUNTS}
    return found


def group_metrics(scores: Sequence[Score], queries: Sequence[Query]) -> dict[str, float]:
    """The means by form, then by tag, under flat names: `declarative_m_vIoU`, `look-alike_m_vIoU`."""
    groups = [
        *summarise_by(scores, queries, "form").items(),
        *summarise_by(scores, queries, "tag").items(),
    ]
    return {
        f"{name}_{key}": value
        for name, summary in groups
        for key, value in summary.items()
        if key not in COUNTS
    }

"""From a run, or predictions, to results: per-query scores, the flat metrics with their baselines, the files they go to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from grounding.baselines import best_constant, random_predictions
from grounding.challenge import FIRST_FRAME
from grounding.exam import Exam
from grounding.intervals import confidence
from grounding.metrics import Score, refuse_strangers, scores_of, summarise, summarise_by, write_scores
from grounding.protocols import judge_tubes
from grounding.published import Ours, protocols_of, rows_for
from grounding.tubes import Tubes
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.records import Prediction, Query, read_jsonl, write_json, write_jsonl
from pipeline.store import Store

COUNTS = ("queries", "boxed_queries")
Progress = Callable[[int, int], None]


class EvaluateConfig(Config):
    """Section `evaluate`: which split is judged; `seed` is that of the random baseline and of the intervals."""

    split: str = "test"
    seed: int = 0
    frames: int | None = Field(None, ge=1)
    """T_s: frames a model sees at once at test time; by default as in training."""
    batch: int = Field(16, ge=1)
    """Passes of T_s frames that run at once."""
    refine: bool = False
    """A second look at clips and frames taken densely around the span that the first one found."""
    between: bool = True
    """Spans begin and end between clips, where the scores around the best proposal point; false: at clips' edges, as in the paper."""
    device: str = "auto"
    first_frame: int = Field(FIRST_FRAME, ge=0, le=1)
    """The number of a video's first frame in the challenge's files."""


def predict_split(
    runs: Sequence[Path], store: Path, config: EvaluateConfig, progress: Progress = lambda done, total: None
) -> tuple[list[Prediction], list[str]]:
    """What the runs' models answer together to one split of a store, and the ids of queries that the store has no features of."""
    # Imported here: judging files, and reporting, must not wait for torch.
    from grounding.ensemble import Ensemble
    from grounding.predict import predict
    from pipeline.weights import device_of

    ensemble = Ensemble.of_runs(runs, device_of(config.device), config.frames)
    features = ensemble.features_of(Store(store), config.split)
    with ensemble.computing():
        answers = predict(ensemble.models, features, features.queries, config.batch, progress, config.refine, config.between)
    return answers, features.missing


def judge(exam: Exam, predictions: Tubes, protocol: str = "every-frame", seed: int = 0) -> tuple[list[Score], dict[str, float]]:
    """Scores, and the metrics: means, counts (`unanswered`: queries without a prediction), 95 % intervals, the baselines'
    means, and those by form and by tag."""
    scores = score_exam(exam, predictions, protocol)
    metrics = summarise(scores) | {"unanswered": len(unanswered(exam, predictions))} | confidence(scores, exam.videos, seed)
    return scores, metrics | baseline_metrics(exam, protocol, seed) | group_metrics(scores, exam.queries)


def unanswered(exam: Exam, predictions: Tubes) -> list[str]:
    """The queries with a truth but without a prediction."""
    there = set(predictions.ids)
    return [name for name in exam.truths.tubes.ids if name not in there]


def score_exam(exam: Exam, predictions: Tubes, protocol: str = "every-frame") -> list[Score]:
    """Each query's scores by one protocol."""
    refuse_strangers(predictions, exam.ids)
    if not len(exam.truths.tubes):
        raise InputError("none of these queries has a truth to judge by: use an index whose queries carry `truth`")
    scores = scores_of(judge_tubes(exam.truths, predictions, protocol))
    if not scores:
        raise InputError(f"none of the {len(exam.truths.tubes)} queries has a prediction, and protocol {protocol} leaves such queries out")
    return scores


def judged_as_published(exam: Exam, tubes: Tubes, split: str, known: Mapping[str, Sequence[Score]]) -> tuple[Ours, list[str]]:
    """Means by the protocols that stand in `known` (their scores), by every-frame, and by those of the split's published rows; by
    form where these are. And which protocols refused the predictions, in words: one may want them complete."""
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
        ours[name] = summarise_by(scores, exam.queries, "form") if by_form else {"": summarise(scores)}
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
        summary = summarise(scores_of(judge_tubes(exam.truths, Tubes.of_predictions(answer), protocol)))
        found |= {prefix + key: value for key, value in summary.items() if key not in COUNTS}
    return found


def group_metrics(scores: Sequence[Score], queries: Sequence[Query]) -> dict[str, float]:
    """The means by form, then by tag, under flat names: `declarative_m_vIoU`, `look-alike_m_vIoU`."""
    groups = [*summarise_by(scores, queries, "form").items(), *summarise_by(scores, queries, "tag").items()]
    return {f"{name}_{key}": value for name, summary in groups for key, value in summary.items() if key not in COUNTS}


def write_results(run: Path, split: str, predictions: Sequence[Prediction], scores: Sequence[Score], metrics: dict[str, float]) -> None:
    """Write `predictions/<split>.jsonl`, `scores/<split>.json`, and the metrics into `metrics.json`.

    The test split's keys are plain and come first; another split's keys begin with its name (`val_m_vIoU`). Those of a
    split that was judged before are kept, nothing else.
    """
    write_jsonl(run / "predictions" / f"{split}.jsonl", predictions)
    write_scores(run / "scores" / f"{split}.json", scores)
    path = run / "metrics.json"
    old = read_metrics(path) if path.exists() else {}
    if split == "test":
        others = tuple(f"{file.stem}_" for file in (run / "scores").glob("*.json") if file.stem != "test")
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

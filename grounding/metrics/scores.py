"""Scores of predicted tubes, query by query, and their means. How a query is judged: `grounding.metrics.protocols`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from grounding.metrics.protocols import GroundTruthTubes, ScoreArrays, score_tubes
from grounding.structures.tubes import Tubes
from pipeline.errors import InputError
from pipeline.io.jsonl import write_json
from pipeline.records import Prediction, Query
from pipeline.tracks import Tracks
from pipeline.validation import StrictModel, format_first_error

THRESHOLDS = (0.3, 0.5)
MEAN_METRICS = ("m_vIoU", "m_tIoU", "m_sIoU", *(f"vIoU@{threshold}" for threshold in THRESHOLDS))


class Score(StrictModel):
    """One query's scores in [0, 1]: an entry of `scores/<split>.json`.

    `vIoU` and `sIoU` are None where the truth has no boxes: only time can be judged there.
    """

    id: str
    vIoU: float | None
    tIoU: float
    sIoU: float | None


def score_queries(
    queries: Iterable[Query],
    tracks: Tracks,
    predictions: Iterable[Prediction],
    protocol: str = "every-frame",
) -> list[Score]:
    """Score every query that has a truth, in the order of `queries`; by `every-frame` one without a prediction scores 0."""
    queries = list(queries)
    tubes = Tubes.from_predictions(predictions)
    check_known_ids(tubes, (query.id for query in queries))
    return build_scores(score_tubes(GroundTruthTubes.from_index(queries, tracks), tubes, protocol))


def check_known_ids(predictions: Tubes, ids: Iterable[str]) -> None:
    """InputError where predictions answer queries that are not asked."""
    unknown = set(predictions.ids) - set(ids)
    if unknown:
        raise InputError(
            f"{len(unknown)} predictions name no query of these, for example {min(unknown)!r}: is this the right index and split?"
        )


def build_scores(score_arrays: ScoreArrays) -> list[Score]:
    """The judged arrays as records."""
    rows = zip(
        score_arrays.ids,
        score_arrays.vIoU.tolist(),
        score_arrays.tIoU.tolist(),
        score_arrays.sIoU.tolist(),
        strict=True,
    )
    return [
        Score(id=name, vIoU=_nan_to_none(v), tIoU=t, sIoU=_nan_to_none(s)) for name, v, t, s in rows
    ]


def _nan_to_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def index_by_id(predictions: Iterable[Prediction]) -> dict[str, Prediction]:
    """Predictions by their query's id; two for one query are refused."""
    found: dict[str, Prediction] = {}
    for prediction in predictions:
        if prediction.id in found:
            raise InputError(f"query {prediction.id!r} has two predictions; keep one")
        found[prediction.id] = prediction
    return found


def summarize(scores: Sequence[Score]) -> dict[str, float]:
    """Means over queries, and the counts they stand on; a mean over nothing is left out.

    m_vIoU, m_sIoU and vIoU@R (the share with vIoU > R) are over the `boxed_queries`, m_tIoU over all `queries`.
    """
    v_iou = np.array([one.vIoU for one in scores if one.vIoU is not None])
    s_iou = np.array([one.sIoU for one in scores if one.sIoU is not None])
    summary: dict[str, float] = {}
    if len(v_iou):
        summary["m_vIoU"] = float(v_iou.mean())
    if scores:
        summary["m_tIoU"] = float(np.mean([one.tIoU for one in scores]))
    if len(v_iou):
        summary["m_sIoU"] = float(s_iou.mean())
        summary |= {
            f"vIoU@{threshold}": float((v_iou > threshold).mean()) for threshold in THRESHOLDS
        }
    return summary | {"queries": len(scores), "boxed_queries": len(v_iou)}


def summarize_by(
    scores: Sequence[Score], queries: Iterable[Query], attribute: Literal["form", "tag"]
) -> dict[str, dict[str, float]]:
    """A summary per form (`declarative`, …) or per tag, by name; a query with several tags counts in each."""
    names: Mapping[str, tuple[str, ...]] = {
        query.id: query.tags if attribute == "tag" else ((query.form,) if query.form else ())
        for query in queries
    }
    groups: dict[str, list[Score]] = {}
    for one in scores:
        for name in names.get(one.id, ()):
            groups.setdefault(name, []).append(one)
    return {name: summarize(groups[name]) for name in sorted(groups)}


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write `scores/<split>.json`: a list of `{id, vIoU, tIoU, sIoU}`, atomically."""
    write_json(path, [one.model_dump() for one in scores])


def read_scores(path: Path) -> list[Score]:
    """Read `scores/<split>.json`; a file that is not one is an InputError that names it."""
    try:
        return TypeAdapter(list[Score]).validate_python(
            json.loads(path.read_text(encoding="utf-8"))
        )
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run stvg-eval first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}): run stvg-eval again") from None
    except ValidationError as error:
        raise InputError(f"{path}: {format_first_error(error)}: run stvg-eval again") from None

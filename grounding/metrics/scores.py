"""Scores of predicted tubes for each query, and their means.

`grounding.metrics.protocols` computes the scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
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
    """The scores of one query in [0, 1]: an entry of `scores/<split>.json`.

    Attributes:
        id: Id of the query.
        vIoU: Spatio-temporal IoU; None without a true box.
        tIoU: Temporal IoU.
        sIoU: Spatial IoU in the true span; None without a true box.
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
    """Score every query with a ground truth.

    Args:
        queries: Queries of an index.
        tracks: Boxes of the annotated tracks.
        predictions: Predicted tubes in any order.
        protocol: One of `protocols.PROTOCOLS`. With `every-frame`, a query without a prediction
            scores 0.

    Returns:
        Scores in the order of the queries.

    Raises:
        InputError: A prediction belongs to no query, or `protocols.score_tubes` fails.
    """
    queries = list(queries)
    predicted_tubes = Tubes.from_predictions(predictions)
    check_known_ids(predicted_tubes, (query.id for query in queries))

    true_tubes = GroundTruthTubes.from_index(queries, tracks)
    return build_scores(score_tubes(true_tubes, predicted_tubes, protocol))


def check_known_ids(predictions: Tubes, ids: Iterable[str]) -> None:
    """Check that every prediction belongs to a query.

    Args:
        predictions: Predicted tubes.
        ids: Ids of the queries.

    Raises:
        InputError: A prediction belongs to no query.
    """
    unknown = set(predictions.ids) - set(ids)

    if unknown:
        raise InputError(
            f"{len(unknown)} predictions name no query of these, for example {min(unknown)!r}: "
            "is this the right index and split?"
        )


def build_scores(score_arrays: ScoreArrays) -> list[Score]:
    """Convert arrays of scores to records.

    Args:
        score_arrays: Scores of q queries.

    Returns:
        q records in the same order, None for NaN.
    """
    rows = zip(
        score_arrays.ids,
        score_arrays.vIoU.tolist(),
        score_arrays.tIoU.tolist(),
        score_arrays.sIoU.tolist(),
        strict=True,
    )

    scores = []
    for query_id, v_iou, t_iou, s_iou in rows:
        score = Score(id=query_id, vIoU=_nan_to_none(v_iou), tIoU=t_iou, sIoU=_nan_to_none(s_iou))
        scores.append(score)

    return scores


def _nan_to_none(value: float) -> float | None:
    """Return None for NaN."""
    return None if np.isnan(value) else value


def index_by_id(predictions: Iterable[Prediction]) -> dict[str, Prediction]:
    """Return predictions by the ids of their queries.

    Args:
        predictions: Predictions in any order.

    Returns:
        A dictionary in the order of the predictions.

    Raises:
        InputError: A query has two predictions.
    """
    by_id: dict[str, Prediction] = {}

    for prediction in predictions:
        if prediction.id in by_id:
            raise InputError(f"query {prediction.id!r} has two predictions; keep one")
        by_id[prediction.id] = prediction

    return by_id


def summarize(scores: Sequence[Score]) -> dict[str, float]:
    """Return means over queries, and the numbers of queries they are over.

    Args:
        scores: Scores of queries.

    Returns:
        m_vIoU, m_sIoU and vIoU@R (the share of queries with vIoU > R) over `boxed_queries`, and
        m_tIoU over all `queries`. A mean over zero queries is left out.
    """
    v_iou = np.array([score.vIoU for score in scores if score.vIoU is not None])
    s_iou = np.array([score.sIoU for score in scores if score.sIoU is not None])
    summary: dict[str, float] = {}

    # The order of the keys is the order of columns in reports.
    if len(v_iou):
        summary["m_vIoU"] = float(v_iou.mean())

    if scores:
        summary["m_tIoU"] = float(np.mean([score.tIoU for score in scores]))

    if len(v_iou):
        summary["m_sIoU"] = float(s_iou.mean())
        for threshold in THRESHOLDS:
            summary[f"vIoU@{threshold}"] = float((v_iou > threshold).mean())

    summary["queries"] = len(scores)
    summary["boxed_queries"] = len(v_iou)
    return summary


def summarize_by(
    scores: Sequence[Score], queries: Iterable[Query], attribute: Literal["form", "tag"]
) -> dict[str, dict[str, float]]:
    """Summarize scores by sentence form (`declarative`, …) or by tag.

    Args:
        scores: Scores of queries.
        queries: Queries with forms and tags.
        attribute: The attribute to group by. A query with several tags counts in each group.

    Returns:
        A summary for each form or tag, sorted by name.
    """
    names_by_id: dict[str, tuple[str, ...]] = {}
    for query in queries:
        if attribute == "tag":
            names_by_id[query.id] = query.tags
        else:
            names_by_id[query.id] = (query.form,) if query.form else ()

    groups: dict[str, list[Score]] = {}
    for score in scores:
        for name in names_by_id.get(score.id, ()):
            groups.setdefault(name, []).append(score)

    return {name: summarize(groups[name]) for name in sorted(groups)}


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write `scores/<split>.json` atomically: a list of `{id, vIoU, tIoU, sIoU}`.

    Args:
        path: The file to write.
        scores: Scores of queries.
    """
    write_json(path, [score.model_dump() for score in scores])


def read_scores(path: Path) -> list[Score]:
    """Read `scores/<split>.json`.

    Args:
        path: The file to read.

    Returns:
        Scores in the order of the file.

    Raises:
        InputError: The file does not exist or is not a list of scores.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(list[Score]).validate_python(entries)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run stvg-eval first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}): run stvg-eval again") from None
    except ValidationError as error:
        raise InputError(f"{path}: {format_first_error(error)}: run stvg-eval again") from None

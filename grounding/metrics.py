"""The `every-frame` protocol: tIoU, vIoU and sIoU of predicted tubes, and their means.

Half-open spans; every annotated frame counts; a query without a prediction scores 0. A prediction's boxes are
interpolated linearly between its sampled frames and held outside them. Truth frames without a box leave both
sums; predicted frames without a box score 0. With T_i, T_u the frames in both spans and in either, T_gt the
true ones, and boxed frames only where boxes are judged:

    tIoU = |T_i| / |T_u|,   vIoU = Σ_{t∈T_i} IoU_t / |T_u|,   sIoU = Σ_{t∈T_gt} IoU_t / |T_gt|.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipeline.boxes import interpolate, iou
from pipeline.errors import InputError
from pipeline.records import Prediction, Query, Record, Span, Tracks, first_problem, write_json

THRESHOLDS = (0.3, 0.5)
MEANS = ("m_vIoU", "m_tIoU", "m_sIoU", *(f"vIoU@{threshold}" for threshold in THRESHOLDS))


class Score(Record):
    """One query's scores in [0, 1]: an entry of `scores/<split>.json`.

    `vIoU` and `sIoU` are None where the truth has no boxes: only time can be judged there.
    """

    id: str
    vIoU: float | None
    tIoU: float
    sIoU: float | None


def score(queries: Iterable[Query], tracks: Tracks, predictions: Iterable[Prediction]) -> list[Score]:
    """Score every query that has a truth, in the order of `queries`; a query without a prediction scores 0."""
    queries = list(queries)
    predicted = by_id(predictions)
    unknown = predicted.keys() - {query.id for query in queries}
    if unknown:
        raise InputError(
            f"{len(unknown)} predictions name no query of these, for example {min(unknown)!r}: is this the right index and split?"
        )
    return [_score_query(query, tracks, predicted.get(query.id)) for query in queries if query.truth is not None]


def by_id(predictions: Iterable[Prediction]) -> dict[str, Prediction]:
    """Predictions by their query's id; two for one query are refused."""
    found: dict[str, Prediction] = {}
    for prediction in predictions:
        if prediction.id in found:
            raise InputError(f"query {prediction.id!r} has two predictions; keep one")
        found[prediction.id] = prediction
    return found


def _score_query(query: Query, tracks: Tracks, prediction: Prediction | None) -> Score:
    assert query.truth is not None
    span = query.truth.span
    frames, boxes = truth_boxes(query, tracks)
    if prediction is None:
        nothing = 0.0 if len(frames) else None
        return Score(id=query.id, tIoU=0.0, vIoU=nothing, sIoU=nothing)
    t_iou = temporal_iou(span, prediction.span)
    if len(frames) == 0:
        return Score(id=query.id, tIoU=t_iou, vIoU=None, sIoU=None)
    overlaps = iou(boxes_at(prediction, frames), boxes)
    begin, end = prediction.span
    shared = overlaps[(frames >= begin) & (frames < end)].sum()
    union = _length(span) + _length(prediction.span) - _length(_meet(span, prediction.span))
    unboxed = _length(span) - len(frames)
    return Score(id=query.id, tIoU=t_iou, vIoU=float(shared / (union - unboxed)), sIoU=float(overlaps.mean()))


def truth_boxes(query: Query, tracks: Tracks) -> tuple[np.ndarray, np.ndarray]:
    """The true span's frames that have a box, `[n]`, and their boxes `[n, 4]` xyxy pixels; empty where none is known."""
    if query.truth is None or query.truth.track is None:
        return np.zeros(0, np.int32), np.zeros((0, 4), np.float32)
    frames, boxes = tracks[query.truth.track]
    first, last = np.searchsorted(frames, query.truth.span)
    return frames[first:last], boxes[first:last]


def boxes_at(prediction: Prediction, frames: np.ndarray) -> np.ndarray:
    """The predicted box at each of `frames` `[n]` → `[n, 4]` xyxy pixels; all zero (IoU 0) if none was predicted."""
    if not prediction.boxes:
        return np.zeros((len(frames), 4))
    rows = np.asarray(prediction.boxes, np.float64)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    return interpolate(rows[:, 0], rows[:, 1:], frames)


def temporal_iou(a: Span, b: Span) -> float:
    """Intersection over union of two spans `[begin, end)`; 0 where both are empty."""
    shared = _length(_meet(a, b))
    union = _length(a) + _length(b) - shared
    return shared / union if union else 0.0


def _meet(a: Span, b: Span) -> Span:
    return max(a[0], b[0]), min(a[1], b[1])


def _length(span: Span) -> int:
    return max(0, span[1] - span[0])


def summarise(scores: Sequence[Score]) -> dict[str, float]:
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
        summary |= {f"vIoU@{threshold}": float((v_iou > threshold).mean()) for threshold in THRESHOLDS}
    return summary | {"queries": len(scores), "boxed_queries": len(v_iou)}


def summarise_by(scores: Sequence[Score], queries: Iterable[Query], by: Literal["form", "tag"]) -> dict[str, dict[str, float]]:
    """A summary per form (`declarative`, …) or per tag, by name; a query with several tags counts in each."""
    names: Mapping[str, tuple[str, ...]] = {
        query.id: query.tags if by == "tag" else ((query.form,) if query.form else ()) for query in queries
    }
    groups: dict[str, list[Score]] = {}
    for one in scores:
        for name in names[one.id]:
            groups.setdefault(name, []).append(one)
    return {name: summarise(groups[name]) for name in sorted(groups)}


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write `scores/<split>.json`: a list of `{id, vIoU, tIoU, sIoU}`, atomically."""
    write_json(path, [one.model_dump() for one in scores])


def read_scores(path: Path) -> list[Score]:
    """Read `scores/<split>.json`; a file that is not one is an InputError that names it."""
    try:
        return TypeAdapter(list[Score]).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run stvg-eval first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}): run stvg-eval again") from None
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}: run stvg-eval again") from None

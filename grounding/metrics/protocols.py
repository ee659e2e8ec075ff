"""How tubes are judged: one rule of ours and three of public evaluators, so that numbers can be put beside published ones.

With T_i, T_u the frames in both spans and in either, T_gt the true ones, and boxed frames only where boxes are judged:

    tIoU = |T_i| / |T_u|,   vIoU = Σ_{t∈T_i} IoU_t / |T_u|,   sIoU = Σ_{t∈T_gt} IoU_t / |T_gt|.

- `every-frame` (ours, the default): half-open spans, every annotated frame counts, a query without a prediction
  scores 0. True frames without a box leave both sums; predicted frames without a box score 0.
- `official` (the HC-STVG challenge's script): every frame; the denominator is the hull of both spans, frames without a
  box included; tIoU too counts frames that have a box in both; a query without a prediction scores 0.
- `tubedetr` (TubeDETR's evaluators): boxes are judged on sampled frames only, 5 a second and at most 200 of a segment;
  tIoU on all frames; a query without a prediction is an error.
- `stcat` (STCAT's evaluators, which CG-STVG took over): every frame; the last true frame is used as if it were the
  exclusive end; queries without a prediction leave the mean. On VidSTG that program reads the annotation's
  exclusive end as the last frame, cut at the segment's last one, so nothing is lost but there.

A frame-wise prediction (the challenge's file) has the boxes it lists; outside them, sIoU alone holds the nearest one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from grounding.structures.tubes import Tubes, concatenate_ranges, encode_row_keys
from pipeline.boxes import iou
from pipeline.errors import InputError
from pipeline.records import Query, Span
from pipeline.tracks import Tracks

PROTOCOLS = ("every-frame", "official", "tubedetr", "stcat")
INDEX_PROTOCOLS = ("tubedetr", "stcat")
SAMPLES_PER_SECOND, MAX_SAMPLES = 5, 200
CHUNK_SIZE = 64
"""Tubes judged at once: their rows stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class GroundTruthTubes:
    """True tubes; from an index also each query's `fps` `[q]` and `segments` `[q, 2]`, frames `[begin, end)`.

    `end_is_last`: STCAT's program reads the annotation's exclusive ends as last frames (VidSTG).
    """

    tubes: Tubes
    fps: np.ndarray | None = None
    segments: np.ndarray | None = None
    end_is_last: bool = False

    @classmethod
    def from_index(
        cls, queries: Iterable[Query], tracks: Tracks, dataset_name: str | None = None
    ) -> GroundTruthTubes:
        """The truths of those queries that have one."""
        known = [query for query in queries if query.truth is not None]
        fps, segments = (
            np.array([query.fps for query in known]),
            np.array([query.segment for query in known], np.int64).reshape(-1, 2),
        )
        return cls(
            Tubes.from_ground_truth(known, tracks),
            fps,
            segments,
            end_is_last=dataset_name == "vidstg",
        )


@dataclass(frozen=True, eq=False)
class ScoreArrays:
    """Scores in [0, 1] of `q` queries, float64 `[q]` each; NaN for vIoU and sIoU where the truth has no boxes."""

    ids: tuple[str, ...]
    vIoU: np.ndarray
    tIoU: np.ndarray
    sIoU: np.ndarray


@dataclass(frozen=True, eq=False)
class ProtocolRule:
    """What a protocol judges: `spans` `[q, 2]` as it reads them, the `rows` of true boxes that count, and, where only
    sampled frames do, those of every segment as `(owners, frames)`.
    """

    spans: np.ndarray
    box_rows: np.ndarray
    sampled_frames: tuple[np.ndarray, np.ndarray] | None = None


def score_tubes(
    true_tubes: GroundTruthTubes, predictions: Tubes, protocol: str = "every-frame"
) -> ScoreArrays:
    """Judge each true tube against the prediction of the same id, in the truths' order."""
    check_protocol(protocol, true_tubes)
    places = _match_predictions(true_tubes.tubes.ids, predictions)
    missing = places < 0
    if missing.any() and protocol == "tubedetr":
        first = true_tubes.tubes.ids[int(missing.argmax())]
        raise InputError(
            f"{int(missing.sum())} of {len(places)} queries have no prediction, for example {first!r}: protocol tubedetr needs all; "
            "predict them, or judge by every-frame"
        )
    parts = [
        _score_chunk(true_tubes, predictions, protocol, places, begin)
        for begin in range(0, len(places), CHUNK_SIZE)
    ]
    t_iou, v_iou, s_iou = (
        np.concatenate([np.zeros(0), *(part[k] for part in parts)]) for k in range(3)
    )
    if protocol != "stcat":
        return ScoreArrays(true_tubes.tubes.ids, v_iou, t_iou, s_iou)
    kept = np.flatnonzero(~missing)
    return ScoreArrays(
        tuple(true_tubes.tubes.ids[i] for i in kept), v_iou[kept], t_iou[kept], s_iou[kept]
    )


def check_protocol(protocol: str, true_tubes: GroundTruthTubes | None = None) -> None:
    """InputError for a name that is no protocol, or a protocol that needs an index where the truth is only tubes."""
    if protocol not in PROTOCOLS:
        raise InputError(
            f"--protocol {protocol!r} is not known; the protocols are {', '.join(PROTOCOLS)}"
        )
    if true_tubes is not None and true_tubes.segments is None and protocol in INDEX_PROTOCOLS:
        raise InputError(
            f"protocol {protocol} needs an index as truth (what stvg-prepare writes), not the challenge's file"
        )


def _match_predictions(ids: Sequence[str], predictions: Tubes) -> np.ndarray:
    """`[q]`: where each id's prediction is, −1 where there is none; an id with two is refused."""
    found: dict[str, int] = {}
    for place, name in enumerate(predictions.ids):
        if found.setdefault(name, place) != place:
            raise InputError(f"query {name!r} has two predictions; keep one")
    return np.array([found.get(name, -1) for name in ids], np.int64)


def _score_chunk(
    true_tubes: GroundTruthTubes,
    predictions: Tubes,
    protocol: str,
    prediction_indices: np.ndarray,
    begin: int,
) -> tuple[np.ndarray, ...]:
    """`(tIoU, vIoU, sIoU)` of up to CHUNK queries from `begin`."""
    end = min(begin + CHUNK_SIZE, len(prediction_indices))
    part = GroundTruthTubes(
        true_tubes.tubes.slice(begin, end),
        None if true_tubes.fps is None else true_tubes.fps[begin:end],
        None if true_tubes.segments is None else true_tubes.segments[begin:end],
        true_tubes.end_is_last,
    )
    count = end - begin
    predicted = predictions.select(prediction_indices[begin:end])
    rule = _build_rule(part, protocol)
    true, said = rule.spans, predicted.spans
    owners, frames = part.tubes.row_tubes[rule.box_rows], part.tubes.frames[rule.box_rows]
    boxes, own = predicted.boxes_at(owners, frames)
    overlaps = iou(boxes, part.tubes.boxes[rule.box_rows])
    in_truth = (frames >= true[owners, 0]) & (frames < true[owners, 1])
    shared = in_truth & (frames >= said[owners, 0]) & (frames < said[owners, 1]) & own
    together = _sum_by_owner(owners, count, shared * overlaps)
    boxed = _sum_by_owner(owners, count, in_truth)
    known = np.diff(part.tubes.offsets) > 0
    t_iou = _safe_divide(_span_intersection(true, said), _span_union(true, said))
    if protocol == "official":
        hull = np.maximum(true[:, 1], said[:, 1]) - np.minimum(true[:, 0], said[:, 0])
        t_iou = np.where(known, _safe_divide(_sum_by_owner(owners, count, shared), hull), t_iou)
        judged = hull
    elif rule.sampled_frames is not None:
        judged = _count_sampled_in_union(rule.sampled_frames, true, said, count) - (
            _count_sampled_in_span(rule.sampled_frames, true, count) - boxed
        )
    else:
        judged = _span_union(true, said) - (_span_lengths(true) - boxed)
    v_iou = np.where(known, _safe_divide(together, judged), np.nan)
    s_iou = np.where(
        known,
        _safe_divide(_sum_by_owner(owners, count, overlaps), _sum_by_owner(owners, count, 1.0)),
        np.nan,
    )
    return t_iou, v_iou, s_iou


def _build_rule(true_tubes: GroundTruthTubes, protocol: str) -> ProtocolRule:
    """What a protocol judges of these truths."""
    tubes = true_tubes.tubes
    everything = np.arange(len(tubes.frames))
    if protocol == "stcat" and true_tubes.segments is not None:
        last = (
            np.minimum(tubes.spans[:, 1], true_tubes.segments[:, 1] - 1)
            if true_tubes.end_is_last
            else tubes.spans[:, 1] - 1
        )
        return ProtocolRule(np.stack([tubes.spans[:, 0], last], 1), everything)
    if protocol == "tubedetr" and true_tubes.segments is not None and true_tubes.fps is not None:
        sampled = sample_tubedetr_frames(true_tubes.segments, true_tubes.fps)
        kept = np.flatnonzero(
            np.isin(tubes.row_keys(), encode_row_keys(*sampled), assume_unique=True)
        )
        return ProtocolRule(tubes.spans, kept, sampled)
    return ProtocolRule(tubes.spans, everything)


def sample_tubedetr_frames(segments: np.ndarray, fps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TubeDETR's frames of each segment `[q, 2]` → `(owners, frames)`, both `[m]`.

    The segment's first frame and every frame at which ⌊frame · 5 / fps⌋ grows; of more than 200, 200 evenly taken.
    """
    lengths = _span_lengths(segments)
    owners = np.repeat(np.arange(len(segments)), lengths)
    frames = concatenate_ranges(segments[:, 0], lengths)
    rate = (SAMPLES_PER_SECOND / fps)[owners]
    grows = np.floor(frames * rate) > np.floor((frames - 1) * rate)
    kept = grows | (frames == segments[owners, 0])
    owners, frames = owners[kept], frames[kept]
    counts = np.bincount(owners, minlength=len(segments))
    starts = np.cumsum(counts) - counts
    taken = np.minimum(counts, MAX_SAMPLES)
    place = concatenate_ranges(np.zeros(len(counts), np.int64), taken)
    thinned = np.repeat(starts, taken) + place * np.repeat(counts, taken) // np.repeat(taken, taken)
    return owners[thinned], frames[thinned]


def _count_sampled_in_span(
    sampled: tuple[np.ndarray, np.ndarray], spans: np.ndarray, count: int
) -> np.ndarray:
    owners, frames = sampled
    return _sum_by_owner(owners, count, (frames >= spans[owners, 0]) & (frames < spans[owners, 1]))


def _count_sampled_in_union(
    sampled: tuple[np.ndarray, np.ndarray], a: np.ndarray, b: np.ndarray, count: int
) -> np.ndarray:
    owners, frames = sampled
    inside = [(frames >= spans[owners, 0]) & (frames < spans[owners, 1]) for spans in (a, b)]
    return _sum_by_owner(owners, count, inside[0] | inside[1])


def temporal_iou(a: Span, b: Span) -> float:
    """Intersection over union of two spans `[begin, end)`; 0 where both are empty."""
    first, second = np.array([a]), np.array([b])
    return float(_safe_divide(_span_intersection(first, second), _span_union(first, second))[0])


def _span_lengths(spans: np.ndarray) -> np.ndarray:
    return np.maximum(spans[:, 1] - spans[:, 0], 0)


def _span_intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[q]`: frames in both spans."""
    return np.maximum(np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0]), 0)


def _span_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _span_lengths(a) + _span_lengths(b) - _span_intersection(a, b)


def _sum_by_owner(owners: np.ndarray, count: int, weights: np.ndarray | float) -> np.ndarray:
    """`[count]`: the sum of the rows' weights for each owner."""
    return np.bincount(owners, np.broadcast_to(weights, owners.shape), minlength=count)


def _safe_divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Row by row; 0 where the bottom is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(denominator)), where=denominator > 0)

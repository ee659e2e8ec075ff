"""Scoring of tubes by four protocols: the project's own and three public evaluators.

The public protocols make scores comparable with published ones. T_i are the frames in both spans,
T_u those in either span, T_gt those in the true span. Boxes are scored at frames with a true box:

    tIoU = |T_i| / |T_u|,   vIoU = Σ_{t∈T_i} IoU_t / |T_u|,   sIoU = Σ_{t∈T_gt} IoU_t / |T_gt|.

- `every-frame` (the project's default): half-open spans, every annotated frame counts, a query
  without a prediction scores 0. True frames without a box are left out of both sums. Predicted
  frames without a box score 0.
- `official` (the HC-STVG challenge's script): every frame. The denominator is the hull of both
  spans, frames without a box included. tIoU also counts only frames with a box in both tubes. A
  query without a prediction scores 0.
- `tubedetr` (TubeDETR's evaluators): boxes are scored on sampled frames only, 5 per second and at
  most 200 per segment. tIoU is over all frames. A query without a prediction is an error.
- `stcat` (STCAT's evaluators, also used by CG-STVG): every frame. The last true frame is used as
  the exclusive end. Queries without a prediction are left out of the mean. On VidSTG, STCAT reads
  the annotation's exclusive end as the last frame, cut at the segment's last frame. There, a frame
  is lost only at the segment's end.

A frame-wise prediction (the challenge's file) has boxes at its listed frames only. Only sIoU uses
the nearest box at other frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from grounding.structures.tubes import Tubes, concatenate_ranges, encode_row_keys
from pipeline.boxes import box_iou
from pipeline.errors import InputError
from pipeline.records import Query, Span
from pipeline.tracks import Tracks

SAMPLES_PER_SECOND = 5
"""TubeDETR's sampling rate."""

MAX_SAMPLES = 200
"""TubeDETR's maximum number of sampled frames of a segment."""

CHUNK_SIZE = 64
"""Number of tubes scored together: their rows stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class GroundTruthTubes:
    """True tubes, with the facts of an index that some protocols need.

    Attributes:
        tubes: q true tubes, frame-wise.
        fps: [q], frames per second of each query's video; None without an index.
        segments: [q, 2], frames `[begin, end)` of each query's segment; None without an index.
        end_is_last: True for VidSTG, where STCAT reads the annotation's exclusive end as the last
            frame.
    """

    tubes: Tubes
    fps: np.ndarray | None = None
    segments: np.ndarray | None = None
    end_is_last: bool = False

    @classmethod
    def from_index(
        cls, queries: Iterable[Query], tracks: Tracks, dataset_name: str | None = None
    ) -> GroundTruthTubes:
        """Build the true tubes of an index.

        Args:
            queries: Queries of the index; those without a ground truth are skipped.
            tracks: Boxes of the annotated tracks.
            dataset_name: Name of the data set; None if unknown.

        Returns:
            Tubes with frame rates and segments.
        """
        annotated = [query for query in queries if query.truth is not None]
        fps = np.array([query.fps for query in annotated])
        segments = np.array([query.segment for query in annotated], np.int64).reshape(-1, 2)

        return cls(
            tubes=Tubes.from_ground_truth(annotated, tracks),
            fps=fps,
            segments=segments,
            end_is_last=dataset_name == "vidstg",
        )


@dataclass(frozen=True, eq=False)
class ScoreArrays:
    """Scores of q queries, float64 in [0, 1].

    Attributes:
        ids: [q], query ids.
        vIoU: [q], NaN without a true box.
        tIoU: [q].
        sIoU: [q], NaN without a true box.
    """

    ids: tuple[str, ...]
    vIoU: np.ndarray
    tIoU: np.ndarray
    sIoU: np.ndarray


@dataclass(frozen=True, eq=False)
class ProtocolRule:
    """The part of the ground truth that a protocol scores.

    Attributes:
        spans: [q, 2], true spans as the protocol reads them, frames `[begin, end)`.
        box_rows: [m], rows of the true boxes that count.
        sampled_frames: `(tube_indices, frames)` of all sampled frames of the segments; None if the
            protocol scores every frame.
    """

    spans: np.ndarray
    box_rows: np.ndarray
    sampled_frames: tuple[np.ndarray, np.ndarray] | None = None


def score_tubes(
    true_tubes: GroundTruthTubes, predictions: Tubes, protocol: str = "every-frame"
) -> ScoreArrays:
    """Score each true tube against the prediction with the same id.

    Args:
        true_tubes: The ground truth.
        predictions: Predicted tubes in any order.
        protocol: One of `PROTOCOLS`.

    Returns:
        Scores in the order of the true tubes. With `stcat`, queries without a prediction are
        left out.

    Raises:
        InputError: The protocol is unknown or needs an index, a query has two predictions, or
            protocol `tubedetr` lacks a prediction.
    """
    check_protocol(protocol, true_tubes)

    ids = true_tubes.tubes.ids
    prediction_indices = _match_predictions(ids, predictions)  # [q]
    missing = prediction_indices < 0  # [q]

    if missing.any() and protocol == "tubedetr":
        first = ids[int(missing.argmax())]
        raise InputError(
            f"{int(missing.sum())} of {len(ids)} queries have no prediction, for example "
            f"{first!r}: protocol tubedetr needs all; predict them, or use protocol every-frame"
        )

    # Score chunk by chunk. The empty array allows for zero chunks.
    t_iou_chunks = [np.zeros(0)]
    v_iou_chunks = [np.zeros(0)]
    s_iou_chunks = [np.zeros(0)]

    for begin in range(0, len(ids), CHUNK_SIZE):
        t_iou, v_iou, s_iou = _score_chunk(
            true_tubes, predictions, protocol, prediction_indices, begin
        )
        t_iou_chunks.append(t_iou)
        v_iou_chunks.append(v_iou)
        s_iou_chunks.append(s_iou)

    scores = ScoreArrays(
        ids=ids,
        vIoU=np.concatenate(v_iou_chunks),
        tIoU=np.concatenate(t_iou_chunks),
        sIoU=np.concatenate(s_iou_chunks),
    )

    if protocol != "stcat":
        return scores

    predicted = np.flatnonzero(~missing)
    return ScoreArrays(
        ids=tuple(ids[index] for index in predicted),
        vIoU=scores.vIoU[predicted],
        tIoU=scores.tIoU[predicted],
        sIoU=scores.sIoU[predicted],
    )


def check_protocol(protocol: str, true_tubes: GroundTruthTubes | None = None) -> None:
    """Check that a protocol exists and is applicable to a ground truth.

    Args:
        protocol: Name of the protocol.
        true_tubes: The ground truth; None to check the name alone.

    Raises:
        InputError: The name is unknown, or the protocol needs an index.
    """
    if protocol not in PROTOCOLS:
        raise InputError(
            f"--protocol {protocol!r} is not known; the protocols are {', '.join(PROTOCOLS)}"
        )

    if true_tubes is not None and true_tubes.segments is None and PROTOCOLS[protocol].needs_index:
        raise InputError(
            f"protocol {protocol} needs an index as truth (what stvg-prepare writes), "
            "not the challenge's file"
        )


def _match_predictions(ids: Sequence[str], predictions: Tubes) -> np.ndarray:
    """Return the prediction's index for each id, `[q]`, −1 without one; refuse duplicates."""
    index_by_id: dict[str, int] = {}

    for index, query_id in enumerate(predictions.ids):
        if query_id in index_by_id:
            raise InputError(f"query {query_id!r} has two predictions; keep one")
        index_by_id[query_id] = index

    return np.array([index_by_id.get(query_id, -1) for query_id in ids], np.int64)


def _slice_tubes(true_tubes: GroundTruthTubes, begin: int, end: int) -> GroundTruthTubes:
    """Return true tubes `begin` to `end`."""
    fps = true_tubes.fps
    segments = true_tubes.segments

    return GroundTruthTubes(
        tubes=true_tubes.tubes.slice(begin, end),
        fps=None if fps is None else fps[begin:end],
        segments=None if segments is None else segments[begin:end],
        end_is_last=true_tubes.end_is_last,
    )


def _score_chunk(
    true_tubes: GroundTruthTubes,
    predictions: Tubes,
    protocol: str,
    prediction_indices: np.ndarray,
    begin: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `(tIoU, vIoU, sIoU)` of up to `CHUNK_SIZE` queries from index `begin`."""
    end = min(begin + CHUNK_SIZE, len(prediction_indices))
    count = end - begin
    chunk = _slice_tubes(true_tubes, begin, end)
    predicted = predictions.select(prediction_indices[begin:end])

    rule = PROTOCOLS[protocol].build_rule(chunk)
    true_spans = rule.spans  # [count, 2]
    pred_spans = predicted.spans  # [count, 2]

    # True boxes, and the predicted boxes at the same frames: m rows.
    tube_indices = chunk.tubes.row_tubes[rule.box_rows]  # [m]
    frames = chunk.tubes.frames[rule.box_rows]  # [m]
    pred_boxes, has_pred_box = predicted.boxes_at(tube_indices, frames)
    overlaps = box_iou(pred_boxes, chunk.tubes.boxes[rule.box_rows])  # [m]

    # Rows in the true span, and rows in both spans with a box in both tubes.
    in_truth = _in_spans(tube_indices, frames, true_spans)  # [m]
    in_prediction = _in_spans(tube_indices, frames, pred_spans)  # [m]
    in_both = in_truth & in_prediction & has_pred_box  # [m]

    overlap_sums = _sum_by_tube(tube_indices, count, in_both * overlaps)  # [count]
    num_boxed = _sum_by_tube(tube_indices, count, in_truth)  # [count]
    has_boxes = np.diff(chunk.tubes.offsets) > 0  # [count]

    span_union = _span_union(true_spans, pred_spans)  # [count]
    t_iou = _safe_divide(_span_intersection(true_spans, pred_spans), span_union)

    # Denominators of vIoU: the hull of both spans, or the frames in either span. True frames
    # without a box are left out of the latter.
    if PROTOCOLS[protocol].uses_hull:
        last_end = np.maximum(true_spans[:, 1], pred_spans[:, 1])
        first_begin = np.minimum(true_spans[:, 0], pred_spans[:, 0])
        denominator = last_end - first_begin

        num_in_both = _sum_by_tube(tube_indices, count, in_both)
        t_iou = np.where(has_boxes, _safe_divide(num_in_both, denominator), t_iou)
    elif rule.sampled_frames is not None:
        num_true = _count_sampled_in_span(rule.sampled_frames, true_spans, count)
        num_either = _count_sampled_in_union(rule.sampled_frames, true_spans, pred_spans, count)
        denominator = num_either - (num_true - num_boxed)
    else:
        num_unboxed = _span_lengths(true_spans) - num_boxed
        denominator = span_union - num_unboxed

    v_iou = np.where(has_boxes, _safe_divide(overlap_sums, denominator), np.nan)

    # sIoU ignores the predicted span.
    all_overlaps = _sum_by_tube(tube_indices, count, overlaps)
    num_rows = _sum_by_tube(tube_indices, count, 1.0)
    s_iou = np.where(has_boxes, _safe_divide(all_overlaps, num_rows), np.nan)
    return t_iou, v_iou, s_iou


def _use_all_frames(true_tubes: GroundTruthTubes) -> ProtocolRule:
    """Return the rule that scores every annotated frame."""
    tubes = true_tubes.tubes
    return ProtocolRule(tubes.spans, np.arange(len(tubes.frames)))


def _use_stcat_ends(true_tubes: GroundTruthTubes) -> ProtocolRule:
    """Return STCAT's rule: the last true frame is used as the exclusive end."""
    tubes = true_tubes.tubes
    segments = true_tubes.segments
    assert segments is not None

    if true_tubes.end_is_last:
        ends = np.minimum(tubes.spans[:, 1], segments[:, 1] - 1)
    else:
        ends = tubes.spans[:, 1] - 1

    spans = np.stack([tubes.spans[:, 0], ends], 1)  # [q, 2]
    return ProtocolRule(spans, np.arange(len(tubes.frames)))


def _use_tubedetr_samples(true_tubes: GroundTruthTubes) -> ProtocolRule:
    """Return TubeDETR's rule: boxes count at its sampled frames."""
    tubes = true_tubes.tubes
    assert true_tubes.segments is not None
    assert true_tubes.fps is not None

    sampled = sample_tubedetr_frames(true_tubes.segments, true_tubes.fps)
    sampled_keys = encode_row_keys(*sampled)
    is_sampled = np.isin(tubes.row_keys(), sampled_keys, assume_unique=True)
    return ProtocolRule(tubes.spans, np.flatnonzero(is_sampled), sampled)


def sample_tubedetr_frames(segments: np.ndarray, fps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return TubeDETR's sampled frames of each segment.

    A segment's samples are its first frame and every frame at which ⌊frame · 5 / fps⌋ grows. Of
    more than 200 frames, 200 are taken evenly.

    Args:
        segments: [q, 2], frames `[begin, end)`.
        fps: [q], frames per second.

    Returns:
        tube_indices: [m], the segment of each sample.
        frames: [m], the frame of each sample, ascending within each segment.
    """
    # All frames of all segments.
    lengths = _span_lengths(segments)
    all_tubes = np.repeat(np.arange(len(segments)), lengths)
    all_frames = concatenate_ranges(segments[:, 0], lengths)

    # Frames at 5 per second.
    rate = (SAMPLES_PER_SECOND / fps)[all_tubes]
    grows = np.floor(all_frames * rate) > np.floor((all_frames - 1) * rate)
    is_first = all_frames == segments[all_tubes, 0]
    is_sample = grows | is_first
    tube_indices = all_tubes[is_sample]
    frames = all_frames[is_sample]

    # At most 200 frames of each segment: sample k of n is frame ⌊k · count / n⌋.
    counts = np.bincount(tube_indices, minlength=len(segments))  # [q]
    starts = np.cumsum(counts) - counts  # [q]
    num_samples = np.minimum(counts, MAX_SAMPLES)  # [q]
    sample = concatenate_ranges(np.zeros(len(counts), np.int64), num_samples)  # [m]
    step = sample * np.repeat(counts, num_samples) // np.repeat(num_samples, num_samples)
    rows = np.repeat(starts, num_samples) + step  # [m]

    return tube_indices[rows], frames[rows]


def _in_spans(tube_indices: np.ndarray, frames: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Return which frames `[m]` lie in the spans `[q, 2]` of their tubes."""
    begins = spans[tube_indices, 0]
    ends = spans[tube_indices, 1]
    return (frames >= begins) & (frames < ends)


def _count_sampled_in_span(
    sampled: tuple[np.ndarray, np.ndarray], spans: np.ndarray, count: int
) -> np.ndarray:
    """Return the number of sampled frames in each span, `[count]`."""
    tube_indices, frames = sampled
    return _sum_by_tube(tube_indices, count, _in_spans(tube_indices, frames, spans))


def _count_sampled_in_union(
    sampled: tuple[np.ndarray, np.ndarray], a: np.ndarray, b: np.ndarray, count: int
) -> np.ndarray:
    """Return the number of sampled frames in either of two spans, `[count]`."""
    tube_indices, frames = sampled
    in_either = _in_spans(tube_indices, frames, a) | _in_spans(tube_indices, frames, b)
    return _sum_by_tube(tube_indices, count, in_either)


def temporal_iou(a: Span, b: Span) -> float:
    """Return the intersection over union of two spans.

    Args:
        a: Frames `[begin, end)`.
        b: Frames `[begin, end)`.

    Returns:
        IoU in [0, 1]; 0 for two empty spans.
    """
    first = np.array([a])
    second = np.array([b])

    intersection = _span_intersection(first, second)
    union = _span_union(first, second)
    return float(_safe_divide(intersection, union)[0])


def _span_lengths(spans: np.ndarray) -> np.ndarray:
    """Return the number of frames of each span, `[q]`."""
    return np.maximum(spans[:, 1] - spans[:, 0], 0)


def _span_intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the number of frames in both spans, `[q]`."""
    begins = np.maximum(a[:, 0], b[:, 0])
    ends = np.minimum(a[:, 1], b[:, 1])
    return np.maximum(ends - begins, 0)


def _span_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the number of frames in either span, `[q]`."""
    return _span_lengths(a) + _span_lengths(b) - _span_intersection(a, b)


def _sum_by_tube(tube_indices: np.ndarray, count: int, weights: np.ndarray | float) -> np.ndarray:
    """Return the sum of the rows' weights for each tube, `[count]`."""
    row_weights = np.broadcast_to(weights, tube_indices.shape)
    return np.bincount(tube_indices, row_weights, minlength=count)


def _safe_divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide row by row; 0 where the denominator is 0."""
    result = np.zeros(len(denominator))
    return np.divide(numerator, denominator, out=result, where=denominator > 0)


@dataclass(frozen=True)
class Protocol:
    """A way to score predictions.

    Attributes:
        build_rule: Function from true tubes to the part of them that the protocol scores.
        uses_hull: The denominator of tIoU and vIoU is the hull of both spans, not their union.
        needs_index: The rule needs the frame rates and segments of an index.
    """

    build_rule: Callable[[GroundTruthTubes], ProtocolRule]
    uses_hull: bool = False
    needs_index: bool = False


PROTOCOLS = {
    "every-frame": Protocol(_use_all_frames),
    "official": Protocol(_use_all_frames, uses_hull=True),
    "tubedetr": Protocol(_use_tubedetr_samples, needs_index=True),
    "stcat": Protocol(_use_stcat_ends, needs_index=True),
}
"""Every protocol by name."""

"""Data of the page's scripts.

- `data.js`: the list of all queries.
- `queries/<index>.js`: the details of one query.

The files are scripts, because a page opened from disk cannot read other files. Each holds JSON, and
its content cannot end the script. Boxes are `[frame, x1, y1, x2, y2]` in pixels of the original
video.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from grounding.evaluation.results import RunResults
from grounding.structures.span_scores import BoundaryScores, ProposalScores
from grounding.structures.tubes import ground_truth_boxes
from pipeline.io.atomic import atomic_write
from pipeline.records import Prediction, Query
from pipeline.tracks import Tracks

if TYPE_CHECKING:
    from grounding.visualization.attention_maps import AttentionMap, QueryAttention

QUERIES_DIR = "queries"
MAX_FRAMES = 1000
"""Maximum number of stored frames with attention maps; longer segments are sampled evenly."""
HTML_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}
"""JSON escapes of the signs that could end a script."""


def write_script(path: Path, function_name: str, *values: Any) -> None:
    """Write a script that calls `stvg.<function_name>` with JSON values, atomically.

    Args:
        path: The file to write.
        function_name: Function of `report.js`.
        *values: Arguments, JSON-serializable.

    Raises:
        ValueError: If a number is not finite.
    """
    arguments = []
    for value in values:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        arguments.append(text.translate(HTML_ESCAPES))

    script = f"stvg.{function_name}({', '.join(arguments)});\n"
    with atomic_write(path) as temporary_path:
        temporary_path.write_text(script, encoding="utf-8")


def build_query_row(query: Query, runs: Sequence[RunResults], video_index: int) -> dict[str, Any]:
    """Return the record of a query in the list of queries.

    Args:
        query: The query.
        runs: The run and, optionally, a run that is compared.
        video_index: Index of the query's video among the page's videos.

    Returns:
        The record; `spans` are one per run, and so are `scores`: `[vIoU, tIoU, sIoU]`.
    """
    spans = []
    scores = []
    for run in runs:
        prediction = run.predictions.get(query.id)
        spans.append(list(prediction.span) if prediction else None)

        score = run.scores[query.id]
        values = (score.vIoU, score.tIoU, score.sIoU)
        scores.append([_round_score(value) for value in values])

    return {
        "id": query.id,
        "text": query.text,
        "path": query.path,
        "video": video_index,
        "form": query.form or "",
        "tags": list(query.tags),
        "segment": list(query.segment),
        "truth": list(query.truth.span) if query.truth else None,
        "spans": spans,
        "scores": scores,
    }


def build_query_details(
    query: Query,
    tracks: Tracks,
    runs: Sequence[RunResults],
    query_attentions: Sequence[QueryAttention | None],
) -> dict[str, Any]:
    """Return the record of a query's own view: tubes, and attention of each run's model.

    Args:
        query: The query.
        tracks: Ground-truth tracks.
        runs: The run and, optionally, a run that is compared.
        query_attentions: Attention of each run's model; None where it was not recorded.

    Returns:
        The record.
    """
    frames, boxes = ground_truth_boxes(query, tracks)  # [n], [n, 4]
    true_rows = []
    for frame, box in zip(frames.tolist(), boxes.round(1).tolist(), strict=True):
        true_rows.append([frame, *box])

    predictions = [run.predictions.get(query.id) for run in runs]

    return {
        "size": list(query.size),
        "fps": query.fps,
        "truth": true_rows,
        "answers": [_format_prediction(prediction) for prediction in predictions],
        "seen": [_format_attention(attention) for attention in query_attentions],
    }


def _format_prediction(prediction: Prediction | None) -> dict[str, Any] | None:
    """Return the record of a prediction."""
    if prediction is None:
        return None

    rows = []
    for frame, *box in prediction.boxes:
        rows.append([frame, *(round(coordinate, 1) for coordinate in box)])

    return {"score": round(prediction.score, 4), "boxes": rows}


def _format_attention(query_attention: QueryAttention | None) -> dict[str, Any] | None:
    """Return the record of a model's attention and temporal scores."""
    if query_attention is None:
        return None

    # Evenly spaced frames of a long segment.
    frame_indices = query_attention.frame_indices
    count = min(MAX_FRAMES, len(frame_indices))
    slots = np.linspace(0, len(frame_indices) - 1, count).round().astype(int)
    frame_slots = np.unique(slots)

    return {
        "frames": frame_indices[frame_slots].tolist(),
        "maps": [
            _encode_attention_map(attention_map, frame_slots)
            for attention_map in query_attention.maps
        ],
        "when": _format_span_scores(query_attention.span_scores),
    }


def _encode_attention_map(attention_map: AttentionMap, frame_slots: np.ndarray) -> dict[str, Any]:
    """Return normalized maps as a gray PNG.

    The image has a line per frame. A line holds one layer after the other, row by row.
    """
    weights = attention_map.normalized[:, frame_slots]  # [layers, n, H, W]
    num_layers, num_frames, num_rows, num_columns = weights.shape

    # [n, layers * H * W], 8 bits.
    lines = weights.swapaxes(0, 1).reshape(num_frames, -1)
    pixels = (lines * 255).round().astype(np.uint8)

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    encoded = base64.b64encode(file.getvalue()).decode()

    return {
        "about": attention_map.description,
        "layers": num_layers,
        "rows": num_rows,
        "columns": num_columns,
        "picture": "data:image/png;base64," + encoded,
    }


def _format_span_scores(span_scores: Any) -> dict[str, Any]:
    """Return the proposal map, or the probabilities of starts and ends at frame edges."""
    if isinstance(span_scores, ProposalScores):
        return {"map": span_scores.mean.clip(0).round(3).tolist()}

    assert isinstance(span_scores, BoundaryScores)

    return {
        "edges": span_scores.edges.tolist(),
        "begins": span_scores.start_probabilities.round(4).tolist(),
        "ends": span_scores.end_probabilities.round(4).tolist(),
    }


def _round_score(value: float | None) -> float | None:
    """Return a score with four digits."""
    return None if value is None else round(value, 4)


def write_query_list(
    out: Path,
    runs: Sequence[str],
    queries: Sequence[dict[str, Any]],
    videos: Sequence[Mapping[str, Any]],
) -> None:
    """Write `out/data.js`.

    Args:
        out: The report's folder.
        runs: Names of the runs.
        queries: Records from `build_query_row`.
        videos: Records from `ReportVideo.to_dict`.
    """
    data = {"runs": list(runs), "videos": list(videos), "queries": list(queries)}

    write_script(out / "data.js", "start", data)

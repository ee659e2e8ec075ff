"""What the page's scripts read: `data.js`, the list of all queries, and `queries/<number>.js`, the details of one.

They are scripts, since a page opened from disk may not read other files; what they hold is JSON, in which nothing can end a script.
Boxes are `[frame, x1, y1, x2, y2]` in pixels of the original video.
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
"""Of longer segments so many stored frames, evenly spread, keep their attention maps."""
HTML_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}


def write_script(path: Path, function_name: str, *values: Any) -> None:
    """Write a script that hands JSON values to `stvg.<call>`, atomically."""
    arguments = ", ".join(
        json.dumps(value, separators=(",", ":"), allow_nan=False).translate(HTML_ESCAPES)
        for value in values
    )
    with atomic_write(path) as aside:
        aside.write_text(f"stvg.{function_name}({arguments});\n", encoding="utf-8")


def query_row(query: Query, runs: Sequence[RunResults], video_index: int) -> dict[str, Any]:
    """One query as the list has it; `video` is the place of its video among the page's, and scores are per run `[vIoU, tIoU, sIoU]`."""
    scores = [run.scores[query.id] for run in runs]
    answers = [run.predictions.get(query.id) for run in runs]
    return {
        "id": query.id,
        "text": query.text,
        "path": query.path,
        "video": video_index,
        "form": query.form or "",
        "tags": list(query.tags),
        "segment": list(query.segment),
        "truth": list(query.truth.span) if query.truth else None,
        "spans": [list(answer.span) if answer else None for answer in answers],
        "scores": [
            [_round_score(value) for value in (one.vIoU, one.tIoU, one.sIoU)] for one in scores
        ],
    }


def query_details(
    query: Query,
    tracks: Tracks,
    runs: Sequence[RunResults],
    query_attentions: Sequence[QueryAttention | None],
) -> dict[str, Any]:
    """One query as its own view has it: the tubes, and what each run's network saw, None where it was not asked."""
    frames, boxes = ground_truth_boxes(query, tracks)
    truth = [
        [frame, *box] for frame, box in zip(frames.tolist(), boxes.round(1).tolist(), strict=True)
    ]
    answers = [_format_prediction(run.predictions.get(query.id)) for run in runs]
    return {
        "size": list(query.size),
        "fps": query.fps,
        "truth": truth,
        "answers": answers,
        "seen": [_format_attention(one) for one in query_attentions],
    }


def _format_prediction(prediction: Prediction | None) -> dict[str, Any] | None:
    if prediction is None:
        return None
    return {
        "score": round(prediction.score, 4),
        "boxes": [[frame, *(round(side, 1) for side in box)] for frame, *box in prediction.boxes],
    }


def _format_attention(query_attention: QueryAttention | None) -> dict[str, Any] | None:
    if query_attention is None:
        return None
    kept = np.unique(
        np.linspace(
            0,
            len(query_attention.frame_indices) - 1,
            min(MAX_FRAMES, len(query_attention.frame_indices)),
        )
        .round()
        .astype(int)
    )
    maps = [_encode_attention_map(attention, kept) for attention in query_attention.maps]
    return {
        "frames": query_attention.frame_indices[kept].tolist(),
        "maps": maps,
        "when": _format_span_scores(query_attention.span_scores),
    }


def _encode_attention_map(attention_map: AttentionMap, frame_slots: np.ndarray) -> dict[str, Any]:
    """Normalised maps as a grey picture (PNG): a line per frame, in it one layer after the other, row by row."""
    heat = attention_map.normalized[:, frame_slots]
    layers, frames, rows, columns = heat.shape
    file = io.BytesIO()
    Image.fromarray((heat.swapaxes(0, 1).reshape(frames, -1) * 255).round().astype(np.uint8)).save(
        file, "PNG", optimize=True
    )
    picture = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {
        "about": attention_map.description,
        "layers": layers,
        "rows": rows,
        "columns": columns,
        "picture": picture,
    }


def _format_span_scores(span_scores: Any) -> dict[str, Any]:
    """The proposal map, or the probabilities of begins and ends at frame edges."""
    if isinstance(span_scores, ProposalScores):
        return {"map": span_scores.mean.clip(0).round(3).tolist()}
    assert isinstance(span_scores, BoundaryScores)
    return {
        "edges": span_scores.edges.tolist(),
        "begins": span_scores.start_probabilities.round(4).tolist(),
        "ends": span_scores.end_probabilities.round(4).tolist(),
    }


def _round_score(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def write_query_list(
    out: Path,
    runs: Sequence[str],
    queries: Sequence[dict[str, Any]],
    videos: Sequence[Mapping[str, Any]],
) -> None:
    """Write `out/data.js`."""
    write_script(
        out / "data.js",
        "start",
        {"runs": list(runs), "videos": list(videos), "queries": list(queries)},
    )

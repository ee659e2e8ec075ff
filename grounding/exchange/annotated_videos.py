"""Videos with true and predicted tubes, for export to annotation tools.

Each tube has a box in every frame that has one: boxes between samples are interpolated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from grounding.evaluation.ground_truth import GroundTruth
from grounding.metrics.scores import Score
from grounding.structures.tubes import Tubes, concatenate_ranges
from pipeline.errors import InputError
from pipeline.records import Query, Span

TubeKind = Literal["truth", "prediction"]
TUBE_KINDS: tuple[TubeKind, ...] = ("truth", "prediction")


@dataclass(frozen=True, eq=False)
class AnnotatedTube:
    """One tube of a query.

    Attributes:
        kind: Ground truth or prediction.
        query: The query.
        span: Begin and end frame, half-open.
        frames: Frame indices in the span that have a box, ascending, [n].
        boxes: Boxes [n, 4], xyxy in pixels.
        keyframe_mask: True where the box is the tube's own, False where it is interpolated, [n].
        confidence: Confidence of the model, if it is known.
        score: Score of a prediction, if it is known.
    """

    kind: TubeKind
    query: Query
    span: Span
    frames: np.ndarray
    boxes: np.ndarray
    keyframe_mask: np.ndarray
    confidence: float | None = None
    score: Score | None = None


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video with the tubes of all its queries.

    Attributes:
        first_query: First query about the video; it holds path, size and frame rate.
        tubes: True and predicted tube of each query, query by query.
    """

    first_query: Query
    tubes: Sequence[AnnotatedTube]


def iterate_annotated_videos(
    ground_truth: GroundTruth,
    predictions: Tubes,
    scores: Sequence[Score],
    confidences: Mapping[str, float],
) -> Iterator[AnnotatedVideo]:
    """Yield the videos of a split, in the order of their first queries.

    Args:
        ground_truth: Ground truth of the split.
        predictions: Predicted tubes.
        scores: Scores of the predictions.
        confidences: Confidence of each prediction by query id, as far as known.

    Yields:
        Videos with all tubes.
    """
    queries_by_video: dict[str, list[Query]] = {}
    for query in ground_truth.queries:
        queries_by_video.setdefault(query.path, []).append(query)

    score_by_query = {score.id: score for score in scores}
    tubes_by_kind: dict[TubeKind, Tubes] = {
        "truth": ground_truth.true_tubes.tubes,
        "prediction": predictions,
    }
    index_by_kind = {
        kind: {query_id: index for index, query_id in enumerate(tubes.ids)}
        for kind, tubes in tubes_by_kind.items()
    }

    for queries in queries_by_video.values():
        annotated_tubes = []
        for query in queries:
            for kind in TUBE_KINDS:
                index = index_by_kind[kind].get(query.id)
                if index is None:
                    continue
                tube = tubes_by_kind[kind].slice(index, index + 1)
                annotated_tubes.append(
                    _build_annotated_tube(
                        kind, query, tube, confidences, score_by_query.get(query.id)
                    )
                )
        yield AnnotatedVideo(queries[0], annotated_tubes)


def _build_annotated_tube(
    kind: TubeKind,
    query: Query,
    tube: Tubes,
    confidences: Mapping[str, float],
    score: Score | None,
) -> AnnotatedTube:
    """Clip one tube to its video, and interpolate its boxes."""
    begin, end = np.clip(tube.spans[0], 0, query.frame_count).tolist()
    frames = concatenate_ranges(np.array([begin]), np.array([end - begin]))
    boxes, has_box = tube.boxes_at(np.zeros(len(frames), np.int64), frames)
    is_keyframe = np.isin(frames, tube.frames)

    is_prediction = kind == "prediction"
    return AnnotatedTube(
        kind=kind,
        query=query,
        span=(begin, end),
        frames=frames[has_box],
        boxes=boxes[has_box],
        keyframe_mask=is_keyframe[has_box],
        confidence=confidences.get(query.id) if is_prediction else None,
        score=score if is_prediction else None,
    )


def check_has_queries(ground_truth: GroundTruth, option: str) -> None:
    """Check that the ground truth names the videos of the tubes.

    Args:
        ground_truth: Ground truth of the split.
        option: Command-line option of the export, for the message.

    Raises:
        InputError: The ground truth is a challenge file.
    """
    if not ground_truth.queries:
        raise InputError(
            f"{option} needs an index as --truth: the challenge's file names no videos"
        )


def check_output_dir(out: Path) -> None:
    """Check that an output folder is new or empty: it may hold people's corrections.

    Args:
        out: The folder.

    Raises:
        InputError: The folder is not empty, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a new folder")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty, and corrections may lie in it: give a new folder")


def build_file_names(video_paths: Sequence[str]) -> list[str]:
    """Build a file name for each video.

    Names of videos are data, which never becomes a path: other characters than letters, digits,
    `-` and `_` are replaced.

    Args:
        video_paths: Paths of the videos.

    Returns:
        File names without extension, all different even if case is ignored.
    """
    names: list[str] = []
    used_names: set[str] = set()
    for path in video_paths:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(path).stem).strip("_")[:80]
        stem = stem or "video"

        # Number the name until no other video has it.
        name = stem
        number = 1
        while name.lower() in used_names:
            number += 1
            name = f"{stem}-{number}"
        used_names.add(name.lower())
        names.append(name)
    return names

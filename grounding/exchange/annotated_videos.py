"""What other tools show: per video, the true and the predicted tube of every query, with a box in every frame that has one."""

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


@dataclass(frozen=True, eq=False)
class AnnotatedTube:
    """One tube of a query: its `span`, the ascending `frames` `[n]` of it that have a box, `boxes` `[n, 4]` xyxy pixels.

    `sampled` `[n]`: the box is the tube's own; the others lie between. `confidence` is the model's, where it is known.
    """

    kind: Literal["truth", "prediction"]
    query: Query
    span: Span
    frames: np.ndarray
    boxes: np.ndarray
    keyframe_mask: np.ndarray
    confidence: float | None = None
    score: Score | None = None


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video, by its first query, with the tubes of all of them: the true ones and the predicted ones, query after query."""

    first_query: Query
    tubes: Sequence[AnnotatedTube]


def iterate_annotated_videos(
    ground_truth: GroundTruth,
    predictions: Tubes,
    scores: Sequence[Score],
    confidences: Mapping[str, float],
) -> Iterator[AnnotatedVideo]:
    """The videos of an exam in the order of their first queries; `confidences` of predictions by query."""
    by_video: dict[str, list[Query]] = {}
    for query in ground_truth.queries:
        by_video.setdefault(query.path, []).append(query)
    judged = {score.id: score for score in scores}
    kinds: tuple[tuple[Literal["truth", "prediction"], Tubes], ...] = (
        ("truth", ground_truth.true_tubes.tubes),
        ("prediction", predictions),
    )
    places = [
        (kind, tubes, {name: place for place, name in enumerate(tubes.ids)})
        for kind, tubes in kinds
    ]
    for queries in by_video.values():
        tubes = [
            _build_annotated_tube(
                kind,
                query,
                known.slice(place[query.id], place[query.id] + 1),
                confidences,
                judged.get(query.id),
            )
            for query in queries
            for kind, known, place in places
            if query.id in place
        ]
        yield AnnotatedVideo(queries[0], tubes)


def _build_annotated_tube(
    kind: Literal["truth", "prediction"],
    query: Query,
    tube: Tubes,
    confidences: Mapping[str, float],
    score: Score | None,
) -> AnnotatedTube:
    """One tube within its video."""
    begin, end = np.clip(tube.spans[0], 0, query.frame_count).tolist()
    frames = concatenate_ranges(np.array([begin]), np.array([end - begin]))
    boxes, own = tube.boxes_at(np.zeros(len(frames), np.int64), frames)
    sampled = np.isin(frames, tube.frames)
    about = (confidences.get(query.id), score) if kind == "prediction" else (None, None)
    return AnnotatedTube(kind, query, (begin, end), frames[own], boxes[own], sampled[own], *about)


def check_has_queries(ground_truth: GroundTruth, option: str) -> None:
    """InputError where nothing says which videos the tubes are of."""
    if not ground_truth.queries:
        raise InputError(
            f"{option} needs an index as --truth: the challenge's file names no videos"
        )


def check_output_dir(out: Path) -> None:
    """InputError where something lies in the folder that is to be made, which may be people's corrections."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: name a folder that is to be made")
    if out.exists() and any(out.iterdir()):
        raise InputError(
            f"{out} is not empty, and corrections may lie in it: name a folder that is to be made"
        )


def build_file_names(video_paths: Sequence[str]) -> list[str]:
    """A file name without extension for each video, all different in any case; what videos are called never becomes a path."""
    names: list[str] = []
    taken: set[str] = set()
    for video in video_paths:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(video).stem).strip("_")[:80] or "video"
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names

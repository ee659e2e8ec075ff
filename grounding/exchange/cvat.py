"""Tubes as CVAT's tracks: one file per video, as its tasks are, and the labels that a task needs for them.

What `pipeline.datasets.cvat` reads back once people have corrected it: a track says which query it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from grounding.exchange.annotated_videos import (
    AnnotatedTube,
    AnnotatedVideo,
    build_file_names,
    check_output_dir,
)
from pipeline.io.cvat_xml import CvatTrack, build_cvat_labels, write_cvat
from pipeline.io.jsonl import write_json
from pipeline.records import Query


def write_cvat_folder(
    out: Path, videos: Sequence[AnnotatedVideo], progress: Callable[[int, int], None]
) -> int:
    """`out/labels.json` and `out/<video>.xml`; returns how many tubes have no box, and so no track. `progress` counts videos."""
    check_output_dir(out)
    write_json(out / "labels.json", build_cvat_labels())
    boxless = 0
    for number, (name, video) in enumerate(
        zip(build_file_names([video.first_query.path for video in videos]), videos, strict=True)
    ):
        progress(number, len(videos))
        tracks = [_build_track(tube) for tube in video.tubes]
        boxless += sum(not len(track.frames) for track in tracks)
        write_cvat(
            out / f"{name}.xml",
            Path(video.first_query.path).name,
            video.first_query.size,
            video.first_query.frame_count,
            tracks,
        )
    progress(len(videos), len(videos))
    return boxless


def _build_track(tube: AnnotatedTube) -> CvatTrack:
    attributes = {
        "sentence": tube.query.text,
        "query": json.dumps(_build_query_fields(tube.query)),
        "score": "" if tube.confidence is None else f"{tube.confidence:.3f}",
        "vIoU": "" if tube.score is None or tube.score.vIoU is None else f"{tube.score.vIoU:.3f}",
    }
    return CvatTrack(tube.kind, tube.frames, tube.boxes, tube.keyframe_mask, attributes)


def _build_query_fields(query: Query) -> dict[str, object]:
    """What a line of the data set `jsonl` says about the query, but for the sentence and the tube."""
    return {
        "id": query.id,
        "video": query.path,
        "split": query.split,
        "segment": query.segment,
        "tags": query.tags,
    }

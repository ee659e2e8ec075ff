"""Export to CVAT: one file of tracks per video, and the labels that a CVAT task needs.

`pipeline.datasets.cvat` reads the files back after people have corrected them: each track names its
query.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from grounding.exchange.annotated_videos import (
    AnnotatedTube,
    AnnotatedVideo,
    build_file_names,
    check_output_dir,
)
from pipeline.callbacks import ProgressCallback
from pipeline.io.cvat_xml import CvatTrack, build_cvat_labels, write_cvat
from pipeline.io.jsonl import write_json
from pipeline.records import Query


def write_cvat_folder(
    out: Path, videos: Sequence[AnnotatedVideo], progress: ProgressCallback
) -> int:
    """Write `labels.json`, and `<video>.xml` for each video.

    Args:
        out: New or empty folder.
        videos: Videos with tubes.
        progress: Callback that counts videos.

    Returns:
        Number of tubes without any box. CVAT has no tracks without boxes, so these are missing.

    Raises:
        InputError: The folder is not empty.
    """
    check_output_dir(out)
    write_json(out / "labels.json", build_cvat_labels())

    names = build_file_names([video.first_query.path for video in videos])
    num_boxless = 0
    for index, (name, video) in enumerate(zip(names, videos, strict=True)):
        progress(index, len(videos))
        tracks = [_build_track(tube) for tube in video.tubes]
        num_boxless += sum(not len(track.frames) for track in tracks)

        query = video.first_query
        write_cvat(
            out / f"{name}.xml", Path(query.path).name, query.size, query.frame_count, tracks
        )
    progress(len(videos), len(videos))
    return num_boxless


def _build_track(tube: AnnotatedTube) -> CvatTrack:
    """Build the track of a tube; its attributes hold sentence, query, confidence and vIoU."""
    viou = None if tube.score is None else tube.score.vIoU
    attributes = {
        "sentence": tube.query.text,
        "query": json.dumps(_build_query_fields(tube.query)),
        "score": "" if tube.confidence is None else f"{tube.confidence:.3f}",
        "vIoU": "" if viou is None else f"{viou:.3f}",
    }
    return CvatTrack(tube.kind, tube.frames, tube.boxes, tube.keyframe_mask, attributes)


def _build_query_fields(query: Query) -> dict[str, object]:
    """Return the fields of a line of data set `jsonl`, without sentence and tube."""
    return {
        "id": query.id,
        "video": query.path,
        "split": query.split,
        "segment": query.segment,
        "tags": query.tags,
    }

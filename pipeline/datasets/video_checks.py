"""Probing many videos at once, and holding a query against what its video really is."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from pipeline.datasets.parsed import DefectLog, ProgressCallback
from pipeline.errors import VideoError
from pipeline.records import MAX_FRAMES, Query, Span, Truth
from pipeline.video import VideoMetadata, probe

WORKERS = 4
FPS_TOLERANCE = 0.01


def probe_videos(
    folder: Path, paths: Iterable[str], progress: ProgressCallback, workers: int = WORKERS
) -> dict[str, VideoMetadata | VideoError]:
    """The facts of each video by its path relative to `folder`, or the error that makes it unusable."""
    wanted = sorted(set(paths))
    found: dict[str, VideoMetadata | VideoError] = {}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = {pool.submit(_probe_or_error, folder / path): path for path in wanted}
        for done, future in enumerate(as_completed(futures), start=1):
            found[futures[future]] = future.result()
            progress(done, len(wanted))
    return found


def assume_valid_videos(
    folder: Path, paths: Iterable[str], progress: ProgressCallback
) -> dict[str, VideoMetadata | VideoError]:
    """In the place of `probe_videos` where annotations alone are looked at: videos that hold whatever is said of them, unseen."""
    seconds = np.broadcast_to(np.float64(0), MAX_FRAMES)  # takes no memory
    return {
        path: VideoMetadata(folder / path, (2**16, 2**16), 1.0, seconds, 0.0, False, "")
        for path in paths
    }


def _probe_or_error(path: Path) -> VideoMetadata | VideoError:
    try:
        return probe(path)
    except VideoError as error:
        return error


def log_edit_lists(
    probe_results: dict[str, VideoMetadata | VideoError], defects: DefectLog
) -> None:
    """Count the videos whose container hides some of their frames."""
    for path, found in sorted(probe_results.items()):
        if isinstance(found, VideoMetadata) and found.has_edit_list:
            defects.add(
                "edit list",
                path,
                f"{found.frame_count} frames are shown; numbers count those alone",
            )


def fit_to_video(query: Query, metadata: VideoMetadata, defects: DefectLog) -> Query | None:
    """The query with its video's own fps and frame count, its spans within them; None (and a defect) where they cannot agree.

    A difference up to max(0.5 s, 2 %) of the frames is kept. `size` stays the annotation's, the frame of reference of its boxes.
    """
    count, stated = metadata.frame_count, query.frame_count
    if abs(count - stated) > max(0.5 * query.fps, 0.02 * stated):
        defects.add(
            "frame count disagrees",
            query.id,
            f"the annotation says {stated} frames, {metadata.path} has {count}",
            excluded=True,
        )
        return None
    if count != stated:
        defects.add(
            "frame count differs",
            query.id,
            f"the annotation says {stated} frames, {metadata.path} has {count}",
        )
    if abs(metadata.fps - query.fps) > FPS_TOLERANCE * query.fps:
        defects.add(
            "fps disagrees",
            query.id,
            f"the annotation says {query.fps:g} fps, {metadata.path} has {metadata.fps:.4g}",
        )
    if metadata.size != query.size:
        defects.add(
            "picture size disagrees",
            query.id,
            f"the annotation says {_format_size(query.size)}, {metadata.path} is {_format_size(metadata.size)}",
        )
    segment = _intersect_spans(query.segment, (0, count))
    truth = query.truth and _clip_truth(query.truth, segment)
    if segment is None or (query.truth and truth is None):
        defects.add(
            "span beyond the video",
            query.id,
            f"segment {query.segment}, {metadata.path} has {count} frames",
            excluded=True,
        )
        return None
    changes = {"fps": metadata.fps, "frame_count": count, "segment": segment, "truth": truth}
    return Query.model_validate(query.model_dump() | changes)


def _intersect_spans(span: Span, limits: Span | None) -> Span | None:
    """The part of `[begin, end)` inside the limits; None where none is."""
    if limits is None:
        return None
    begin, end = max(span[0], limits[0]), min(span[1], limits[1])
    return (begin, end) if begin < end else None


def _clip_truth(truth: Truth, segment: Span | None) -> Truth | None:
    span = _intersect_spans(truth.span, segment)
    return None if span is None else Truth(span=span, track=truth.track)


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"

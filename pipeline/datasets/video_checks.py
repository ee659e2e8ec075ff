"""Probing of many videos at once, and comparison of queries with their videos."""

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
"""Threads that probe videos."""
FPS_TOLERANCE = 0.01
"""Relative difference between the annotated and the video's frame rate that is not logged."""
FRAME_COUNT_TOLERANCE_SECONDS = 0.5
FRAME_COUNT_TOLERANCE = 0.02
"""A query is kept if its frame count differs by at most one of these: seconds, or a share."""


def probe_videos(
    folder: Path, paths: Iterable[str], progress: ProgressCallback, workers: int = WORKERS
) -> dict[str, VideoMetadata | VideoError]:
    """Probe videos with several threads.

    Args:
        folder: Folder of the data set.
        paths: Paths of the videos, relative to the folder.
        progress: Called as `progress(done, total)` after each video.
        workers: Number of threads.

    Returns:
        For each path, the metadata or the error that makes the video unusable.
    """
    unique_paths = sorted(set(paths))
    results: dict[str, VideoMetadata | VideoError] = {}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = {pool.submit(_probe_or_error, folder / path): path for path in unique_paths}
        for done, future in enumerate(as_completed(futures), start=1):
            results[futures[future]] = future.result()
            progress(done, len(unique_paths))
    return results


def assume_valid_videos(
    folder: Path, paths: Iterable[str], progress: ProgressCallback
) -> dict[str, VideoMetadata | VideoError]:
    """Return metadata that agrees with any annotation, without opening the videos.

    Replaces `probe_videos` where only the annotations are checked.

    Args:
        folder: Folder of the data set.
        paths: Paths of the videos, relative to the folder.
        progress: Not called.

    Returns:
        For each path, metadata of a video of maximum length and size.
    """
    # One broadcast zero, so that the array takes no memory.
    pts_seconds = np.broadcast_to(np.float64(0), MAX_FRAMES)

    results: dict[str, VideoMetadata | VideoError] = {}
    for path in paths:
        results[path] = VideoMetadata(
            path=folder / path,
            size=(2**16, 2**16),
            fps=1.0,
            pts_seconds=pts_seconds,
            duration=0.0,
            has_edit_list=False,
            codec="",
        )
    return results


def _probe_or_error(path: Path) -> VideoMetadata | VideoError:
    """Probe one video; return the error instead of raising it."""
    try:
        return probe(path)
    except VideoError as error:
        return error


def log_edit_lists(
    probe_results: dict[str, VideoMetadata | VideoError], defects: DefectLog
) -> None:
    """Log the videos whose container hides some of their frames.

    Args:
        probe_results: Results of probing, by path.
        defects: Log of defects.
    """
    for path, result in sorted(probe_results.items()):
        if isinstance(result, VideoMetadata) and result.has_edit_list:
            detail = f"{result.frame_count} frames are shown; frame indices count only these"
            defects.add("edit list", path, detail)


def fit_to_video(query: Query, metadata: VideoMetadata, defects: DefectLog) -> Query | None:
    """Replace a query's frame rate and frame count by the video's, and clip its spans.

    A frame count may differ by max(0.5 s, 2 %). `size` stays the annotation's, because the boxes
    are in pixels of this size.

    Args:
        query: The query as annotated.
        metadata: Metadata of its video.
        defects: Log of defects; every difference is logged.

    Returns:
        The fitted query, or None (and a defect) if annotation and video cannot agree.
    """
    frame_count = metadata.frame_count
    if not _check_frame_count(query, metadata, defects):
        return None
    _log_differences(query, metadata, defects)

    # Clip the segment to the video, and the ground truth to the segment.
    segment = _intersect_spans(query.segment, (0, frame_count))
    truth = query.truth and _clip_truth(query.truth, segment)
    if segment is None or (query.truth and truth is None):
        detail = f"segment {query.segment}, {metadata.path} has {frame_count} frames"
        defects.add("span beyond the video", query.id, detail, excluded=True)
        return None

    changes = {
        "fps": metadata.fps,
        "frame_count": frame_count,
        "segment": segment,
        "truth": truth,
    }
    return Query.model_validate(query.model_dump() | changes)


def _check_frame_count(query: Query, metadata: VideoMetadata, defects: DefectLog) -> bool:
    """Compare the frame counts; log a difference, and return False if it is too large."""
    difference = abs(metadata.frame_count - query.frame_count)
    tolerance = max(
        FRAME_COUNT_TOLERANCE_SECONDS * query.fps, FRAME_COUNT_TOLERANCE * query.frame_count
    )
    detail = (
        f"the annotation says {query.frame_count} frames, "
        f"{metadata.path} has {metadata.frame_count}"
    )

    if difference > tolerance:
        defects.add("frame count disagrees", query.id, detail, excluded=True)
        return False
    if difference:
        defects.add("frame count differs", query.id, detail)
    return True


def _log_differences(query: Query, metadata: VideoMetadata, defects: DefectLog) -> None:
    """Log a frame rate or a picture size that differs from the video's."""
    if abs(metadata.fps - query.fps) > FPS_TOLERANCE * query.fps:
        detail = f"the annotation says {query.fps:g} fps, {metadata.path} has {metadata.fps:.4g}"
        defects.add("fps disagrees", query.id, detail)

    if metadata.size != query.size:
        detail = (
            f"the annotation says {_format_size(query.size)}, "
            f"{metadata.path} is {_format_size(metadata.size)}"
        )
        defects.add("picture size disagrees", query.id, detail)


def _intersect_spans(span: Span, limits: Span | None) -> Span | None:
    """Return the part of `[begin, end)` inside the limits; None if it is empty."""
    if limits is None:
        return None
    begin = max(span[0], limits[0])
    end = min(span[1], limits[1])
    return (begin, end) if begin < end else None


def _clip_truth(truth: Truth, segment: Span | None) -> Truth | None:
    """Clip the ground-truth span to the segment; None if no frame remains."""
    span = _intersect_spans(truth.span, segment)
    return None if span is None else Truth(span=span, track=truth.track)


def _format_size(size: tuple[int, int]) -> str:
    """Format (width, height) as `640x480`."""
    return f"{size[0]}x{size[1]}"

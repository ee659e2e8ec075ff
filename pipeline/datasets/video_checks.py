"""Probing many videos at once, and holding a query against what its video really is."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from pipeline.datasets.parsed import Defects, Progress
from pipeline.errors import VideoError
from pipeline.records import MOST_FRAMES, Query, Span, Truth
from pipeline.video import VideoFacts, probe

WORKERS = 4
FPS_TOLERANCE = 0.01


def probe_videos(folder: Path, paths: Iterable[str], progress: Progress, workers: int = WORKERS) -> dict[str, VideoFacts | VideoError]:
    """The facts of each video by its path relative to `folder`, or the error that makes it unusable."""
    wanted = sorted(set(paths))
    found: dict[str, VideoFacts | VideoError] = {}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = {pool.submit(_facts_or_error, folder / path): path for path in wanted}
        for done, future in enumerate(as_completed(futures), start=1):
            found[futures[future]] = future.result()
            progress(done, len(wanted))
    return found


def any_video(folder: Path, paths: Iterable[str], progress: Progress) -> dict[str, VideoFacts | VideoError]:
    """In the place of `probe_videos` where annotations alone are looked at: videos that hold whatever is said of them, unseen."""
    seconds = np.broadcast_to(np.float64(0), MOST_FRAMES)  # takes no memory
    return {path: VideoFacts(folder / path, (2**16, 2**16), 1.0, seconds, 0.0, False, "") for path in paths}


def _facts_or_error(path: Path) -> VideoFacts | VideoError:
    try:
        return probe(path)
    except VideoError as error:
        return error


def note_edit_lists(facts: dict[str, VideoFacts | VideoError], defects: Defects) -> None:
    """Count the videos whose container hides some of their frames."""
    for path, found in sorted(facts.items()):
        if isinstance(found, VideoFacts) and found.has_edit_list:
            defects.add("edit list", path, f"{found.frame_count} frames are shown; numbers count those alone")


def fit_to_video(query: Query, facts: VideoFacts, defects: Defects) -> Query | None:
    """The query with its video's own fps and frame count, its spans within them; None (and a defect) where they cannot agree.

    A difference up to max(0.5 s, 2 %) of the frames is kept. `size` stays the annotation's, the frame of reference of its boxes.
    """
    count, stated = facts.frame_count, query.frame_count
    if abs(count - stated) > max(0.5 * query.fps, 0.02 * stated):
        defects.add("frame count disagrees", query.id, f"the annotation says {stated} frames, {facts.path} has {count}", excluded=True)
        return None
    if count != stated:
        defects.add("frame count differs", query.id, f"the annotation says {stated} frames, {facts.path} has {count}")
    if abs(facts.fps - query.fps) > FPS_TOLERANCE * query.fps:
        defects.add("fps disagrees", query.id, f"the annotation says {query.fps:g} fps, {facts.path} has {facts.fps:.4g}")
    if facts.size != query.size:
        defects.add("picture size disagrees", query.id, f"the annotation says {_by(query.size)}, {facts.path} is {_by(facts.size)}")
    segment = _within(query.segment, (0, count))
    truth = query.truth and _truth_within(query.truth, segment)
    if segment is None or (query.truth and truth is None):
        defects.add("span beyond the video", query.id, f"segment {query.segment}, {facts.path} has {count} frames", excluded=True)
        return None
    changes = {"fps": facts.fps, "frame_count": count, "segment": segment, "truth": truth}
    return Query.model_validate(query.model_dump() | changes)


def _within(span: Span, limits: Span | None) -> Span | None:
    """The part of `[begin, end)` inside the limits; None where none is."""
    if limits is None:
        return None
    begin, end = max(span[0], limits[0]), min(span[1], limits[1])
    return (begin, end) if begin < end else None


def _truth_within(truth: Truth, segment: Span | None) -> Truth | None:
    span = _within(truth.span, segment)
    return None if span is None else Truth(span=span, track=truth.track)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"

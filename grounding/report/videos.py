"""The report's videos: each queried video once, re-encoded small so that any browser plays it.

A video holds only frames that are in a query's segment. File names are digests of everything that
determines the content. Valid files of an earlier report are reused, so an interrupted report
resumes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grounding.visualization.video_source import VideoOpener, VideoSource
from grounding.visualization.video_writer import TIME_BASE, compute_ticks, round_to_even, write_mp4
from pipeline.callbacks import ProgressCallback
from pipeline.errors import StvgError
from pipeline.records import Query, Span

VIDEOS_DIR = "videos"
ENCODER_OPTIONS = {"crf": "28", "g": "24"}
"""Options of libx264; a key frame about every second lets browsers seek quickly."""
MAX_WORKERS = 4
"""Maximum number of videos encoded at once; each one buffers decoded frames."""
ENCODING_VERSION = 1
"""Version of the encoding. Increase it when equal inputs give other videos."""
MAX_TIME_ERROR = 1e-3
"""Seconds up to which frames count as evenly spaced."""


@dataclass(frozen=True)
class ReportVideo:
    """A video of the page, or the reason for its absence.

    Attributes:
        file: Path from the page.
        frame_span: Frames `[begin, end)` of the source video.
        frame_edges: `[n + 1]` seconds from 0; None without a video.
        error: Reason for the absence.
    """

    file: str = ""
    frame_span: Span = (0, 0)
    frame_edges: np.ndarray | None = None
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the record that the page's scripts read.

        Returns:
            `file`, `first` and `count` of the frames, `length` in seconds and, for a variable frame
            rate, `starts` of the frames in seconds. Only `trouble`, the reason, without a video.
        """
        if self.frame_edges is None:
            return {"trouble": self.error}

        starts = self.frame_edges[:-1]
        count = len(starts)
        length = float(self.frame_edges[-1])
        record: dict[str, Any] = {
            "file": self.file,
            "first": self.frame_span[0],
            "count": count,
            "length": round(length, 4),
        }

        # Starts of frames are listed only if they are not evenly spaced.
        even_starts = np.arange(count) * (length / count)
        if np.abs(starts - even_starts).max() > MAX_TIME_ERROR:
            record["starts"] = [round(start, 4) for start in starts.tolist()]

        return record


def encode_videos(
    queries: Iterable[Query],
    open_video: VideoOpener,
    out: Path,
    max_side: int,
    max_videos: int | None,
    progress: ProgressCallback,
) -> Mapping[str, ReportVideo]:
    """Encode the videos of queries into `out/videos`, and delete other videos there.

    Args:
        queries: The queries; videos of earlier ones are preferred.
        open_video: Opens the video at a query's path.
        out: The report's folder.
        max_side: Maximum longer side in pixels.
        max_videos: Maximum number of videos; None: all.
        progress: Called with the number of videos done and in all.

    Returns:
        Videos by path. A video that cannot be read, or is beyond `max_videos`, has an `error`.
    """
    queries_by_path: dict[str, list[Query]] = {}
    for query in queries:
        queries_by_path.setdefault(query.path, []).append(query)

    # Until it is encoded, a video counts as beyond the limit.
    videos = {}
    for path in queries_by_path:
        videos[path] = ReportVideo(error=f"only {max_videos} videos are shown (report.videos)")

    selected_paths = list(queries_by_path)[:max_videos]
    progress(0, len(selected_paths))

    # Threads suffice: decoders and the encoder release the GIL.
    pool = ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1))
    try:
        path_by_future = {}
        for path in selected_paths:
            future = pool.submit(
                _encode_or_report_error, queries_by_path[path], open_video, out, max_side
            )
            path_by_future[future] = path

        for done, future in enumerate(as_completed(path_by_future), start=1):
            path = path_by_future[future]
            videos[path] = future.result()
            progress(done, len(selected_paths))
    finally:
        pool.shutdown(cancel_futures=True)

    _delete_other_videos(out, videos.values())

    return videos


def _delete_other_videos(out: Path, videos: Iterable[ReportVideo]) -> None:
    """Delete videos of an earlier report that are not in this one."""
    current_files = {video.file for video in videos}

    for path in (out / VIDEOS_DIR).glob("*.mp4"):
        if f"{VIDEOS_DIR}/{path.name}" not in current_files:
            path.unlink()


def _encode_or_report_error(
    queries: Sequence[Query], open_video: VideoOpener, out: Path, max_side: int
) -> ReportVideo:
    """Return the video of these queries, or the reason for its absence."""
    # The hull of all segments.
    begin = min(query.segment[0] for query in queries)
    end = max(query.segment[1] for query in queries)

    path = queries[0].path
    size = queries[0].size
    try:
        return _encode_video(open_video(path), (begin, end), out, size, max_side)
    except StvgError as error:
        return ReportVideo(error=str(error))


def _encode_video(
    video: VideoSource, frame_span: Span, out: Path, size: tuple[int, int], max_side: int
) -> ReportVideo:
    """Encode one video, unless its file exists."""
    begin, end = frame_span
    video.check_has_frame(end - 1)
    frame_edges = video.frame_edges[begin : end + 1] - video.frame_edges[begin]

    # The file's name is a digest of everything that determines its content.
    settings = (
        ENCODING_VERSION,
        ENCODER_OPTIONS,
        video.path,
        video.fingerprint,
        frame_span,
        size,
        max_side,
    )
    content_key = repr(settings).encode() + frame_edges.tobytes()
    digest = hashlib.sha256(content_key).hexdigest()[:16]
    file = f"{VIDEOS_DIR}/{digest}.mp4"

    if not (out / file).exists():
        scale = min(1.0, max_side / max(size))
        encoded_size = (round_to_even(size[0] * scale), round_to_even(size[1] * scale))
        frames = video.read_frames(range(begin, end))
        write_mp4(out / file, frames, frame_edges, encoded_size, ENCODER_OPTIONS)

    # Times of the frames as they are in the file.
    encoded_edges = compute_ticks(frame_edges) * float(TIME_BASE)

    return ReportVideo(file, frame_span, encoded_edges)

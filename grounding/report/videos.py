"""The report's videos: each video that is asked about once, re-encoded small so that any browser plays it from disk.

Only the frames that any query's segment has are in it. Files are named by what they were made of, and those of an earlier report
that still hold are kept: a report that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grounding.visualization.video_source import VideoOpener, VideoSource
from grounding.visualization.video_writer import TIME_BASE, compute_ticks, round_to_even, write_mp4
from pipeline.errors import StvgError
from pipeline.records import Query, Span

VIDEOS_DIR = "videos"
ENCODER_OPTIONS = {"crf": "28", "g": "24"}
"""A key frame each second or so: any frame is found quickly."""
MAX_WORKERS = 4
"""Videos made at once, where there are as many cores; each holds what its decoder reads ahead."""
ENCODING_VERSION = 1
"""To be raised when videos are made otherwise."""


@dataclass(frozen=True)
class ReportVideo:
    """A video as the page has it: `file` from the page, its frames `[begin, end)`, their `edges` in seconds from 0; or why it has none."""

    file: str = ""
    frame_span: Span = (0, 0)
    frame_edges: np.ndarray | None = None
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """`starts`, seconds, are left out where frames come at the constant `fps`."""
        if self.frame_edges is None:
            return {"trouble": self.error}
        count, length = len(self.frame_edges) - 1, float(self.frame_edges[-1])
        facts: dict[str, Any] = {
            "file": self.file,
            "first": self.frame_span[0],
            "count": count,
            "length": round(length, 4),
        }
        even_edges = np.arange(count) * (length / count)
        if np.abs(self.frame_edges[:-1] - even_edges).max() > 1e-3:
            facts["starts"] = [round(start, 4) for start in self.frame_edges[:-1].tolist()]
        return facts


def encode_videos(
    queries: Iterable[Query],
    open_video: VideoOpener,
    out: Path,
    max_side: int,
    max_videos: int | None,
    progress: Callable[[int, int], None],
) -> Mapping[str, ReportVideo]:
    """Make the videos of the queries' paths in `out/videos`, the first ones' first and no more than `most`; by path.

    `side`: the longer side is at most so many pixels. One that cannot be read carries its `trouble`.
    """
    asked: dict[str, list[Query]] = {}
    for query in queries:
        asked.setdefault(query.path, []).append(query)
    shown = {
        path: ReportVideo(error=f"only {max_videos} videos are shown (report.videos)")
        for path in asked
    }
    wanted = list(asked)[:max_videos]
    progress(0, len(wanted))
    pool = ThreadPoolExecutor(
        min(MAX_WORKERS, os.cpu_count() or 1)
    )  # decoders and encoder leave Python to others
    try:
        coming = {
            pool.submit(_encode_or_report_error, asked[path], open_video, out, max_side): path
            for path in wanted
        }
        for done, future in enumerate(as_completed(coming), 1):
            shown[coming[future]] = future.result()
            progress(done, len(wanted))
    finally:
        pool.shutdown(cancel_futures=True)
    kept = {one.file for one in shown.values()}
    for old in (out / VIDEOS_DIR).glob("*.mp4"):
        if f"{VIDEOS_DIR}/{old.name}" not in kept:
            old.unlink()
    return shown


def _encode_or_report_error(
    queries: Sequence[Query], open_video: VideoOpener, out: Path, max_side: int
) -> ReportVideo:
    """The video of these queries, or why there is none."""
    frames = min(query.segment[0] for query in queries), max(query.segment[1] for query in queries)
    try:
        return _encode_video(open_video(queries[0].path), frames, out, queries[0].size, max_side)
    except StvgError as error:
        return ReportVideo(error=str(error))


def _encode_video(
    video: VideoSource, frame_span: Span, out: Path, size: tuple[int, int], max_side: int
) -> ReportVideo:
    """Make one video, unless it is there."""
    begin, end = frame_span
    video.check_has_frame(end - 1)
    edges = video.frame_edges[begin : end + 1] - video.frame_edges[begin]
    made_of = (
        repr(
            (
                ENCODING_VERSION,
                ENCODER_OPTIONS,
                video.path,
                video.fingerprint,
                frame_span,
                size,
                max_side,
            )
        ).encode()
        + edges.tobytes()
    )
    file = f"{VIDEOS_DIR}/{hashlib.sha256(made_of).hexdigest()[:16]}.mp4"
    if not (out / file).exists():
        scale = min(1.0, max_side / max(size))
        write_mp4(
            out / file,
            video.read_frames(range(begin, end)),
            edges,
            (round_to_even(size[0] * scale), round_to_even(size[1] * scale)),
            ENCODER_OPTIONS,
        )
    return ReportVideo(file, frame_span, compute_ticks(edges) * float(TIME_BASE))

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

from grounding.visualization.video_source import Footage, FootageOf
from grounding.visualization.video_writer import TIME_BASE, ascending_ticks, even, write_mp4
from pipeline.errors import StvgError
from pipeline.records import Query, Span

FOLDER = "videos"
OPTIONS = {"crf": "28", "g": "24"}
"""A key frame each second or so: any frame is found quickly."""
TOGETHER = 4
"""Videos made at once, where there are as many cores; each holds what its decoder reads ahead."""
ENCODING = 1
"""To be raised when videos are made otherwise."""


@dataclass(frozen=True)
class Shown:
    """A video as the page has it: `file` from the page, its frames `[begin, end)`, their `edges` in seconds from 0; or why it has none."""

    file: str = ""
    frames: Span = (0, 0)
    edges: np.ndarray | None = None
    trouble: str = ""

    def as_json(self) -> dict[str, Any]:
        """`starts`, seconds, are left out where frames come at the constant `fps`."""
        if self.edges is None:
            return {"trouble": self.trouble}
        count, length = len(self.edges) - 1, float(self.edges[-1])
        facts: dict[str, Any] = {"file": self.file, "first": self.frames[0], "count": count, "length": round(length, 4)}
        even_edges = np.arange(count) * (length / count)
        if np.abs(self.edges[:-1] - even_edges).max() > 1e-3:
            facts["starts"] = [round(start, 4) for start in self.edges[:-1].tolist()]
        return facts


def show_videos(
    queries: Iterable[Query], footage: FootageOf, out: Path, side: int, most: int | None, progress: Callable[[int, int], None]
) -> Mapping[str, Shown]:
    """Make the videos of the queries' paths in `out/videos`, the first ones' first and no more than `most`; by path.

    `side`: the longer side is at most so many pixels. One that cannot be read carries its `trouble`.
    """
    asked: dict[str, list[Query]] = {}
    for query in queries:
        asked.setdefault(query.path, []).append(query)
    shown = {path: Shown(trouble=f"only {most} videos are shown (report.videos)") for path in asked}
    wanted = list(asked)[:most]
    progress(0, len(wanted))
    pool = ThreadPoolExecutor(min(TOGETHER, os.cpu_count() or 1))  # decoders and encoder leave Python to others
    try:
        coming = {pool.submit(_shown, asked[path], footage, out, side): path for path in wanted}
        for done, future in enumerate(as_completed(coming), 1):
            shown[coming[future]] = future.result()
            progress(done, len(wanted))
    finally:
        pool.shutdown(cancel_futures=True)
    kept = {one.file for one in shown.values()}
    for old in (out / FOLDER).glob("*.mp4"):
        if f"{FOLDER}/{old.name}" not in kept:
            old.unlink()
    return shown


def _shown(queries: Sequence[Query], footage: FootageOf, out: Path, side: int) -> Shown:
    """The video of these queries, or why there is none."""
    frames = min(query.segment[0] for query in queries), max(query.segment[1] for query in queries)
    try:
        return _made(footage(queries[0].path), frames, out, queries[0].size, side)
    except StvgError as error:
        return Shown(trouble=str(error))


def _made(video: Footage, frames: Span, out: Path, size: tuple[int, int], side: int) -> Shown:
    """Make one video, unless it is there."""
    begin, end = frames
    video.refuse_shorter(end - 1)
    edges = video.edges[begin : end + 1] - video.edges[begin]
    made_of = repr((ENCODING, OPTIONS, video.path, video.stamp, frames, size, side)).encode() + edges.tobytes()
    file = f"{FOLDER}/{hashlib.sha256(made_of).hexdigest()[:16]}.mp4"
    if not (out / file).exists():
        scale = min(1.0, side / max(size))
        write_mp4(out / file, video.pictures(range(begin, end)), edges, (even(size[0] * scale), even(size[1] * scale)), OPTIONS)
    return Shown(file, frames, ascending_ticks(edges) * float(TIME_BASE))

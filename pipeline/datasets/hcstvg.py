"""HC-STVG: one sentence about one person in each 20-second film clip; versions 1 and 2.

Each split has a file, an object `{video's file name: entry}`.

- `st_frame` is the first frame of the ground truth, counted from 1.
- `bbox` holds one `[x, y, width, height]` for each frame from `st_frame` on. The ground-truth span
  is therefore `[st_frame - 1, st_frame - 1 + len(bbox))`.
- `ed_frame` (the last frame, counted from 1), `st_time` and `ed_time` (seconds) are only compared
  with this span.
- `img_num` is the frame count of the clip: 20 times its frame rate.

Version 2 has `English` in place of `caption`, and `img_size` `[height, width]` in place of `width`
and `height`. The parsers of both versions read both forms, but refuse the other version's files.
Test sentences of version 2 have no ground truth and may be bare strings; their frame count, frame
rate and size come from the videos.
"""

from __future__ import annotations

import math
import reprlib
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AliasChoices, Field, PlainValidator, model_validator

from pipeline.datasets.annotation_fields import (
    SAFE_NAME_PATTERN,
    FrameCount,
    RawEntry,
    SideLength,
    SignedFrameIndex,
    Text,
    validate_raw,
)
from pipeline.datasets.file_search import VideoFiles
from pipeline.datasets.hcstvg_files import find_annotation_files, load_entries
from pipeline.datasets.parsed import (
    NO_SPLIT,
    ParsedDataset,
    ProbeFunction,
    ProgressCallback,
    check_not_empty,
    ignore_progress,
    log_duplicates,
)
from pipeline.datasets.tubes import add_tube
from pipeline.datasets.video_checks import probe_videos
from pipeline.errors import VideoError
from pipeline.records import MAX_COORDINATE, Query, Span, Truth

CLIP_SECONDS = 20
"""Duration of every clip."""
TIME_TOLERANCE = 0.5
"""Seconds by which the annotated times may differ from the frames' times."""


def _parse_boxes(rows: object) -> np.ndarray | None:
    """Convert the annotated boxes to `[n, 4]` x, y, width, height in pixels."""
    if rows is None:
        return None
    try:
        boxes = np.array(rows, np.float64)
    except (TypeError, ValueError, OverflowError):
        boxes = np.zeros(1)  # not [n, 4], so that the check below fails

    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)

    # Written so that NaN fails the comparison, too.
    is_valid = (
        boxes.ndim == 2 and boxes.shape[1] == 4 and bool((np.abs(boxes) <= MAX_COORDINATE).all())
    )
    if not is_valid:
        raise ValueError(
            f"not a list of [x, y, width, height] in pixels, each at most {MAX_COORDINATE}"
        )
    return boxes


class _HcstvgEntry(RawEntry, strict=False, arbitrary_types_allowed=True):
    """An entry of either version. Ground truth: both or neither of `st_frame` and `bbox`."""

    sentence: Text = Field(validation_alias=AliasChoices("English", "caption"))
    img_num: FrameCount | None = None
    width: SideLength | None = None
    height: SideLength | None = None
    img_size: list[SideLength] | None = Field(default=None, min_length=2, max_length=3)
    st_frame: SignedFrameIndex | None = None
    bbox: Annotated[np.ndarray | None, PlainValidator(_parse_boxes)] = None
    ed_frame: Any = None
    st_time: Any = None
    ed_time: Any = None

    @model_validator(mode="after")
    def _check_truth_complete(self) -> _HcstvgEntry:
        if (self.st_frame is None) != (self.bbox is None):
            raise ValueError("st_frame and bbox go together, and one is absent")
        return self

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels, or None if not annotated."""
        if self.width is not None and self.height is not None:
            return self.width, self.height
        return None if self.img_size is None else (self.img_size[1], self.img_size[0])


def _parse(
    version: str,
    root: Path,
    progress: ProgressCallback = ignore_progress,
    probe: ProbeFunction = probe_videos,
) -> ParsedDataset:
    """Parse all splits of one version; see `Parser`. Progress counts the probed videos."""
    root = Path(root)
    files = find_annotation_files(version, root)
    parsed = ParsedDataset(root)
    video_files = VideoFiles(root)

    # Validate the entries of all splits.
    entries: dict[str, tuple[str, _HcstvgEntry]] = {}
    for split, path in files.items():
        parsed.defects.split = split
        _read_entries(split, path, load_entries(version, path, root), entries, parsed)
    check_not_empty(entries, parsed, files.values())

    # Probe the videos whose entries lack a frame count or a size.
    parsed.defects.split = NO_SPLIT
    paths = {}
    for name in entries:
        paths[name] = video_files.resolve_path(name, f"video/{name}", parsed.defects)
    incomplete_paths = []
    for name, (_, entry) in entries.items():
        if entry.img_num is None or entry.size is None:
            incomplete_paths.append(paths[name])
    parsed.probe_results = probe(root, incomplete_paths, progress)

    for name, (split, entry) in entries.items():
        parsed.defects.split = split
        query = _build_query(name, split, entry, paths[name], parsed)
        if query is not None:
            parsed.queries.append(query)

    parsed.defects.split = NO_SPLIT
    log_duplicates(parsed)
    return parsed


parse_v1 = partial(_parse, "1")
parse_v2 = partial(_parse, "2")


def _read_entries(
    split: str,
    path: Path,
    content: dict[str, Any],
    entries: dict[str, tuple[str, _HcstvgEntry]],
    parsed: ParsedDataset,
) -> None:
    """Add the valid entries of one file, by video; log the others. Empties `content`."""
    for name in list(content):
        # Remove the raw entry, so that its memory is freed once it is converted.
        raw_entry = content.pop(name)

        if not SAFE_NAME_PATTERN.fullmatch(name):
            detail = f"{path}: expected the video's file name, such as 55_vfjywN5CN0Y.mp4"
            parsed.defects.add("video name is not a plain name", repr(name), detail, excluded=True)
            continue
        if name in entries:
            detail = f"{path}: already in split {entries[name][0]}"
            parsed.defects.add("repeated id", name, detail, excluded=True)
            continue

        entry = _validate_entry(name, raw_entry, str(path), split == "test", parsed)
        if entry is not None:
            entries[name] = (split, entry)


def _validate_entry(
    name: str, raw_entry: object, path: str, may_lack_truth: bool, parsed: ParsedDataset
) -> _HcstvgEntry | None:
    """Validate an entry or a bare sentence; None and a defect if it is invalid."""
    content = {"caption": raw_entry} if isinstance(raw_entry, str) else raw_entry
    entry = validate_raw(_HcstvgEntry, content, "entry", name, parsed.defects)
    if entry is None:
        return None

    if not entry.sentence.strip():
        parsed.defects.add("empty sentence", name, f"{path}: {entry.sentence!r}", excluded=True)
        return None
    if entry.bbox is None and not may_lack_truth:
        detail = f"{path}: st_frame and bbox are absent; only test sentences may lack them"
        parsed.defects.add("no truth", name, detail, excluded=True)
        return None
    return entry


def _build_query(
    name: str, split: str, entry: _HcstvgEntry, path: str, parsed: ParsedDataset
) -> Query | None:
    """Build the query of one entry; None and a defect if its video or truth is unusable."""
    if entry.img_num is None or entry.size is None:
        result = parsed.probe_results[path]
        if isinstance(result, VideoError):
            parsed.defects.add(f"video {result.reason}", name, result.detail, excluded=True)
            return None
        frame_count = result.frame_count
        fps = result.fps
        size = entry.size or result.size
    else:
        frame_count = entry.img_num
        fps = entry.img_num / CLIP_SECONDS
        size = entry.size

    truth = None
    if entry.bbox is not None:
        truth = _build_truth(name, entry, frame_count, fps, size, parsed)
        if truth is None:
            return None

    return Query(
        id=name,
        video=name,
        path=path,
        fps=fps,
        frame_count=frame_count,
        size=size,
        segment=(0, frame_count),
        text=entry.sentence.strip(),
        split=split,
        truth=truth,
    )


def _build_truth(
    name: str,
    entry: _HcstvgEntry,
    frame_count: int,
    fps: float,
    size: tuple[int, int],
    parsed: ParsedDataset,
) -> Truth | None:
    """Clip the ground truth to the video and store its boxes; None and a defect if empty."""
    assert entry.st_frame is not None
    assert entry.bbox is not None

    # The span as annotated, and its part inside the video.
    first = entry.st_frame - 1
    stated = (first, first + len(entry.bbox))
    span = (max(stated[0], 0), min(stated[1], frame_count))
    detail = (
        f"{len(entry.bbox)} boxes from st_frame {entry.st_frame} on, "
        f"[{stated[0]}, {stated[1]}) of {frame_count} frames"
    )

    if span[0] >= span[1]:
        kind = "span beyond the video" if len(entry.bbox) else "empty span"
        parsed.defects.add(kind, name, detail, excluded=True)
        return None
    if span != stated:
        clipped = f"clipped to [{span[0]}, {span[1]})"
        parsed.defects.add("span leaves the video", name, f"{detail}; {clipped}")
    _log_disagreements(name, entry, stated, fps, parsed)

    # Store the boxes of the remaining frames as xyxy.
    boxes_xywh = entry.bbox[span[0] - stated[0] : span[1] - stated[0]]  # [n, 4]
    top_left = boxes_xywh[:, :2]  # [n, 2]
    boxes = np.concatenate([top_left, top_left + boxes_xywh[:, 2:]], 1)  # [n, 4]
    frames = np.arange(*span, dtype=np.int32)  # [n]
    track = add_tube(name, frames, boxes, span, size, parsed)
    return Truth(span=span, track=track)


def _log_disagreements(
    name: str, entry: _HcstvgEntry, span: Span, fps: float, parsed: ParsedDataset
) -> None:
    """Log an `ed_frame` or times that disagree with the boxes. The boxes are used."""
    if entry.ed_frame is not None and _to_float(entry.ed_frame) != span[1]:
        detail = (
            f"ed_frame {reprlib.repr(entry.ed_frame)}, "
            f"but the boxes end at frame {span[1]} counted from 1"
        )
        parsed.defects.add("end frame disagrees", name, detail)

    times = (("st_time", entry.st_time, span[0]), ("ed_time", entry.ed_time, span[1]))
    for field, time, frame in times:
        if time is None:
            continue

        # Written so that NaN fails the comparison, too.
        frame_time = frame / fps
        agrees = abs(_to_float(time) - frame_time) <= TIME_TOLERANCE
        if not agrees:
            detail = f"{field} {reprlib.repr(time)}, by its frames {frame_time:.2f} s"
            parsed.defects.add("times disagree", name, detail)
            return


def _to_float(value: object) -> float:
    """Convert a value to a number; NaN if that is impossible."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan

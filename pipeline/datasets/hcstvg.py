"""HC-STVG: one sentence about one person in each 20-second film clip; versions 1 and 2.

A file per split is an object `{video's file name: entry}`. `st_frame` is the first frame counted from 1 and `bbox` holds one
`[x, y, width, height]` for each frame from there, so the truth is `[st_frame - 1, st_frame - 1 + len(bbox))`; `ed_frame`
(its last frame, counted from 1) and `st_time`, `ed_time` (seconds) are only held against it. `img_num` is the clip's
frames: 20 times its rate. Version 2 says `English` for `caption` and `img_size` `[height, width]` for `width`, `height`; either is
read in both, but not the other version's own files. Version 2's test sentences are without truth, and may be bare strings: their
videos then say the rest.
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
"""How long every clip is."""
TIME_TOLERANCE = 0.5
"""Seconds by which the stated times may differ from the frames'."""


def _parse_boxes(rows: object) -> np.ndarray | None:
    """Boxes as they are written, `[n, 4]` x, y, width, height in pixels."""
    if rows is None:
        return None
    try:
        boxes = np.array(rows, np.float64)
    except (TypeError, ValueError, OverflowError):
        boxes = np.zeros(1)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if (
        boxes.ndim != 2 or boxes.shape[1] != 4 or not (np.abs(boxes) <= MAX_COORDINATE).all()
    ):  # which NaN is not
        raise ValueError(
            f"not a list of [x, y, width, height] in pixels, each at most {MAX_COORDINATE}"
        )
    return boxes


class _HcstvgEntry(RawEntry, strict=False, arbitrary_types_allowed=True):
    """An entry of either version. Truth: `st_frame` and `bbox`, both or neither."""

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
        """(width, height) in pixels, where it is stated."""
        if self.width is not None and self.height is not None:
            return self.width, self.height
        return None if self.img_size is None else (self.img_size[1], self.img_size[0])


def _parse(
    version: str,
    root: Path,
    progress: ProgressCallback = ignore_progress,
    probe: ProbeFunction = probe_videos,
) -> ParsedDataset:
    """All queries of the splits found under `root`; `progress(done, total)` counts the videos probed for what an entry leaves open."""
    root = Path(root)
    files = find_annotation_files(version, root)
    parsed, videos = ParsedDataset(root), VideoFiles(root)
    entries: dict[str, tuple[str, _HcstvgEntry]] = {}
    for split, path in files.items():
        parsed.defects.split = split
        _read_entries(split, path, load_entries(version, path, root), entries, parsed)
    check_not_empty(entries, parsed, files.values())
    parsed.defects.split = NO_SPLIT
    paths = {name: videos.resolve_path(name, f"video/{name}", parsed.defects) for name in entries}
    unstated = [
        paths[name]
        for name, (_, entry) in entries.items()
        if entry.img_num is None or entry.size is None
    ]
    parsed.probe_results = probe(root, unstated, progress)
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
    """Add the entries of one file that hold, by video; whatever is wrong with one becomes a defect."""
    for name in list(content):
        raw = content.pop(name)  # what has been read is let go
        if not SAFE_NAME_PATTERN.fullmatch(name):
            detail = f"{path}: the video's file name is wanted, such as 55_vfjywN5CN0Y.mp4"
            parsed.defects.add("video name is not a plain name", repr(name), detail, excluded=True)
        elif name in entries:
            parsed.defects.add(
                "repeated id",
                name,
                f"{path}: it is in the split {entries[name][0]} already",
                excluded=True,
            )
        elif (entry := _validate_entry(name, raw, str(path), split == "test", parsed)) is not None:
            entries[name] = (split, entry)


def _validate_entry(
    name: str, raw: object, place: str, may_lack_truth: bool, parsed: ParsedDataset
) -> _HcstvgEntry | None:
    """The validated entry (or bare sentence), or a defect and None."""
    entry = validate_raw(
        _HcstvgEntry,
        {"caption": raw} if isinstance(raw, str) else raw,
        "entry",
        name,
        parsed.defects,
    )
    if entry is None:
        return None
    if not entry.sentence.strip():
        parsed.defects.add("empty sentence", name, f"{place}: {entry.sentence!r}", excluded=True)
        return None
    if entry.bbox is None and not may_lack_truth:
        parsed.defects.add(
            "no truth",
            name,
            f"{place}: neither st_frame nor bbox; only test sentences may be without",
            excluded=True,
        )
        return None
    return entry


def _build_query(
    name: str, split: str, entry: _HcstvgEntry, path: str, parsed: ParsedDataset
) -> Query | None:
    """The query of one entry; None, and a defect, where its video or its truth cannot be used."""
    if entry.img_num is None or entry.size is None:
        facts = parsed.probe_results[path]
        if isinstance(facts, VideoError):
            parsed.defects.add(f"video {facts.reason}", name, facts.detail, excluded=True)
            return None
        count, fps, size = facts.frame_count, facts.fps, entry.size or facts.size
    else:
        count, fps, size = entry.img_num, entry.img_num / CLIP_SECONDS, entry.size
    truth = None
    if entry.bbox is not None:
        truth = _build_truth(name, entry, count, fps, size, parsed)
        if truth is None:
            return None
    return Query(
        id=name,
        video=name,
        path=path,
        fps=fps,
        frame_count=count,
        size=size,
        segment=(0, count),
        text=entry.sentence.strip(),
        split=split,
        truth=truth,
    )


def _build_truth(
    name: str,
    entry: _HcstvgEntry,
    count: int,
    fps: float,
    size: tuple[int, int],
    parsed: ParsedDataset,
) -> Truth | None:
    """The truth's frames within the video and its boxes; a defect and None where no frame is left."""
    assert entry.st_frame is not None
    assert entry.bbox is not None
    stated = (entry.st_frame - 1, entry.st_frame - 1 + len(entry.bbox))
    span = (max(stated[0], 0), min(stated[1], count))
    words = f"{len(entry.bbox)} boxes from st_frame {entry.st_frame} on, [{stated[0]}, {stated[1]}) of {count} frames"
    if span[0] >= span[1]:
        parsed.defects.add(
            "span beyond the video" if len(entry.bbox) else "empty span", name, words, excluded=True
        )
        return None
    if span != stated:
        parsed.defects.add(
            "span leaves the video", name, f"{words}; clipped to [{span[0]}, {span[1]})"
        )
    _log_disagreements(name, entry, stated, fps, parsed)
    boxes = entry.bbox[span[0] - stated[0] : span[1] - stated[0]]
    boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    track = add_tube(name, np.arange(*span, dtype=np.int32), boxes, span, size, parsed)
    return Truth(span=span, track=track)


def _log_disagreements(
    name: str, entry: _HcstvgEntry, span: Span, fps: float, parsed: ParsedDataset
) -> None:
    """Report an `ed_frame` or times that say otherwise than the boxes, which are believed."""
    if entry.ed_frame is not None and _to_float(entry.ed_frame) != span[1]:
        detail = f"ed_frame {reprlib.repr(entry.ed_frame)}, but the boxes end at frame {span[1]} counted from 1"
        parsed.defects.add("end frame disagrees", name, detail)
    for what, time, frame in (
        ("st_time", entry.st_time, span[0]),
        ("ed_time", entry.ed_time, span[1]),
    ):
        if (
            time is not None and not abs(_to_float(time) - frame / fps) <= TIME_TOLERANCE
        ):  # which NaN is not
            parsed.defects.add(
                "times disagree",
                name,
                f"{what} {reprlib.repr(time)}, by its frames {frame / fps:.2f} s",
            )
            return


def _to_float(value: object) -> float:
    """The value as a number; NaN where it is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan

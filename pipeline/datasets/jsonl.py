"""One's own data: a file with one JSON object per line, `{"video": …, "text": …}` and what else is known.

`video` is a path, absolute or relative to the file; `segment` `[begin, end)` the frames asked about (default: all);
`tube` `{begin, boxes}` the truth, one xyxy box in pixels per frame, null where the object is hidden; `split` (default
"test"); `tags`; `id` (default: the line's number). Rate, frame count and size are the video's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.datasets.annotation_fields import (
    MAX_FRAMES,
    Box,
    SignedFrameIndex,
    Text,
    simplify_message,
    validate_raw,
)
from pipeline.datasets.parsed import (
    NO_SPLIT,
    ParsedDataset,
    ProbeFunction,
    ProgressCallback,
    ignore_progress,
    log_duplicates,
)
from pipeline.datasets.tubes import add_tube
from pipeline.datasets.video_checks import probe_videos
from pipeline.errors import InputError, VideoError
from pipeline.io.strict_json import parse_json, read_lines
from pipeline.records import Query, Span, Truth
from pipeline.validation import StrictModel
from pipeline.video import VideoMetadata

EXPECTED_LAYOUT = """{path} {problem}. Write one JSON object per line, such as
  {{"video": "clips/dog.mp4", "text": "a dog runs to the left"}}
with "video" a path relative to that file, and name the file with --root."""
NO_SENTENCES = "is not a file of sentences"


class _JsonlTube(StrictModel):
    begin: int = Field(ge=0, le=MAX_FRAMES, strict=True)
    boxes: list[Box | None] = Field(fail_fast=True)


class JsonlEntry(StrictModel):
    """What one sentence states, in a line of a file or elsewhere."""

    video: Text = Field(min_length=1)
    text: Text
    id: Text | None = Field(default=None, min_length=1)
    segment: tuple[SignedFrameIndex, SignedFrameIndex] | None = None
    tube: _JsonlTube | None = None
    split: str = Field(default="test", pattern=r"^[A-Za-z0-9_-]+$")
    tags: tuple[Text, ...] = ()


def parse(
    root: Path, progress: ProgressCallback = ignore_progress, probe: ProbeFunction = probe_videos
) -> ParsedDataset:
    """All queries of the file `root`; `progress(done, total)` counts its videos, which are probed here."""
    path = Path(root)
    parsed = ParsedDataset(path.parent)
    return add_queries(_read_entries(path, parsed), parsed, progress, probe)


def add_queries(
    entries: Mapping[str, JsonlEntry],
    parsed_dataset: ParsedDataset,
    progress: ProgressCallback,
    probe: ProbeFunction,
) -> ParsedDataset:
    """`parsed` with the queries of lines by id, whose videos are paths relative to its folder."""
    videos = {
        name: _normalize_video_path(line.video, parsed_dataset.folder)
        for name, line in entries.items()
    }
    parsed_dataset.probe_results = probe(parsed_dataset.folder, videos.values(), progress)
    for name, line in entries.items():
        parsed_dataset.defects.split = line.split
        found = parsed_dataset.probe_results[videos[name]]
        if isinstance(found, VideoError):
            parsed_dataset.defects.add(f"video {found.reason}", name, found.detail, excluded=True)
            continue
        query = _build_query(name, videos[name], line, found, parsed_dataset)
        if query is not None:
            parsed_dataset.queries.append(query)
    parsed_dataset.defects.split = NO_SPLIT
    log_duplicates(parsed_dataset)
    return parsed_dataset


def _normalize_video_path(video: str, folder: Path) -> str:
    """One name for one video: relative to the folder where the path leads into it, else as it is written."""
    here = os.path.abspath(folder)
    place = os.path.normpath(os.path.join(here, video))
    return (
        os.path.relpath(place, here)
        if place.startswith(os.path.join(here, ""))
        else os.path.normpath(video)
    )


def _read_entries(path: Path, parsed: ParsedDataset) -> dict[str, JsonlEntry]:
    """The valid lines by id; a broken one is a defect, a file without any object an InputError."""
    if not path.is_file():
        raise InputError(
            EXPECTED_LAYOUT.format(
                path=path, problem=NO_SENTENCES if path.exists() else "does not exist"
            )
        )
    found: dict[str, JsonlEntry] = {}
    objects, first_error = 0, ""
    for number, row in read_lines(path):
        try:
            content = parse_json(row)
        except (ValueError, RecursionError) as error:
            first_error = (
                first_error or f"{path}, line {number}: not JSON ({_describe_json_error(error)})"
            )
            parsed.defects.add(
                "not JSON", f"line {number}", _describe_json_error(error), excluded=True
            )
            continue
        objects += isinstance(content, dict)
        collect_entry(content, f"line {number}", str(number), found, parsed)
        parsed.defects.split = NO_SPLIT
    if not objects:
        raise InputError(
            (first_error or f"{path} holds no sentence")
            + ". "
            + EXPECTED_LAYOUT.format(path=path, problem=NO_SENTENCES)
        )
    return found


def _describe_json_error(error: ValueError | RecursionError) -> str:
    """Why a line is no JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8 text"
    return (
        "nested too deeply" if isinstance(error, RecursionError) else simplify_message(str(error))
    )


def collect_entry(
    content: Any,
    location: str,
    default_id: str,
    entries: dict[str, JsonlEntry],
    parsed_dataset: ParsedDataset,
) -> None:
    """Validate what one `place` of a file says, and file it under its id."""
    line = validate_raw(JsonlEntry, content, "line", location, parsed_dataset.defects)
    if line is None:
        return
    parsed_dataset.defects.split = line.split
    name = line.id or default_id
    if name in entries:
        parsed_dataset.defects.add(
            "repeated id", location, f"id {name!r} stands before it too", excluded=True
        )
    elif not line.text.strip():
        parsed_dataset.defects.add(
            "empty sentence", name, f"{location}: {line.text!r}", excluded=True
        )
    else:
        entries[name] = line


def _build_query(
    name: str, video: str, line: JsonlEntry, facts: VideoMetadata, parsed: ParsedDataset
) -> Query | None:
    """The query of one line; its spans are clipped to the video, empty ones are defects."""
    count = facts.frame_count
    stated = line.segment or (0, count)
    segment = (max(stated[0], 0), min(stated[1], count))
    if segment[0] >= segment[1]:
        parsed.defects.add(
            "empty segment",
            name,
            f"segment [{stated[0]}, {stated[1]}) in a video of {count} frames",
            excluded=True,
        )
        return None
    if segment != stated:
        parsed.defects.add(
            "segment leaves the video",
            name,
            f"[{stated[0]}, {stated[1]}), the video has {count} frames; clipped",
        )
    span = _clip_tube_span(name, line.tube, segment, parsed) if line.tube else None
    if line.tube and span is None:
        return None
    track = _add_boxes(name, line.tube, span, facts.size, parsed) if line.tube and span else None
    return Query(
        id=name,
        video=video,
        path=video,
        fps=facts.fps,
        frame_count=count,
        size=facts.size,
        segment=segment,
        text=line.text.strip(),
        split=line.split,
        truth=Truth(span=span, track=track) if span else None,
        tags=line.tags,
    )


def _clip_tube_span(
    name: str, tube: _JsonlTube, segment: Span, parsed: ParsedDataset
) -> Span | None:
    """The tube's frames `[begin, end)` inside the segment; a defect and None where there are none."""
    stated = (tube.begin, tube.begin + len(tube.boxes))
    span = (max(stated[0], segment[0]), min(stated[1], segment[1]))
    if span[0] >= span[1]:
        kind = "span outside its segment" if tube.boxes else "empty span"
        parsed.defects.add(
            kind,
            name,
            f"tube [{stated[0]}, {stated[1]}), segment [{segment[0]}, {segment[1]})",
            excluded=True,
        )
        return None
    if span != stated:
        parsed.defects.add(
            "span leaves its segment",
            name,
            f"tube [{stated[0]}, {stated[1]}), clipped to [{span[0]}, {span[1]})",
        )
    return span


def _add_boxes(
    name: str, tube: _JsonlTube, span: Span, size: tuple[int, int], parsed: ParsedDataset
) -> str | None:
    """Store the tube's boxes; the key of their track, None where none is left in the span."""
    rows = [(tube.begin + place, box) for place, box in enumerate(tube.boxes) if box is not None]
    frames = np.array([frame for frame, _ in rows], np.int32)
    boxes = np.array([box for _, box in rows], np.float64).reshape(-1, 4)
    return add_tube(name, frames, boxes, span, size, parsed)

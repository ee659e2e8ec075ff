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
from pydantic import BaseModel, ConfigDict, Field

from pipeline.datasets.annotation_fields import MOST_FRAMES, AnyFrame, Box, Text, plain, validated
from pipeline.datasets.parsed import NO_SPLIT, Parsed, Probe, Progress, name_repeats, quiet
from pipeline.datasets.tubes import add_tube
from pipeline.datasets.video_checks import probe_videos
from pipeline.errors import InputError, VideoError
from pipeline.io.strict_json import lines_of, parse_json
from pipeline.records import Query, Span, Truth
from pipeline.video import VideoFacts

EXPECTED = """{path} {problem}. Write one JSON object per line, such as
  {{"video": "clips/dog.mp4", "text": "a dog runs to the left"}}
with "video" a path relative to that file, and name the file with --root."""
NO_SENTENCES = "is not a file of sentences"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Tube(_Strict):
    begin: int = Field(ge=0, le=MOST_FRAMES, strict=True)
    boxes: list[Box | None] = Field(fail_fast=True)


class Line(_Strict):
    """What one sentence states, in a line of a file or elsewhere."""

    video: Text = Field(min_length=1)
    text: Text
    id: Text | None = Field(default=None, min_length=1)
    segment: tuple[AnyFrame, AnyFrame] | None = None
    tube: _Tube | None = None
    split: str = Field(default="test", pattern=r"^[A-Za-z0-9_-]+$")
    tags: tuple[Text, ...] = ()


def parse(root: Path, progress: Progress = quiet, probe: Probe = probe_videos) -> Parsed:
    """All queries of the file `root`; `progress(done, total)` counts its videos, which are probed here."""
    path = Path(root)
    parsed = Parsed(path.parent)
    return of_lines(_lines(path, parsed), parsed, progress, probe)


def of_lines(lines: Mapping[str, Line], parsed: Parsed, progress: Progress, probe: Probe) -> Parsed:
    """`parsed` with the queries of lines by id, whose videos are paths relative to its folder."""
    videos = {name: _place(line.video, parsed.folder) for name, line in lines.items()}
    parsed.facts = probe(parsed.folder, videos.values(), progress)
    for name, line in lines.items():
        parsed.defects.split = line.split
        found = parsed.facts[videos[name]]
        if isinstance(found, VideoError):
            parsed.defects.add(f"video {found.reason}", name, found.detail, excluded=True)
            continue
        query = _query(name, videos[name], line, found, parsed)
        if query is not None:
            parsed.queries.append(query)
    parsed.defects.split = NO_SPLIT
    name_repeats(parsed)
    return parsed


def _place(video: str, folder: Path) -> str:
    """One name for one video: relative to the folder where the path leads into it, else as it is written."""
    here = os.path.abspath(folder)
    place = os.path.normpath(os.path.join(here, video))
    return os.path.relpath(place, here) if place.startswith(os.path.join(here, "")) else os.path.normpath(video)


def _lines(path: Path, parsed: Parsed) -> dict[str, Line]:
    """The valid lines by id; a broken one is a defect, a file without any object an InputError."""
    if not path.is_file():
        raise InputError(EXPECTED.format(path=path, problem=NO_SENTENCES if path.exists() else "does not exist"))
    found: dict[str, Line] = {}
    objects, first_error = 0, ""
    for number, row in lines_of(path):
        try:
            content = parse_json(row)
        except (ValueError, RecursionError) as error:
            first_error = first_error or f"{path}, line {number}: not JSON ({_why(error)})"
            parsed.defects.add("not JSON", f"line {number}", _why(error), excluded=True)
            continue
        objects += isinstance(content, dict)
        keep(content, f"line {number}", str(number), found, parsed)
        parsed.defects.split = NO_SPLIT
    if not objects:
        raise InputError((first_error or f"{path} holds no sentence") + ". " + EXPECTED.format(path=path, problem=NO_SENTENCES))
    return found


def _why(error: ValueError | RecursionError) -> str:
    """Why a line is no JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8 text"
    return "nested too deeply" if isinstance(error, RecursionError) else plain(str(error))


def keep(content: Any, place: str, default_id: str, found: dict[str, Line], parsed: Parsed) -> None:
    """Validate what one `place` of a file says, and file it under its id."""
    line = validated(Line, content, "line", place, parsed.defects)
    if line is None:
        return
    parsed.defects.split = line.split
    name = line.id or default_id
    if name in found:
        parsed.defects.add("repeated id", place, f"id {name!r} stands before it too", excluded=True)
    elif not line.text.strip():
        parsed.defects.add("empty sentence", name, f"{place}: {line.text!r}", excluded=True)
    else:
        found[name] = line


def _query(name: str, video: str, line: Line, facts: VideoFacts, parsed: Parsed) -> Query | None:
    """The query of one line; its spans are clipped to the video, empty ones are defects."""
    count = facts.frame_count
    stated = line.segment or (0, count)
    segment = (max(stated[0], 0), min(stated[1], count))
    if segment[0] >= segment[1]:
        parsed.defects.add("empty segment", name, f"segment [{stated[0]}, {stated[1]}) in a video of {count} frames", excluded=True)
        return None
    if segment != stated:
        parsed.defects.add("segment leaves the video", name, f"[{stated[0]}, {stated[1]}), the video has {count} frames; clipped")
    span = _tube_span(name, line.tube, segment, parsed) if line.tube else None
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


def _tube_span(name: str, tube: _Tube, segment: Span, parsed: Parsed) -> Span | None:
    """The tube's frames `[begin, end)` inside the segment; a defect and None where there are none."""
    stated = (tube.begin, tube.begin + len(tube.boxes))
    span = (max(stated[0], segment[0]), min(stated[1], segment[1]))
    if span[0] >= span[1]:
        kind = "span outside its segment" if tube.boxes else "empty span"
        parsed.defects.add(kind, name, f"tube [{stated[0]}, {stated[1]}), segment [{segment[0]}, {segment[1]})", excluded=True)
        return None
    if span != stated:
        parsed.defects.add("span leaves its segment", name, f"tube [{stated[0]}, {stated[1]}), clipped to [{span[0]}, {span[1]})")
    return span


def _add_boxes(name: str, tube: _Tube, span: Span, size: tuple[int, int], parsed: Parsed) -> str | None:
    """Store the tube's boxes; the key of their track, None where none is left in the span."""
    rows = [(tube.begin + place, box) for place, box in enumerate(tube.boxes) if box is not None]
    frames = np.array([frame for frame, _ in rows], np.int32)
    boxes = np.array([box for _, box in rows], np.float64).reshape(-1, 4)
    return add_tube(name, frames, boxes, span, size, parsed)

"""One's own data: a file with one JSON object per line, `{"video": …, "text": …}` and what else is known.

`video` is a path, absolute or relative to the file; `segment` `[begin, end)` the frames asked about (default: all);
`tube` `{begin, boxes}` the truth, one xyxy box in pixels per frame, null where the object is hidden; `split` (default
"test"); `tags`; `id` (default: the line's number). Rate, frame count and size are the video's own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.datasets.parsed import Parsed, Progress, Text, name_repeats, quiet
from pipeline.datasets.videos import probe_videos
from pipeline.datasets.vidor import clip_boxes
from pipeline.decode import VideoFacts
from pipeline.errors import InputError, VideoError
from pipeline.records import Query, Span, Truth, first_problem

EXPECTED = """{path} is not a file of sentences. Write one JSON object per line, such as
  {{"video": "clips/dog.mp4", "text": "a dog runs to the left"}}
with "video" a path relative to that file, and name the file with --root."""
Box = tuple[float, float, float, float]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Tube(_Strict):
    begin: int = Field(ge=0, strict=True)
    boxes: list[Box | None]


class _Line(_Strict):
    video: Text = Field(min_length=1)
    text: Text
    id: Text | None = Field(default=None, min_length=1)
    segment: Span | None = None
    tube: _Tube | None = None
    split: str = Field(default="test", pattern=r"^[A-Za-z0-9_-]+$")
    tags: tuple[Text, ...] = ()


def parse(path: Path, progress: Progress = quiet) -> Parsed:
    """All queries of the file; `progress(done, total)` counts its videos, which are probed here."""
    path = Path(path)
    parsed = Parsed(path.parent)
    lines = _lines(path, parsed)
    parsed.facts = probe_videos(path.parent, (os.path.normpath(line.video) for line in lines.values()), progress)
    for name, line in lines.items():
        found = parsed.facts[os.path.normpath(line.video)]
        if isinstance(found, VideoError):
            parsed.defects.add(f"video {found.reason}", name, found.detail, excluded=True)
            continue
        query = _query(name, line, found, parsed)
        if query is not None:
            parsed.queries.append(query)
    name_repeats(parsed)
    return parsed


def _lines(path: Path, parsed: Parsed) -> dict[str, _Line]:
    """The valid lines by id; a broken one is a defect, a file without any JSON an InputError."""
    try:
        rows = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(EXPECTED.format(path=path)) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, byte {error.start}: not UTF-8 text. " + EXPECTED.format(path=path)) from None
    found: dict[str, _Line] = {}
    objects, first_error = 0, ""
    for number, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        try:
            content = json.loads(row)
        except (json.JSONDecodeError, RecursionError) as error:
            first_error = first_error or f"{path}, line {number}: not JSON ({error})"
            parsed.defects.add("not JSON", f"line {number}", str(error), excluded=True)
            continue
        objects += isinstance(content, dict)
        _keep(number, content, found, parsed)
    if not objects:
        raise InputError((first_error or f"{path} holds no sentence") + ". " + EXPECTED.format(path=path))
    return found


def _keep(number: int, content: Any, found: dict[str, _Line], parsed: Parsed) -> None:
    """Validate one line's object and file it under its id."""
    try:
        line = _Line.model_validate(content)
    except ValidationError as error:
        parsed.defects.add("malformed line", f"line {number}", first_problem(error), excluded=True)
        return
    name = line.id or str(number)
    if name in found:
        parsed.defects.add("repeated id", f"line {number}", f"id {name!r} stands on an earlier line too", excluded=True)
    elif not line.text.strip():
        parsed.defects.add("empty sentence", name, f"line {number}: {line.text!r}", excluded=True)
    else:
        found[name] = line


def _query(name: str, line: _Line, facts: VideoFacts, parsed: Parsed) -> Query | None:
    """The query of one line; its spans are clipped to the video, empty ones are defects."""
    video, count = os.path.normpath(line.video), facts.frame_count
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
    track = _add_track(f"{video}/{name}", line.tube, span, facts.size, parsed) if line.tube and span else None
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


def _add_track(key: str, tube: _Tube, span: Span, size: tuple[int, int], parsed: Parsed) -> str | None:
    """Store the tube's boxes, clipped to the picture; None where none is left in the span."""
    rows = [(tube.begin + place, box) for place, box in enumerate(tube.boxes) if box is not None]
    frames = np.array([frame for frame, _ in rows], np.int32)
    boxes = np.array([box for _, box in rows], np.float64).reshape(-1, 4)
    frames, boxes = clip_boxes(key, frames, boxes, size, parsed.defects)
    if not ((frames >= span[0]) & (frames < span[1])).any():
        parsed.defects.add("no box in the span", key, f"no frame of [{span[0]}, {span[1]}) has a box; kept without boxes")
        return None
    parsed.tracks.add(key, frames, boxes)
    return key

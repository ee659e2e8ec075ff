"""The HC-STVG challenge's file of tubes: `{id: {st_frame, ed_frame, bbox: {frame: [x1, y1, x2, y2]}}}`, predictions and truth alike.

`st_frame` and `ed_frame` are the first and the last frame (inclusive); frames are numbered from 1, as in HC-STVG's
annotations (`first_frame` says otherwise), boxes are xyxy in pixels. A tube has the boxes it lists, frame by frame.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from grounding.structures.tubes import Tubes, concatenate_ranges
from pipeline.errors import InputError
from pipeline.io.atomic import atomic_write
from pipeline.io.strict_json import read_json
from pipeline.records import Coordinate, FrameIndex
from pipeline.validation import format_first_error

FIRST_FRAME = 1


def _parse_frame_number(key: object) -> int:
    """A frame number as a key of JSON writes it, in one way only."""
    if isinstance(key, str) and len(key) < 10 and re.fullmatch("0|[1-9][0-9]*", key):
        return int(key)
    raise ValueError("a frame number is wanted")


class _ChallengeEntry(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    st_frame: FrameIndex = Field(strict=True)
    ed_frame: FrameIndex = Field(strict=True)
    bbox: dict[
        Annotated[int, BeforeValidator(_parse_frame_number)],
        tuple[Coordinate, Coordinate, Coordinate, Coordinate],
    ]


def read_challenge(path: Path, first_frame: int = FIRST_FRAME) -> Tubes:
    """The file's tubes, numbered from 0; an InputError names the file and the entry that is not one."""
    content = read_json(path, "write it again (a file of JSON lines must end in .jsonl)")
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path} must be one mapping of ids to tubes; a file of JSON lines must end in .jsonl"
        )
    entries = {name: _parse_entry(path, name, raw, first_frame) for name, raw in content.items()}
    rows = (
        (
            np.fromiter(entry.bbox, np.int64, len(entry.bbox)) - first_frame,
            np.array([*entry.bbox.values()], np.float64).reshape(-1, 4),
        )
        for entry in entries.values()
    )
    spans = (
        (entry.st_frame - first_frame, entry.ed_frame + 1 - first_frame)
        for entry in entries.values()
    )
    return replace(Tubes.from_rows(entries, spans, rows), framewise=True)


def _parse_entry(path: Path, name: str, raw: Any, first_frame: int) -> _ChallengeEntry:
    try:
        name.encode()
        entry = _ChallengeEntry.model_validate(raw)
    except UnicodeEncodeError:
        raise InputError(
            f"{path}, {name!a}: an id with half a surrogate pair is no text; write the file again"
        ) from None
    except ValidationError as error:
        raise InputError(
            f"{path}, {name!r}: {format_first_error(error)}; each id needs st_frame, ed_frame and bbox {{frame: [x1, y1, x2, y2]}}"
        ) from None
    if entry.ed_frame < entry.st_frame:
        raise InputError(
            f"{path}, {name!r}: ed_frame {entry.ed_frame} is before st_frame {entry.st_frame}; both are inclusive"
        )
    first = min([entry.st_frame, *entry.bbox])
    if first < first_frame:
        raise InputError(
            f"{path}, {name!r}: frame {first}, but frames count from {first_frame}; --set first_frame=0 if from 0"
        )
    return entry


def write_challenge(path: Path, tubes: Tubes, first_frame: int = FIRST_FRAME) -> None:
    """Write tubes with a box for every frame of their spans (samples are interpolated), atomically; empty ones are left out."""
    with atomic_write(path) as aside, aside.open("w", encoding="utf-8") as file:
        separator = "{"
        for place, name in enumerate(tubes.ids):
            begin, end = tubes.spans[place].tolist()
            if begin == end:
                continue
            frames = concatenate_ranges(np.array([begin]), np.array([end - begin]))
            boxes, own = tubes.boxes_at(np.full(len(frames), place), frames)
            listed = zip((frames[own] + first_frame).tolist(), boxes[own].tolist(), strict=True)
            entry = {
                "st_frame": begin + first_frame,
                "ed_frame": end - 1 + first_frame,
                "bbox": {str(n): box for n, box in listed},
            }
            file.write(f"{separator}\n{json.dumps(name)}: {json.dumps(entry)}")
            separator = ","
        file.write("\n}\n" if separator == "," else "{}\n")

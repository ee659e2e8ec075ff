"""Files of the HC-STVG challenge, for predictions and ground truth.

A file is one JSON mapping: `{id: {st_frame, ed_frame, bbox: {frame: [x1, y1, x2, y2]}}}`.
`st_frame` and `ed_frame` are the first and the last frame, both inclusive. Frames are numbered
from 1, as in HC-STVG's annotations, or from `first_frame`. Boxes are xyxy in pixels. A tube has
exactly the boxes that the file lists.
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
    """Parse a frame number that is a key of a JSON object; only one spelling is allowed."""
    if isinstance(key, str) and len(key) < 10 and re.fullmatch("0|[1-9][0-9]*", key):
        return int(key)
    raise ValueError("a frame number is wanted")


class _ChallengeEntry(BaseModel):
    """Tube of one query, as the file has it."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    st_frame: FrameIndex = Field(strict=True)
    ed_frame: FrameIndex = Field(strict=True)
    bbox: dict[
        Annotated[int, BeforeValidator(_parse_frame_number)],
        tuple[Coordinate, Coordinate, Coordinate, Coordinate],
    ]


def read_challenge(path: Path, first_frame: int = FIRST_FRAME) -> Tubes:
    """Read the tubes of a challenge file.

    Args:
        path: The file.
        first_frame: Number of a video's first frame in the file.

    Returns:
        Tubes with frames numbered from 0.

    Raises:
        InputError: The file or an entry is invalid; the message names both.
    """
    content = read_json(path, "write it again (a file of JSON lines must end in .jsonl)")
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path} must be one mapping of ids to tubes; a file of JSON lines must end in .jsonl"
        )

    entries = {}
    for query_id, raw_entry in content.items():
        entries[query_id] = _parse_entry(path, query_id, raw_entry, first_frame)

    rows = []
    spans = []
    for entry in entries.values():
        frames = np.fromiter(entry.bbox, np.int64, len(entry.bbox)) - first_frame  # [n]
        boxes = np.array([*entry.bbox.values()], np.float64).reshape(-1, 4)  # [n, 4]
        rows.append((frames, boxes))
        spans.append((entry.st_frame - first_frame, entry.ed_frame + 1 - first_frame))
    return replace(Tubes.from_rows(entries, spans, rows), framewise=True)


def _parse_entry(path: Path, query_id: str, raw_entry: Any, first_frame: int) -> _ChallengeEntry:
    """Validate one entry of the file."""
    try:
        query_id.encode()
        entry = _ChallengeEntry.model_validate(raw_entry)
    except UnicodeEncodeError:
        raise InputError(
            f"{path}, {query_id!a}: an id with half a surrogate pair is no text; write the file"
            " again"
        ) from None
    except ValidationError as error:
        raise InputError(
            f"{path}, {query_id!r}: {format_first_error(error)}; each id needs st_frame, ed_frame"
            " and bbox {frame: [x1, y1, x2, y2]}"
        ) from None

    if entry.ed_frame < entry.st_frame:
        raise InputError(
            f"{path}, {query_id!r}: ed_frame {entry.ed_frame} is before st_frame"
            f" {entry.st_frame}; both are inclusive"
        )

    min_frame = min([entry.st_frame, *entry.bbox])
    if min_frame < first_frame:
        raise InputError(
            f"{path}, {query_id!r}: frame {min_frame}, but frames count from {first_frame};"
            " --set first_frame=0 if from 0"
        )
    return entry


def write_challenge(path: Path, tubes: Tubes, first_frame: int = FIRST_FRAME) -> None:
    """Write tubes as a challenge file, atomically.

    Every frame of a span gets a box; boxes between samples are interpolated. Empty tubes are left
    out.

    Args:
        path: The file.
        tubes: Tubes with frames numbered from 0.
        first_frame: Number of a video's first frame in the file.
    """
    with atomic_write(path) as temporary_path, temporary_path.open("w", encoding="utf-8") as file:
        separator = "{"
        for index, query_id in enumerate(tubes.ids):
            begin, end = tubes.spans[index].tolist()
            if begin == end:
                continue

            frames = concatenate_ranges(np.array([begin]), np.array([end - begin]))
            boxes, has_box = tubes.boxes_at(np.full(len(frames), index), frames)
            frame_numbers = (frames[has_box] + first_frame).tolist()
            box_rows = boxes[has_box].tolist()
            entry = {
                "st_frame": begin + first_frame,
                "ed_frame": end - 1 + first_frame,
                "bbox": {
                    str(number): box for number, box in zip(frame_numbers, box_rows, strict=True)
                },
            }
            file.write(f"{separator}\n{json.dumps(query_id)}: {json.dumps(entry)}")
            separator = ","
        file.write("\n}\n" if separator == "," else "{}\n")

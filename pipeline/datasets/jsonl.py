"""User-supplied data: a file with one JSON object per line, `{"video": …, "text": …}`.

- `video`: path of the video, absolute or relative to the file.
- `text`: the sentence.
- `segment`: frames `[begin, end)` to search; by default all frames.
- `tube`: ground truth `{begin, boxes}`, one xyxy box in pixels per frame from `begin` on, null for
  frames where the object is hidden.
- `split`: by default "test".
- `tags`: by default none.
- `id`: by default the line number.

Frame rate, frame count and size come from the video.
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
from pipeline.records import MAX_FRAMES, Query, Span, Truth
from pipeline.validation import StrictModel
from pipeline.video import VideoMetadata

EXPECTED_LAYOUT = """{path} {problem}. Write one JSON object per line, such as
  {{"video": "clips/dog.mp4", "text": "a dog runs to the left"}}
with "video" a path relative to that file, and give the file with --root."""
NO_SENTENCES = "is not a file of sentences"


class _JsonlTube(StrictModel):
    begin: int = Field(ge=0, le=MAX_FRAMES, strict=True)
    boxes: list[Box | None] = Field(fail_fast=True)


class JsonlEntry(StrictModel):
    """One sentence and its fields, from a line of a file or from another source.

    Attributes:
        video: Path of the video, absolute or relative to the data set's folder.
        text: The sentence.
        id: Id of the query; None for the default id.
        segment: Frames `[begin, end)` to search; None for all frames.
        tube: The ground truth: first frame, and one xyxy box or None per frame from there on.
        split: Name of the split.
        tags: Words by which results can be grouped.
    """

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
    """Parse a file of sentences.

    Args:
        root: The file.
        progress: Called as `progress(done, total)` after each probed video.
        probe: Function that probes the videos.

    Returns:
        The queries, their tracks and the defects.

    Raises:
        InputError: The file does not exist, or no line is a JSON object.
    """
    path = Path(root)
    parsed = ParsedDataset(path.parent)
    entries = _read_entries(path, parsed)
    return add_queries(entries, parsed, progress, probe)


def add_queries(
    entries: Mapping[str, JsonlEntry],
    parsed_dataset: ParsedDataset,
    progress: ProgressCallback,
    probe: ProbeFunction,
) -> ParsedDataset:
    """Probe the videos of entries and add the queries to a data set.

    Args:
        entries: Entries by query id; their video paths are relative to the data set's folder.
        parsed_dataset: Data set that receives queries, tracks, probe results and defects.
        progress: Called as `progress(done, total)` after each probed video.
        probe: Function that probes the videos.

    Returns:
        `parsed_dataset`.
    """
    # Probe each video once, however its path is written.
    video_paths = {}
    for query_id, entry in entries.items():
        video_paths[query_id] = _normalize_video_path(entry.video, parsed_dataset.folder)
    parsed_dataset.probe_results = probe(parsed_dataset.folder, video_paths.values(), progress)

    for query_id, entry in entries.items():
        parsed_dataset.defects.split = entry.split
        path = video_paths[query_id]
        result = parsed_dataset.probe_results[path]
        if isinstance(result, VideoError):
            kind = f"video {result.reason}"
            parsed_dataset.defects.add(kind, query_id, result.detail, excluded=True)
            continue
        query = _build_query(query_id, path, entry, result, parsed_dataset)
        if query is not None:
            parsed_dataset.queries.append(query)

    parsed_dataset.defects.split = NO_SPLIT
    log_duplicates(parsed_dataset)
    return parsed_dataset


def _normalize_video_path(video: str, folder: Path) -> str:
    """Return one path per video: relative to the folder if inside it, else as written."""
    folder_path = os.path.abspath(folder)
    video_path = os.path.normpath(os.path.join(folder_path, video))
    if video_path.startswith(os.path.join(folder_path, "")):
        return os.path.relpath(video_path, folder_path)
    return os.path.normpath(video)


def _read_entries(path: Path, parsed: ParsedDataset) -> dict[str, JsonlEntry]:
    """Read the valid lines, by id; log the others. InputError for a file without any object."""
    if not path.is_file():
        problem = NO_SENTENCES if path.exists() else "does not exist"
        raise InputError(EXPECTED_LAYOUT.format(path=path, problem=problem))

    entries: dict[str, JsonlEntry] = {}
    num_objects = 0
    first_error = ""
    for line_number, line in read_lines(path):
        try:
            content = parse_json(line)
        except (ValueError, RecursionError) as error:
            detail = _describe_json_error(error)
            parsed.defects.add("not JSON", f"line {line_number}", detail, excluded=True)
            first_error = first_error or f"{path}, line {line_number}: not JSON ({detail})"
            continue

        if isinstance(content, dict):
            num_objects += 1
        collect_entry(content, f"line {line_number}", str(line_number), entries, parsed)
        parsed.defects.split = NO_SPLIT

    # Without any object, the file is probably another one: show the expected form.
    if not num_objects:
        problem = first_error or f"{path} holds no sentence"
        layout = EXPECTED_LAYOUT.format(path=path, problem=NO_SENTENCES)
        raise InputError(f"{problem}. {layout}")
    return entries


def _describe_json_error(error: ValueError | RecursionError) -> str:
    """Describe why a line is not JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8 text"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return simplify_message(str(error))


def collect_entry(
    content: Any,
    location: str,
    default_id: str,
    entries: dict[str, JsonlEntry],
    parsed_dataset: ParsedDataset,
) -> None:
    """Validate one entry and add it to the entries, or log a defect.

    Args:
        content: The entry, as parsed from JSON.
        location: Position of the entry in its file, for the log.
        default_id: Id of an entry that states none.
        entries: Receives the valid entry, by id.
        parsed_dataset: Data set; its log's split becomes the entry's.
    """
    entry = validate_raw(JsonlEntry, content, "line", location, parsed_dataset.defects)
    if entry is None:
        return

    parsed_dataset.defects.split = entry.split
    query_id = entry.id or default_id
    if query_id in entries:
        detail = f"id {query_id!r} is already used by an earlier entry"
        parsed_dataset.defects.add("repeated id", location, detail, excluded=True)
    elif not entry.text.strip():
        detail = f"{location}: {entry.text!r}"
        parsed_dataset.defects.add("empty sentence", query_id, detail, excluded=True)
    else:
        entries[query_id] = entry


def _build_query(
    query_id: str, path: str, entry: JsonlEntry, metadata: VideoMetadata, parsed: ParsedDataset
) -> Query | None:
    """Build the query of one entry, its spans clipped to the video; None and a defect if empty."""
    frame_count = metadata.frame_count
    segment = _clip_segment(query_id, entry, frame_count, parsed)
    if segment is None:
        return None

    truth = None
    if entry.tube is not None:
        span = _clip_tube_span(query_id, entry.tube, segment, parsed)
        if span is None:
            return None
        track = _add_boxes(query_id, entry.tube, span, metadata.size, parsed)
        truth = Truth(span=span, track=track)

    return Query(
        id=query_id,
        video=path,
        path=path,
        fps=metadata.fps,
        frame_count=frame_count,
        size=metadata.size,
        segment=segment,
        text=entry.text.strip(),
        split=entry.split,
        truth=truth,
        tags=entry.tags,
    )


def _clip_segment(
    query_id: str, entry: JsonlEntry, frame_count: int, parsed: ParsedDataset
) -> Span | None:
    """Clip the segment to the video; None and a defect if no frame remains."""
    stated = entry.segment or (0, frame_count)
    segment = (max(stated[0], 0), min(stated[1], frame_count))
    if segment[0] >= segment[1]:
        detail = f"segment [{stated[0]}, {stated[1]}) in a video of {frame_count} frames"
        parsed.defects.add("empty segment", query_id, detail, excluded=True)
        return None

    if segment != stated:
        detail = f"[{stated[0]}, {stated[1]}), the video has {frame_count} frames; clipped"
        parsed.defects.add("segment leaves the video", query_id, detail)
    return segment


def _clip_tube_span(
    query_id: str, tube: _JsonlTube, segment: Span, parsed: ParsedDataset
) -> Span | None:
    """Clip the tube's frames to the segment; None and a defect if no frame remains."""
    stated = (tube.begin, tube.begin + len(tube.boxes))
    span = (max(stated[0], segment[0]), min(stated[1], segment[1]))
    if span[0] >= span[1]:
        kind = "span outside its segment" if tube.boxes else "empty span"
        detail = f"tube [{stated[0]}, {stated[1]}), segment [{segment[0]}, {segment[1]})"
        parsed.defects.add(kind, query_id, detail, excluded=True)
        return None

    if span != stated:
        detail = f"tube [{stated[0]}, {stated[1]}), clipped to [{span[0]}, {span[1]})"
        parsed.defects.add("span leaves its segment", query_id, detail)
    return span


def _add_boxes(
    query_id: str, tube: _JsonlTube, span: Span, size: tuple[int, int], parsed: ParsedDataset
) -> str | None:
    """Store the tube's boxes; return the key of the track, None if the span has no box."""
    frame_list = []
    box_list = []
    for frame_index, box in enumerate(tube.boxes, start=tube.begin):
        if box is not None:
            frame_list.append(frame_index)
            box_list.append(box)

    frames = np.array(frame_list, np.int32)  # [n]
    boxes = np.array(box_list, np.float64).reshape(-1, 4)  # [n, 4]
    return add_tube(query_id, frames, boxes, span, size, parsed)

"""VidSTG: sentences about VidOR's videos; captions are declarative, questions interrogative.

`annotations/{split}_annotations.json` is a list of entries. `begin_fid` is inclusive; `temporal_gt.end_fid` is
exclusive; `used_segment.end_fid` is the last frame, so a segment is `[begin, min(end + 1, frame_count))`. Boxes come
from VidOR where it is at hand, else truths are spans alone. Each caption and each question is a query.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.datasets.parsed import Parsed, Progress, Text, name_repeats, quiet, read_json
from pipeline.datasets.vidor import VidorFolder, add_tracks
from pipeline.errors import InputError
from pipeline.records import Query, Span, Truth, first_problem

SPLITS = ("train", "val", "test")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
EXPECTED = """{root} holds no VidSTG annotations. Put there
  annotations/{{train,val,test}}_annotations.json    VidSTG's sentences (any of the three)
  annotation/{{training,validation}}/<group>/*.json   VidOR's boxes
  video/<group>/*.mp4                               VidOR's videos
or name another folder with --root."""


class _Raw(BaseModel):
    """Base of VidSTG's own objects: exact types, unknown fields passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Frames(_Raw):
    begin_fid: int
    end_fid: int


class _Object(_Raw):
    tid: int
    category: Text


class _Entry(_Raw):
    vid: str
    fps: float = Field(gt=0)
    frame_count: int = Field(gt=0)
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    used_segment: _Frames
    temporal_gt: _Frames
    objects: list[_Object] = Field(alias="subject/objects")
    captions: list[Any] = []
    questions: list[Any] = []


class _Sentence(_Raw):
    description: Text
    target_id: int
    tags: list[Text] = []


def parse(root: Path, progress: Progress = quiet) -> Parsed:
    """All queries of the splits found under `root`; `progress(done, total)` counts VidOR's files."""
    root = Path(root)
    files = {split: root / "annotations" / f"{split}_annotations.json" for split in SPLITS}
    files = {split: path for split, path in files.items() if path.is_file()}
    if not files:
        raise InputError(EXPECTED.format(root=root))
    parsed, folder = Parsed(root), VidorFolder(root)
    for split, path in files.items():
        entries = read_json(path)
        if not isinstance(entries, list):
            raise InputError(f"{path} must hold a list of entries, not {type(entries).__name__}; download it again")
        for number, raw in enumerate(entries):
            parsed.queries.extend(_queries(f"{split}-{number:05d}", raw, split, folder, parsed))
    _attach_boxes(parsed, folder, progress)
    name_repeats(parsed)
    return parsed


def _queries(name: str, raw: Any, split: str, folder: VidorFolder, parsed: Parsed) -> Iterator[Query]:
    """The queries of one entry; whatever is wrong with it becomes a defect."""
    entry = _entry(name, raw, parsed)
    if entry is None:
        return
    spans = _spans(name, entry, parsed)
    if spans is None:
        return
    segment, span = spans
    categories = {item.tid: item.category for item in entry.objects}
    common: dict[str, Any] = {
        "video": entry.vid,
        "path": folder.video_path(entry.vid),
        "fps": entry.fps,
        "frame_count": entry.frame_count,
        "size": (entry.width, entry.height),
        "segment": segment,
        "split": split,
    }
    forms: tuple[tuple[str, Literal["declarative", "interrogative"], list[Any]], ...] = (
        ("c", "declarative", entry.captions),
        ("q", "interrogative", entry.questions),
    )
    for letter, form, sentences in forms:
        for place, item in enumerate(sentences):
            sentence = _sentence(f"{name}-{letter}{place}", item, categories, parsed)
            if sentence is not None:
                truth = Truth(span=span, track=f"{entry.vid}/{sentence.target_id}")
                yield Query(
                    id=f"{name}-{letter}{place}",
                    text=sentence.description.strip(),
                    form=form,
                    object=categories[sentence.target_id],
                    truth=truth,
                    tags=tuple(sentence.tags),
                    **common,
                )


def _entry(name: str, raw: Any, parsed: Parsed) -> _Entry | None:
    """The validated entry, or a defect and None."""
    try:
        entry = _Entry.model_validate(raw)
    except ValidationError as error:
        parsed.defects.add("malformed entry", name, first_problem(error), excluded=True)
        return None
    if not PLAIN_NAME.fullmatch(entry.vid):
        parsed.defects.add("video id is not a plain name", name, repr(entry.vid), excluded=True)
        return None
    if not entry.captions and not entry.questions:
        parsed.defects.add("entry without sentences", name, f"video {entry.vid}", excluded=True)
        return None
    return entry


def _spans(name: str, entry: _Entry, parsed: Parsed) -> tuple[Span, Span] | None:
    """`(segment, truth)` as frames `[begin, end)`; a truth that leaves its segment is clipped, an empty one a defect."""
    used, truth = entry.used_segment, entry.temporal_gt
    begin, end = max(used.begin_fid, 0), min(used.end_fid + 1, entry.frame_count)
    if begin >= end:
        detail = f"segment {used.begin_fid}..{used.end_fid} in a video of {entry.frame_count} frames"
        parsed.defects.add("empty segment", name, detail, excluded=True)
        return None
    first, last = max(truth.begin_fid, begin), min(truth.end_fid, end)
    stated = f"span [{truth.begin_fid}, {truth.end_fid})"
    if truth.begin_fid >= truth.end_fid:
        parsed.defects.add("empty span", name, stated, excluded=True)
        return None
    if first >= last:
        parsed.defects.add("span outside its segment", name, f"{stated}, segment [{begin}, {end})", excluded=True)
        return None
    if (first, last) != (truth.begin_fid, truth.end_fid):
        parsed.defects.add("span leaves its segment", name, f"{stated}, clipped to [{first}, {last})")
    return (begin, end), (first, last)


def _sentence(name: str, item: Any, categories: dict[int, str], parsed: Parsed) -> _Sentence | None:
    """The validated caption or question, or a defect and None."""
    try:
        sentence = _Sentence.model_validate(item)
    except ValidationError as error:
        parsed.defects.add("malformed sentence", name, first_problem(error), excluded=True)
        return None
    if not sentence.description.strip():
        parsed.defects.add("empty sentence", name, repr(sentence.description), excluded=True)
        return None
    if sentence.target_id not in categories:
        detail = f"target {sentence.target_id}, objects {sorted(categories)}"
        parsed.defects.add("target is not among the objects", name, detail, excluded=True)
        return None
    return sentence


def _attach_boxes(parsed: Parsed, folder: VidorFolder, progress: Progress) -> None:
    """Read the wanted tracks from VidOR, video by video; queries without boxes in their span keep the span alone."""
    wanted: dict[str, set[int]] = {}
    for query in parsed.queries:
        if query.truth and query.truth.track:
            wanted.setdefault(query.video, set()).add(int(query.truth.track.rpartition("/")[2]))
    read: set[str] = set()
    sizes = {query.video: query.size for query in parsed.queries}
    for done, (video, targets) in enumerate(wanted.items(), start=1):
        if video in folder.boxes:
            if add_tracks(folder.boxes[video], video, sorted(targets), sizes[video], parsed.tracks, parsed.defects):
                read.add(video)
        elif folder.boxes:
            parsed.defects.add("no box file", video, f"no annotation/*/*/{video}.json; its queries keep their spans, without boxes")
        progress(done, len(wanted))
    if not folder.boxes:
        parsed.defects.add("no VidOR annotations", str(parsed.folder), "no annotation/*/*/*.json: spans without boxes", count=len(wanted))
    parsed.queries = [_with_boxes_at_hand(query, parsed, read) for query in parsed.queries]


def _with_boxes_at_hand(query: Query, parsed: Parsed, read: set[str]) -> Query:
    """The query, its truth without a track where the target has no box in the span; `read`: videos whose boxes are known."""
    if query.truth is None or query.truth.track is None:
        return query
    track, (begin, end) = query.truth.track, query.truth.span
    frames = parsed.tracks[track][0] if track in parsed.tracks else np.zeros(0)
    if ((frames >= begin) & (frames < end)).any():
        return query
    if query.video in read:
        parsed.defects.add("no box in the span", query.id, f"object {track} has no box in [{begin}, {end}); kept without boxes")
    return query.model_copy(update={"truth": Truth(span=query.truth.span)})

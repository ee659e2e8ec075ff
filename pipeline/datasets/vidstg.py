"""VidSTG: sentences about VidOR's videos; captions are declarative, questions interrogative.

`annotations/{split}_annotations.json` is a list of entries. `begin_fid` is inclusive; `temporal_gt.end_fid` is
exclusive; `used_segment.end_fid` is the last frame, so a segment is `[begin, min(end + 1, frame_count))`. Boxes come
from VidOR where it is at hand, else truths are spans alone. Each caption and each question is a query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.datasets.annotation_fields import PLAIN_NAME, AnyFrame, FrameCount, ObjectId, Rate, Raw, Side, Text, validated
from pipeline.datasets.file_search import problem_of
from pipeline.datasets.parsed import NO_SPLIT, Parsed, Probe, Progress, name_repeats, quiet, refuse_empty
from pipeline.datasets.video_checks import probe_videos
from pipeline.datasets.vidor import VidorFolder, add_tracks
from pipeline.errors import InputError
from pipeline.io.strict_json import read_json
from pipeline.records import Query, Span, Truth

SPLITS = ("train", "val", "test")
FORMS: tuple[Literal["declarative", "interrogative"], ...] = ("declarative", "interrogative")
EXPECTED = """{root} {problem}. Put there
  annotations/{{train,val,test}}_annotations.json    VidSTG's sentences (any of the three)
  annotation/{{training,validation}}/<group>/*.json   VidOR's boxes
  video/<group>/*.mp4                               VidOR's videos
or name another folder with --root."""


class _Frames(Raw):
    begin_fid: AnyFrame
    end_fid: AnyFrame


class _Object(Raw):
    tid: ObjectId
    category: Text


class _Entry(Raw):
    vid: str
    fps: Rate
    frame_count: FrameCount
    width: Side
    height: Side
    used_segment: _Frames
    temporal_gt: _Frames
    objects: list[_Object] = Field(alias="subject/objects", fail_fast=True)
    captions: list[Any] = Field(default_factory=list)
    questions: list[Any] = Field(default_factory=list)

    @property
    def queries(self) -> int:
        return len(self.captions) + len(self.questions)


class _Sentence(Raw):
    description: Text
    target_id: ObjectId
    tags: list[Text] = Field(default_factory=list, fail_fast=True)


@dataclass(frozen=True)
class _Asked:
    """An entry that holds: when its event happens, the sentences about it as `{query id: (sentence, category, form)}`, and the
    fields that their queries share."""

    span: Span
    sentences: dict[str, tuple[_Sentence, str, Literal["declarative", "interrogative"]]]
    shared: dict[str, Any]


def parse(root: Path, progress: Progress = quiet, probe: Probe = probe_videos) -> Parsed:
    """All queries of the splits found under `root`; `progress(done, total)` counts VidOR's files. No video is asked (`probe`)."""
    root = Path(root)
    files = {split: root / "annotations" / f"{split}_annotations.json" for split in SPLITS}
    files = {split: path for split, path in files.items() if path.is_file()}
    if not files:
        raise InputError(EXPECTED.format(root=root, problem=problem_of(root, "holds no VidSTG annotations")))
    parsed, folder = Parsed(root), VidorFolder(root)
    entries = [entry for split, path in files.items() for entry in _read(split, path, folder, parsed)]
    refuse_empty(entries, parsed, files.values())
    parsed.defects.split = NO_SPLIT
    read = _read_boxes(entries, folder, parsed, progress)
    parsed.queries = [query for entry in entries for query in _queries(entry, parsed, read)]
    name_repeats(parsed)
    return parsed


def _read(split: str, path: Path, folder: VidorFolder, parsed: Parsed) -> Iterator[_Asked]:
    """The entries of one file that hold; whatever is wrong with one becomes a defect."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"{path} must hold a list of entries, not {type(entries).__name__}; download it again")
    parsed.defects.split = split
    for number, raw in enumerate(entries):
        name = f"{split}-{number:05d}"
        entry = _entry(name, raw, parsed)
        spans = entry and _spans(name, entry, parsed)
        if entry and spans:
            shared = {
                "video": entry.vid,
                "path": folder.video_path(entry.vid, parsed.defects),
                "fps": entry.fps,
                "frame_count": entry.frame_count,
                "size": (entry.width, entry.height),
                "segment": spans[0],
                "split": split,
            }
            yield _Asked(spans[1], dict(_sentences(name, entry, parsed)), shared)


def _entry(name: str, raw: Any, parsed: Parsed) -> _Entry | None:
    """The validated entry, or a defect and None."""
    entry = validated(_Entry, raw, "entry", name, parsed.defects, _queries_in(raw))
    if entry is None:
        return None
    if not entry.queries:
        parsed.defects.add("entry without sentences", name, f"video {entry.vid}", excluded=True)
        return None
    if not PLAIN_NAME.fullmatch(entry.vid):
        parsed.defects.add("video id is not a plain name", name, repr(entry.vid), excluded=True, count=entry.queries)
        return None
    return entry


def _queries_in(raw: Any) -> int:
    """How many queries a malformed entry would have been; 1 where it cannot be told."""
    lists = [raw.get(key) for key in ("captions", "questions")] if isinstance(raw, dict) else []
    return sum(len(found) for found in lists if isinstance(found, list)) or 1


def _spans(name: str, entry: _Entry, parsed: Parsed) -> tuple[Span, Span] | None:
    """`(segment, truth)` as frames `[begin, end)`; a truth that leaves its segment is clipped, an empty one a defect."""
    used, truth = entry.used_segment, entry.temporal_gt
    begin, end = max(used.begin_fid, 0), min(used.end_fid + 1, entry.frame_count)
    if begin >= end:
        detail = f"segment {used.begin_fid}..{used.end_fid} in a video of {entry.frame_count} frames"
        parsed.defects.add("empty segment", name, detail, excluded=True, count=entry.queries)
        return None
    first, last = max(truth.begin_fid, begin), min(truth.end_fid, end)
    stated = f"span [{truth.begin_fid}, {truth.end_fid})"
    if truth.begin_fid >= truth.end_fid:
        parsed.defects.add("empty span", name, stated, excluded=True, count=entry.queries)
        return None
    if first >= last:
        detail = f"{stated}, segment [{begin}, {end})"
        parsed.defects.add("span outside its segment", name, detail, excluded=True, count=entry.queries)
        return None
    if (first, last) != (truth.begin_fid, truth.end_fid):
        parsed.defects.add("span leaves its segment", name, f"{stated}, clipped to [{first}, {last})")
    return (begin, end), (first, last)


def _sentences(name: str, entry: _Entry, parsed: Parsed) -> Iterator[tuple[str, tuple[_Sentence, str, Any]]]:
    """The sound captions and questions of an entry, as `(query id, (sentence, its object's category, form))`."""
    categories = {item.tid: item.category for item in entry.objects}
    for letter, form, items in zip("cq", FORMS, (entry.captions, entry.questions), strict=True):
        for place, item in enumerate(items):
            query_id = f"{name}-{letter}{place}"
            sentence = validated(_Sentence, item, "sentence", query_id, parsed.defects)
            if sentence is None:
                continue
            if not sentence.description.strip():
                parsed.defects.add("empty sentence", query_id, repr(sentence.description), excluded=True)
            elif sentence.target_id not in categories:
                detail = f"target {sentence.target_id}, objects {sorted(categories)}"
                parsed.defects.add("target is not among the objects", query_id, detail, excluded=True)
            else:
                yield query_id, (sentence, categories[sentence.target_id], form)


def _read_boxes(entries: list[_Asked], folder: VidorFolder, parsed: Parsed, progress: Progress) -> set[str]:
    """Read the wanted tracks from VidOR, video by video; the videos whose boxes are known."""
    wanted: dict[str, set[int]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for entry in entries:
        video, size = entry.shared["video"], entry.shared["size"]
        wanted.setdefault(video, set()).update(sentence.target_id for sentence, _, _ in entry.sentences.values())
        if sizes.setdefault(video, size) != size:
            parsed.defects.add(
                "picture sizes disagree", video, f"{size} in one entry, {sizes[video]} in another; boxes are clipped to that"
            )
    read: set[str] = set()
    for done, (video, targets) in enumerate(wanted.items(), start=1):
        if video in folder.boxes:
            if add_tracks(folder.boxes[video], video, sorted(targets), sizes[video], parsed.tracks, parsed.defects):
                read.add(video)
        elif folder.boxes:
            parsed.defects.add("no box file", video, f"no annotation/*/*/{video}.json; its queries keep their spans, without boxes")
        progress(done, len(wanted))
    if not folder.boxes:
        parsed.defects.add("no VidOR annotations", str(parsed.folder), "no annotation/*/*/*.json: spans without boxes", count=len(wanted))
    return read


def _queries(entry: _Asked, parsed: Parsed, read: set[str]) -> Iterator[Query]:
    """The queries of one entry; the truth is a span alone where the target has no box in it. `read`: videos whose boxes are known."""
    video, (begin, end) = entry.shared["video"], entry.span
    truths: dict[int, Truth] = {}
    for query_id, (sentence, category, form) in entry.sentences.items():
        target = sentence.target_id
        if target not in truths:
            truths[target] = _truth(f"{video}/{target}", entry.span, parsed)
        truth = truths[target]
        if truth.track is None and video in read:
            detail = f"object {video}/{target} has no box in [{begin}, {end}); kept without boxes"
            parsed.defects.add("no box in the span", query_id, detail)
        text = sentence.description.strip()
        yield Query(id=query_id, text=text, form=form, object=category, truth=truth, tags=tuple(sentence.tags), **entry.shared)


def _truth(track: str, span: Span, parsed: Parsed) -> Truth:
    """The span, with the track where that has a box in it."""
    if track not in parsed.tracks:
        return Truth(span=span)
    frames = parsed.tracks[track][0]
    return Truth(span=span, track=track if ((frames >= span[0]) & (frames < span[1])).any() else None)

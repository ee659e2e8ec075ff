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

from pipeline.datasets.annotation_fields import (
    SAFE_NAME_PATTERN,
    FrameCount,
    FrameRate,
    ObjectId,
    RawEntry,
    SideLength,
    SignedFrameIndex,
    Text,
    validate_raw,
)
from pipeline.datasets.file_search import describe_root_problem
from pipeline.datasets.parsed import (
    NO_SPLIT,
    ParsedDataset,
    ProbeFunction,
    ProgressCallback,
    check_not_empty,
    ignore_progress,
    log_duplicates,
)
from pipeline.datasets.video_checks import probe_videos
from pipeline.datasets.vidor import VidorFolder, add_tracks
from pipeline.errors import InputError
from pipeline.io.strict_json import read_json
from pipeline.records import Query, Span, Truth

SPLITS = ("train", "val", "test")
FORMS: tuple[Literal["declarative", "interrogative"], ...] = ("declarative", "interrogative")
EXPECTED_LAYOUT = """{root} {problem}. Put there
  annotations/{{train,val,test}}_annotations.json    VidSTG's sentences (any of the three)
  annotation/{{training,validation}}/<group>/*.json   VidOR's boxes
  video/<group>/*.mp4                               VidOR's videos
or name another folder with --root."""


class _FrameRange(RawEntry):
    begin_fid: SignedFrameIndex
    end_fid: SignedFrameIndex


class _VidstgObject(RawEntry):
    tid: ObjectId
    category: Text


class _VidstgEntry(RawEntry):
    vid: str
    fps: FrameRate
    frame_count: FrameCount
    width: SideLength
    height: SideLength
    used_segment: _FrameRange
    temporal_gt: _FrameRange
    objects: list[_VidstgObject] = Field(alias="subject/objects", fail_fast=True)
    captions: list[Any] = Field(default_factory=list)
    questions: list[Any] = Field(default_factory=list)

    @property
    def num_queries(self) -> int:
        return len(self.captions) + len(self.questions)


class _VidstgSentence(RawEntry):
    description: Text
    target_id: ObjectId
    tags: list[Text] = Field(default_factory=list, fail_fast=True)


@dataclass(frozen=True)
class _EntryQueries:
    """An entry that holds: when its event happens, the sentences about it as `{query id: (sentence, category, form)}`, and the
    fields that their queries share.
    """

    span: Span
    sentences: dict[str, tuple[_VidstgSentence, str, Literal["declarative", "interrogative"]]]
    common_fields: dict[str, Any]


def parse(
    root: Path, progress: ProgressCallback = ignore_progress, probe: ProbeFunction = probe_videos
) -> ParsedDataset:
    """All queries of the splits found under `root`; `progress(done, total)` counts VidOR's files. No video is asked (`probe`)."""
    root = Path(root)
    files = {split: root / "annotations" / f"{split}_annotations.json" for split in SPLITS}
    files = {split: path for split, path in files.items() if path.is_file()}
    if not files:
        raise InputError(
            EXPECTED_LAYOUT.format(
                root=root, problem=describe_root_problem(root, "holds no VidSTG annotations")
            )
        )
    parsed, folder = ParsedDataset(root), VidorFolder(root)
    entries = [
        entry
        for split, path in files.items()
        for entry in _read_entries(split, path, folder, parsed)
    ]
    check_not_empty(entries, parsed, files.values())
    parsed.defects.split = NO_SPLIT
    read = _read_boxes(entries, folder, parsed, progress)
    parsed.queries = [query for entry in entries for query in _build_queries(entry, parsed, read)]
    log_duplicates(parsed)
    return parsed


def _read_entries(
    split: str, path: Path, folder: VidorFolder, parsed: ParsedDataset
) -> Iterator[_EntryQueries]:
    """The entries of one file that hold; whatever is wrong with one becomes a defect."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise InputError(
            f"{path} must hold a list of entries, not {type(entries).__name__}; download it again"
        )
    parsed.defects.split = split
    for number, raw in enumerate(entries):
        name = f"{split}-{number:05d}"
        entry = _validate_entry(name, raw, parsed)
        spans = entry and _clip_spans(name, entry, parsed)
        if entry and spans:
            shared = {
                "video": entry.vid,
                "path": folder.resolve_video_path(entry.vid, parsed.defects),
                "fps": entry.fps,
                "frame_count": entry.frame_count,
                "size": (entry.width, entry.height),
                "segment": spans[0],
                "split": split,
            }
            yield _EntryQueries(spans[1], dict(_validate_sentences(name, entry, parsed)), shared)


def _validate_entry(name: str, raw: Any, parsed: ParsedDataset) -> _VidstgEntry | None:
    """The validated entry, or a defect and None."""
    entry = validate_raw(_VidstgEntry, raw, "entry", name, parsed.defects, _count_raw_queries(raw))
    if entry is None:
        return None
    if not entry.num_queries:
        parsed.defects.add("entry without sentences", name, f"video {entry.vid}", excluded=True)
        return None
    if not SAFE_NAME_PATTERN.fullmatch(entry.vid):
        parsed.defects.add(
            "video id is not a plain name",
            name,
            repr(entry.vid),
            excluded=True,
            count=entry.num_queries,
        )
        return None
    return entry


def _count_raw_queries(raw: Any) -> int:
    """How many queries a malformed entry would have been; 1 where it cannot be told."""
    lists = [raw.get(key) for key in ("captions", "questions")] if isinstance(raw, dict) else []
    return sum(len(found) for found in lists if isinstance(found, list)) or 1


def _clip_spans(name: str, entry: _VidstgEntry, parsed: ParsedDataset) -> tuple[Span, Span] | None:
    """`(segment, truth)` as frames `[begin, end)`; a truth that leaves its segment is clipped, an empty one a defect."""
    used, truth = entry.used_segment, entry.temporal_gt
    begin, end = max(used.begin_fid, 0), min(used.end_fid + 1, entry.frame_count)
    if begin >= end:
        detail = (
            f"segment {used.begin_fid}..{used.end_fid} in a video of {entry.frame_count} frames"
        )
        parsed.defects.add("empty segment", name, detail, excluded=True, count=entry.num_queries)
        return None
    first, last = max(truth.begin_fid, begin), min(truth.end_fid, end)
    stated = f"span [{truth.begin_fid}, {truth.end_fid})"
    if truth.begin_fid >= truth.end_fid:
        parsed.defects.add("empty span", name, stated, excluded=True, count=entry.num_queries)
        return None
    if first >= last:
        detail = f"{stated}, segment [{begin}, {end})"
        parsed.defects.add(
            "span outside its segment", name, detail, excluded=True, count=entry.num_queries
        )
        return None
    if (first, last) != (truth.begin_fid, truth.end_fid):
        parsed.defects.add(
            "span leaves its segment", name, f"{stated}, clipped to [{first}, {last})"
        )
    return (begin, end), (first, last)


def _validate_sentences(
    name: str, entry: _VidstgEntry, parsed: ParsedDataset
) -> Iterator[tuple[str, tuple[_VidstgSentence, str, Any]]]:
    """The sound captions and questions of an entry, as `(query id, (sentence, its object's category, form))`."""
    categories = {item.tid: item.category for item in entry.objects}
    for letter, form, items in zip("cq", FORMS, (entry.captions, entry.questions), strict=True):
        for place, item in enumerate(items):
            query_id = f"{name}-{letter}{place}"
            sentence = validate_raw(_VidstgSentence, item, "sentence", query_id, parsed.defects)
            if sentence is None:
                continue
            if not sentence.description.strip():
                parsed.defects.add(
                    "empty sentence", query_id, repr(sentence.description), excluded=True
                )
            elif sentence.target_id not in categories:
                detail = f"target {sentence.target_id}, objects {sorted(categories)}"
                parsed.defects.add(
                    "target is not among the objects", query_id, detail, excluded=True
                )
            else:
                yield query_id, (sentence, categories[sentence.target_id], form)


def _read_boxes(
    entries: list[_EntryQueries],
    folder: VidorFolder,
    parsed: ParsedDataset,
    progress: ProgressCallback,
) -> set[str]:
    """Read the wanted tracks from VidOR, video by video; the videos whose boxes are known."""
    wanted: dict[str, set[int]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for entry in entries:
        video, size = entry.common_fields["video"], entry.common_fields["size"]
        wanted.setdefault(video, set()).update(
            sentence.target_id for sentence, _, _ in entry.sentences.values()
        )
        if sizes.setdefault(video, size) != size:
            parsed.defects.add(
                "picture sizes disagree",
                video,
                f"{size} in one entry, {sizes[video]} in another; boxes are clipped to that",
            )
    read: set[str] = set()
    for done, (video, targets) in enumerate(wanted.items(), start=1):
        if video in folder.box_files:
            if add_tracks(
                folder.box_files[video],
                video,
                sorted(targets),
                sizes[video],
                parsed.tracks,
                parsed.defects,
            ):
                read.add(video)
        elif folder.box_files:
            parsed.defects.add(
                "no box file",
                video,
                f"no annotation/*/*/{video}.json; its queries keep their spans, without boxes",
            )
        progress(done, len(wanted))
    if not folder.box_files:
        parsed.defects.add(
            "no VidOR annotations",
            str(parsed.folder),
            "no annotation/*/*/*.json: spans without boxes",
            count=len(wanted),
        )
    return read


def _build_queries(entry: _EntryQueries, parsed: ParsedDataset, read: set[str]) -> Iterator[Query]:
    """The queries of one entry; the truth is a span alone where the target has no box in it. `read`: videos whose boxes are known."""
    video, (begin, end) = entry.common_fields["video"], entry.span
    truths: dict[int, Truth] = {}
    for query_id, (sentence, category, form) in entry.sentences.items():
        target = sentence.target_id
        if target not in truths:
            truths[target] = _build_truth(f"{video}/{target}", entry.span, parsed)
        truth = truths[target]
        if truth.track is None and video in read:
            detail = f"object {video}/{target} has no box in [{begin}, {end}); kept without boxes"
            parsed.defects.add("no box in the span", query_id, detail)
        text = sentence.description.strip()
        yield Query(
            id=query_id,
            text=text,
            form=form,
            object=category,
            truth=truth,
            tags=tuple(sentence.tags),
            **entry.common_fields,
        )


def _build_truth(track: str, span: Span, parsed: ParsedDataset) -> Truth:
    """The span, with the track where that has a box in it."""
    if track not in parsed.tracks:
        return Truth(span=span)
    frames = parsed.tracks[track][0]
    return Truth(
        span=span, track=track if ((frames >= span[0]) & (frames < span[1])).any() else None
    )

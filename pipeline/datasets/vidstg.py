"""VidSTG: sentences about VidOR's videos. Captions are declarative, questions interrogative.

`annotations/{split}_annotations.json` is a list of entries. Every caption and every question of an
entry is a query.

- `begin_fid` is inclusive.
- `temporal_gt.end_fid` is exclusive.
- `used_segment.end_fid` is the last frame, so a segment is `[begin, min(end + 1, frame_count))`.

Boxes come from VidOR's files. Without these files the ground truth is a span without boxes.
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
Form = Literal["declarative", "interrogative"]
EXPECTED_LAYOUT = """{root} {problem}. Put there
  annotations/{{train,val,test}}_annotations.json    VidSTG's sentences (any of the three)
  annotation/{{training,validation}}/<group>/*.json   VidOR's boxes
  video/<group>/*.mp4                               VidOR's videos
or give another folder with --root."""


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
    """The valid sentences of one entry.

    Attributes:
        span: Frames `[begin, end)` of the ground truth.
        sentences: `(sentence, object category, form)` by query id.
        common_fields: Fields of `Query` that all queries of the entry share.
    """

    span: Span
    sentences: dict[str, tuple[_VidstgSentence, str, Form]]
    common_fields: dict[str, Any]


def parse(
    root: Path, progress: ProgressCallback = ignore_progress, probe: ProbeFunction = probe_videos
) -> ParsedDataset:
    """Parse all splits that have an annotation file.

    Args:
        root: Folder of the data set.
        progress: Called as `progress(done, total)` after each of VidOR's box files.
        probe: Not called, because the annotations state the videos' metadata.

    Returns:
        The queries, their tracks and the defects.

    Raises:
        InputError: There are no annotations, or a file is not in VidSTG's format.
    """
    root = Path(root)
    files = _find_annotation_files(root)
    parsed = ParsedDataset(root)
    folder = VidorFolder(root)

    # Validate the entries of all splits.
    entries: list[_EntryQueries] = []
    for split, path in files.items():
        entries.extend(_read_entries(split, path, folder, parsed))
    check_not_empty(entries, parsed, files.values())

    # Read the boxes, then build the queries.
    parsed.defects.split = NO_SPLIT
    videos_with_boxes = _read_boxes(entries, folder, parsed, progress)
    for entry in entries:
        parsed.queries.extend(_build_queries(entry, parsed, videos_with_boxes))

    log_duplicates(parsed)
    return parsed


def _find_annotation_files(root: Path) -> dict[str, Path]:
    """Return the annotation file of each split that has one; InputError if there is none."""
    files = {}
    for split in SPLITS:
        path = root / "annotations" / f"{split}_annotations.json"
        if path.is_file():
            files[split] = path

    if not files:
        problem = describe_root_problem(root, "holds no VidSTG annotations")
        raise InputError(EXPECTED_LAYOUT.format(root=root, problem=problem))
    return files


def _read_entries(
    split: str, path: Path, folder: VidorFolder, parsed: ParsedDataset
) -> Iterator[_EntryQueries]:
    """Yield the valid entries of one file; log the others."""
    raw_entries = read_json(path)
    if not isinstance(raw_entries, list):
        raise InputError(
            f"{path} must hold a list of entries, "
            f"not {type(raw_entries).__name__}; download it again"
        )

    parsed.defects.split = split
    for index, raw_entry in enumerate(raw_entries):
        name = f"{split}-{index:05d}"
        entry = _validate_entry(name, raw_entry, parsed)
        if entry is None:
            continue
        spans = _clip_spans(name, entry, parsed)
        if spans is None:
            continue

        segment, truth_span = spans
        common_fields = {
            "video": entry.vid,
            "path": folder.resolve_video_path(entry.vid, parsed.defects),
            "fps": entry.fps,
            "frame_count": entry.frame_count,
            "size": (entry.width, entry.height),
            "segment": segment,
            "split": split,
        }
        sentences = dict(_validate_sentences(name, entry, parsed))
        yield _EntryQueries(truth_span, sentences, common_fields)


def _validate_entry(name: str, raw_entry: Any, parsed: ParsedDataset) -> _VidstgEntry | None:
    """Validate an entry; None and a defect if it is invalid."""
    num_queries = _count_raw_queries(raw_entry)
    entry = validate_raw(_VidstgEntry, raw_entry, "entry", name, parsed.defects, num_queries)
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


def _count_raw_queries(raw_entry: Any) -> int:
    """Count the sentences of an entry that may be malformed; 1 if there is no list of them."""
    if not isinstance(raw_entry, dict):
        return 1

    count = 0
    for key in ("captions", "questions"):
        sentences = raw_entry.get(key)
        if isinstance(sentences, list):
            count += len(sentences)
    return count or 1


def _clip_spans(name: str, entry: _VidstgEntry, parsed: ParsedDataset) -> tuple[Span, Span] | None:
    """Return the segment and the truth, both `[begin, end)`; None and a defect if empty.

    A truth that leaves its segment is clipped and logged.
    """
    # `used_segment.end_fid` is the last frame, `temporal_gt.end_fid` the frame after the last.
    used_segment = entry.used_segment
    truth = entry.temporal_gt
    begin = max(used_segment.begin_fid, 0)
    end = min(used_segment.end_fid + 1, entry.frame_count)
    truth_begin = max(truth.begin_fid, begin)
    truth_end = min(truth.end_fid, end)
    stated = f"span [{truth.begin_fid}, {truth.end_fid})"

    # Find the first reason to exclude the entry.
    kind = ""
    detail = ""
    if begin >= end:
        kind = "empty segment"
        detail = (
            f"segment {used_segment.begin_fid}..{used_segment.end_fid} "
            f"in a video of {entry.frame_count} frames"
        )
    elif truth.begin_fid >= truth.end_fid:
        kind = "empty span"
        detail = stated
    elif truth_begin >= truth_end:
        kind = "span outside its segment"
        detail = f"{stated}, segment [{begin}, {end})"

    if kind:
        parsed.defects.add(kind, name, detail, excluded=True, count=entry.num_queries)
        return None

    if (truth_begin, truth_end) != (truth.begin_fid, truth.end_fid):
        detail = f"{stated}, clipped to [{truth_begin}, {truth_end})"
        parsed.defects.add("span leaves its segment", name, detail)
    return (begin, end), (truth_begin, truth_end)


def _validate_sentences(
    name: str, entry: _VidstgEntry, parsed: ParsedDataset
) -> Iterator[tuple[str, tuple[_VidstgSentence, str, Form]]]:
    """Yield the valid sentences of an entry as `(query id, (sentence, object category, form))`."""
    categories = {item.tid: item.category for item in entry.objects}
    raw_sentences: list[tuple[str, Form, Any]] = []
    for index, raw_caption in enumerate(entry.captions):
        raw_sentences.append((f"{name}-c{index}", "declarative", raw_caption))
    for index, raw_question in enumerate(entry.questions):
        raw_sentences.append((f"{name}-q{index}", "interrogative", raw_question))

    for query_id, form, raw_sentence in raw_sentences:
        sentence = validate_raw(_VidstgSentence, raw_sentence, "sentence", query_id, parsed.defects)
        if sentence is None:
            continue

        if not sentence.description.strip():
            detail = repr(sentence.description)
            parsed.defects.add("empty sentence", query_id, detail, excluded=True)
        elif sentence.target_id not in categories:
            detail = f"target {sentence.target_id}, objects {sorted(categories)}"
            parsed.defects.add("target is not among the objects", query_id, detail, excluded=True)
        else:
            yield query_id, (sentence, categories[sentence.target_id], form)


def _read_boxes(
    entries: list[_EntryQueries],
    folder: VidorFolder,
    parsed: ParsedDataset,
    progress: ProgressCallback,
) -> set[str]:
    """Read the queries' tracks, video by video; return the videos whose box file is readable."""
    targets_by_video, sizes = _collect_targets(entries, parsed)

    videos_with_boxes: set[str] = set()
    for done, (video, target_ids) in enumerate(targets_by_video.items(), start=1):
        box_file = folder.box_files.get(video)
        if box_file is not None:
            is_readable = add_tracks(
                box_file, video, sorted(target_ids), sizes[video], parsed.tracks, parsed.defects
            )
            if is_readable:
                videos_with_boxes.add(video)
        elif folder.box_files:
            detail = f"no annotation/*/*/{video}.json; its queries keep their spans, without boxes"
            parsed.defects.add("no box file", video, detail)
        progress(done, len(targets_by_video))

    # Without VidOR, log one defect for all videos.
    if not folder.box_files:
        parsed.defects.add(
            "no VidOR annotations",
            str(parsed.folder),
            "no annotation/*/*/*.json: spans without boxes",
            count=len(targets_by_video),
        )
    return videos_with_boxes


def _collect_targets(
    entries: list[_EntryQueries], parsed: ParsedDataset
) -> tuple[dict[str, set[int]], dict[str, tuple[int, int]]]:
    """Return the object ids and the picture size of each video; log sizes that disagree."""
    targets_by_video: dict[str, set[int]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for entry in entries:
        video = entry.common_fields["video"]
        size = entry.common_fields["size"]
        target_ids = targets_by_video.setdefault(video, set())
        for sentence, _, _ in entry.sentences.values():
            target_ids.add(sentence.target_id)

        # The boxes of a video are clipped to the size in its first entry.
        first_size = sizes.setdefault(video, size)
        if first_size != size:
            detail = f"{size} in one entry, {first_size} in an earlier one; boxes are clipped to it"
            parsed.defects.add("picture sizes disagree", video, detail)
    return targets_by_video, sizes


def _build_queries(
    entry: _EntryQueries, parsed: ParsedDataset, videos_with_boxes: set[str]
) -> Iterator[Query]:
    """Yield the queries of one entry; a truth has no track if the span has no box of the target."""
    video = entry.common_fields["video"]
    begin, end = entry.span

    # Sentences about one object share their ground truth.
    truths: dict[int, Truth] = {}
    for query_id, (sentence, category, form) in entry.sentences.items():
        target_id = sentence.target_id
        if target_id not in truths:
            truths[target_id] = _build_truth(f"{video}/{target_id}", entry.span, parsed)
        truth = truths[target_id]

        # Without a readable box file, the missing boxes are logged already.
        if truth.track is None and video in videos_with_boxes:
            detail = (
                f"object {video}/{target_id} has no box in [{begin}, {end}); kept without boxes"
            )
            parsed.defects.add("no box in the span", query_id, detail)

        yield Query(
            id=query_id,
            text=sentence.description.strip(),
            form=form,
            object=category,
            truth=truth,
            tags=tuple(sentence.tags),
            **entry.common_fields,
        )


def _build_truth(track: str, span: Span, parsed: ParsedDataset) -> Truth:
    """Build the ground truth; it names the track if the track has a box in the span."""
    if track not in parsed.tracks:
        return Truth(span=span)
    frames = parsed.tracks[track][0]  # [n]
    is_in_span = (frames >= span[0]) & (frames < span[1])  # [n]
    return Truth(span=span, track=track if is_in_span.any() else None)

"""Truth that people drew or corrected in CVAT: its exports "CVAT for video 1.1", .xml or .zip, anywhere beneath the folder of the videos.

Tracks labelled `truth` are the tubes, one sentence each; what is still labelled `prediction` is named and left out. A track that
`stvg-eval --cvat` wrote says which query of which video it is; one that was drawn anew is about the video that its task was made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.datasets.file_search import VideoFiles, describe_root_problem, list_files
from pipeline.datasets.jsonl import JsonlEntry, add_queries, collect_entry
from pipeline.datasets.parsed import (
    NO_SPLIT,
    ParsedDataset,
    ProbeFunction,
    ProgressCallback,
    ignore_progress,
)
from pipeline.datasets.video_checks import probe_videos
from pipeline.errors import InputError
from pipeline.io.cvat_xml import PREDICTION, TRUTH, CvatTrack, CvatVideo, read_cvat
from pipeline.io.strict_json import parse_json

EXPECTED_LAYOUT = """{root} {problem}. Put into one folder
  the videos, and
  what CVAT exports as 'CVAT for video 1.1' (.xml or .zip, in any folder beneath it), tubes labelled 'truth'
and name the folder with --root."""


def parse(
    root: Path, progress: ProgressCallback = ignore_progress, probe: ProbeFunction = probe_videos
) -> ParsedDataset:
    """All tracks labelled `truth` beneath the folder `root`, as queries; `progress(done, total)` counts videos."""
    root = Path(root)
    files = list_files(root, (".xml", ".zip"))
    if not files:
        raise InputError(
            EXPECTED_LAYOUT.format(
                root=root, problem=describe_root_problem(root, "holds no export of CVAT")
            )
        )
    parsed, found = ParsedDataset(root), dict[str, JsonlEntry]()
    places = VideoFiles(root)
    for file in files:
        try:
            videos = list(read_cvat(root / file))
        except InputError as error:
            parsed.defects.add("not CVAT's tracks", str(file), str(error), excluded=True)
            continue
        for video in videos:
            _collect_tracks(str(file), video, places, found, parsed)
    if not found and not parsed.defects.num_excluded:
        raise InputError(
            EXPECTED_LAYOUT.format(
                root=root, problem="holds exports of CVAT, but no track labelled 'truth'"
            )
        )
    return add_queries(found, parsed, progress, probe)


def _collect_tracks(
    file: str,
    video: CvatVideo,
    places: VideoFiles,
    found: dict[str, JsonlEntry],
    parsed: ParsedDataset,
) -> None:
    """The lines of one task's tracks."""
    parsed.defects.split = NO_SPLIT
    for number, why in video.track_errors.items():
        parsed.defects.add("unreadable track", f"{file}, track {number}", why, excluded=True)
    stated = {
        number: _parse_query_attribute(track, f"{file}, track {number}", parsed)
        for number, track in video.tracks.items()
    }
    checked = {
        known.get("id")
        for number, known in stated.items()
        if known and video.tracks[number].label == TRUTH
    }
    for number, track in video.tracks.items():
        place, known = f"{file}, track {number}", stated[number]
        if known is None:
            continue
        if track.label == PREDICTION and known.get("id") not in checked - {None}:
            parsed.defects.add(
                "still a prediction",
                place,
                "label it 'truth' in CVAT once it is right",
                excluded=True,
            )
        elif track.label == TRUTH:
            if "video" not in known:
                known["video"] = places.resolve_path(video.source, video.source, parsed.defects)
            collect_entry(
                {**known, "text": track.attributes.get("sentence", ""), "tube": _build_tube(track)},
                place,
                place,
                found,
                parsed,
            )
            parsed.defects.split = NO_SPLIT


def _parse_query_attribute(
    track: CvatTrack, place: str, parsed: ParsedDataset
) -> dict[str, Any] | None:
    """What the track says about its query: nothing where it was drawn anew; None, and a defect, where nobody can read it."""
    stated = track.attributes.get("query", "").strip()
    try:
        known = parse_json(stated.encode()) if stated else {}
    except (ValueError, RecursionError):
        known = None
    if isinstance(known, dict):
        return known
    parsed.defects.add(
        "unreadable query",
        place,
        f"the attribute 'query' is no JSON object: {stated}",
        excluded=True,
    )
    return None


def _build_tube(track: CvatTrack) -> dict[str, Any]:
    """The tube as a line states it: null where the object is not seen."""
    known = dict(zip(track.frames.tolist(), track.boxes.tolist(), strict=True))
    begin, end = int(track.frames[0]), int(track.frames[-1]) + 1
    return {"begin": begin, "boxes": [known.get(frame) for frame in range(begin, end)]}

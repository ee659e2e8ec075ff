"""Truth that people drew or corrected in CVAT: its exports "CVAT for video 1.1", .xml or .zip, anywhere beneath the folder of the videos.

Tracks labelled `truth` are the tubes, one sentence each; what is still labelled `prediction` is named and left out. A track that
`stvg-eval --cvat` wrote says which query of which video it is; one that was drawn anew is about the video that its task was made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.datasets.file_search import VideoFiles, files_under, problem_of
from pipeline.datasets.jsonl import Line, keep, of_lines
from pipeline.datasets.parsed import NO_SPLIT, Parsed, Probe, Progress, quiet
from pipeline.datasets.video_checks import probe_videos
from pipeline.errors import InputError
from pipeline.io.cvat_xml import PREDICTION, TRUTH, CvatTrack, CvatVideo, read_cvat
from pipeline.io.strict_json import parse_json

EXPECTED = """{root} {problem}. Put into one folder
  the videos, and
  what CVAT exports as 'CVAT for video 1.1' (.xml or .zip, in any folder beneath it), tubes labelled 'truth'
and name the folder with --root."""


def parse(root: Path, progress: Progress = quiet, probe: Probe = probe_videos) -> Parsed:
    """All tracks labelled `truth` beneath the folder `root`, as queries; `progress(done, total)` counts videos."""
    root = Path(root)
    files = files_under(root, (".xml", ".zip"))
    if not files:
        raise InputError(EXPECTED.format(root=root, problem=problem_of(root, "holds no export of CVAT")))
    parsed, found = Parsed(root), dict[str, Line]()
    places = VideoFiles(root)
    for file in files:
        try:
            videos = list(read_cvat(root / file))
        except InputError as error:
            parsed.defects.add("not CVAT's tracks", str(file), str(error), excluded=True)
            continue
        for video in videos:
            _keep_tracks(str(file), video, places, found, parsed)
    if not found and not parsed.defects.excluded:
        raise InputError(EXPECTED.format(root=root, problem="holds exports of CVAT, but no track labelled 'truth'"))
    return of_lines(found, parsed, progress, probe)


def _keep_tracks(file: str, video: CvatVideo, places: VideoFiles, found: dict[str, Line], parsed: Parsed) -> None:
    """The lines of one task's tracks."""
    parsed.defects.split = NO_SPLIT
    for number, why in video.unreadable.items():
        parsed.defects.add("unreadable track", f"{file}, track {number}", why, excluded=True)
    stated = {number: _query_of(track, f"{file}, track {number}", parsed) for number, track in video.tracks.items()}
    checked = {known.get("id") for number, known in stated.items() if known and video.tracks[number].label == TRUTH}
    for number, track in video.tracks.items():
        place, known = f"{file}, track {number}", stated[number]
        if known is None:
            continue
        if track.label == PREDICTION and known.get("id") not in checked - {None}:
            parsed.defects.add("still a prediction", place, "label it 'truth' in CVAT once it is right", excluded=True)
        elif track.label == TRUTH:
            if "video" not in known:
                known["video"] = places.path_of(video.source, video.source, parsed.defects)
            keep({**known, "text": track.attributes.get("sentence", ""), "tube": _tube(track)}, place, place, found, parsed)
            parsed.defects.split = NO_SPLIT


def _query_of(track: CvatTrack, place: str, parsed: Parsed) -> dict[str, Any] | None:
    """What the track says about its query: nothing where it was drawn anew; None, and a defect, where nobody can read it."""
    stated = track.attributes.get("query", "").strip()
    try:
        known = parse_json(stated.encode()) if stated else {}
    except (ValueError, RecursionError):
        known = None
    if isinstance(known, dict):
        return known
    parsed.defects.add("unreadable query", place, f"the attribute 'query' is no JSON object: {stated}", excluded=True)
    return None


def _tube(track: CvatTrack) -> dict[str, Any]:
    """The tube as a line states it: null where the object is not seen."""
    known = dict(zip(track.frames.tolist(), track.boxes.tolist(), strict=True))
    begin, end = int(track.frames[0]), int(track.frames[-1]) + 1
    return {"begin": begin, "boxes": [known.get(frame) for frame in range(begin, end)]}

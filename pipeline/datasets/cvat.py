"""Ground truth drawn or corrected in CVAT.

The files are exports in the format "CVAT for video 1.1", .xml or .zip, in any folder below the
folder of the videos. Each track labelled `truth` is the tube of one sentence. A track still
labelled `prediction` is logged and excluded. A track written by `stvg-eval --cvat` states its query
and its video. A newly drawn track belongs to the video of its task.
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
  what CVAT exports as 'CVAT for video 1.1' (.xml or .zip, in any folder below it),
      tubes labelled 'truth'
and give the folder with --root."""


def parse(
    root: Path, progress: ProgressCallback = ignore_progress, probe: ProbeFunction = probe_videos
) -> ParsedDataset:
    """Parse all tracks labelled `truth` below a folder.

    Args:
        root: The folder.
        progress: Called as `progress(done, total)` after each probed video.
        probe: Function that probes the videos.

    Returns:
        The queries, their tracks and the defects.

    Raises:
        InputError: There is no export, or no export holds a track labelled `truth`.
    """
    root = Path(root)
    files = list_files(root, (".xml", ".zip"))
    if not files:
        problem = describe_root_problem(root, "holds no export of CVAT")
        raise InputError(EXPECTED_LAYOUT.format(root=root, problem=problem))

    parsed = ParsedDataset(root)
    entries: dict[str, JsonlEntry] = {}
    video_files = VideoFiles(root)
    for file in files:
        try:
            videos = list(read_cvat(root / file))
        except InputError as error:
            parsed.defects.add("not CVAT's tracks", str(file), str(error), excluded=True)
            continue
        for video in videos:
            _collect_tracks(str(file), video, video_files, entries, parsed)

    if not entries and not parsed.defects.num_excluded:
        problem = "holds exports of CVAT, but no track labelled 'truth'"
        raise InputError(EXPECTED_LAYOUT.format(root=root, problem=problem))
    return add_queries(entries, parsed, progress, probe)


def _collect_tracks(
    file: str,
    video: CvatVideo,
    video_files: VideoFiles,
    entries: dict[str, JsonlEntry],
    parsed: ParsedDataset,
) -> None:
    """Add the entries of one task's tracks; log the other tracks."""
    parsed.defects.split = NO_SPLIT
    for track_id, error in video.track_errors.items():
        parsed.defects.add("unreadable track", f"{file}, track {track_id}", error, excluded=True)

    # A prediction is finished if a track labelled 'truth' has the same query id.
    query_fields: dict[str, dict[str, Any] | None] = {}
    finished_ids = set()
    for track_id, track in video.tracks.items():
        fields = _parse_query_attribute(track, f"{file}, track {track_id}", parsed)
        query_fields[track_id] = fields
        if fields and track.label == TRUTH:
            finished_ids.add(fields.get("id"))
    finished_ids.discard(None)

    for track_id, track in video.tracks.items():
        location = f"{file}, track {track_id}"
        fields = query_fields[track_id]
        if fields is None:
            continue

        if track.label == PREDICTION and fields.get("id") not in finished_ids:
            detail = "label it 'truth' in CVAT once it is correct"
            parsed.defects.add("still a prediction", location, detail, excluded=True)
        elif track.label == TRUTH:
            # A newly drawn track does not state its video.
            if "video" not in fields:
                fields["video"] = video_files.resolve_path(
                    video.source, video.source, parsed.defects
                )
            sentence = track.attributes.get("sentence", "")
            content = {**fields, "text": sentence, "tube": _build_tube(track)}
            collect_entry(content, location, location, entries, parsed)
            parsed.defects.split = NO_SPLIT


def _parse_query_attribute(
    track: CvatTrack, location: str, parsed: ParsedDataset
) -> dict[str, Any] | None:
    """Parse a track's query: {} for a newly drawn track, None and a defect if unreadable."""
    attribute = track.attributes.get("query", "").strip()
    try:
        fields = parse_json(attribute.encode()) if attribute else {}
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        return fields

    detail = f"the attribute 'query' is not a JSON object: {attribute}"
    parsed.defects.add("unreadable query", location, detail, excluded=True)
    return None


def _build_tube(track: CvatTrack) -> dict[str, Any]:
    """Convert a track to the tube of an entry: null for frames without a box."""
    boxes_by_frame = dict(zip(track.frames.tolist(), track.boxes.tolist(), strict=True))
    begin = int(track.frames[0])
    end = int(track.frames[-1]) + 1
    boxes = [boxes_by_frame.get(frame_index) for frame_index in range(begin, end)]
    return {"begin": begin, "boxes": boxes}

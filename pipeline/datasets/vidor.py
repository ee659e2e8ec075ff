"""VidOR as it lies on disk: which group a video is in, and the boxes of its objects.

`annotation/{training,validation}/<group>/<vid>.json`, `trajectories[frame]` = `[{tid, bbox: {xmin, ymin, xmax, ymax}}…]`;
`video/<group>/<vid>.mp4`. Folders are listed once; a video's id is only ever compared with the names found there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.file_search import VideoFiles, list_files
from pipeline.datasets.parsed import DefectLog
from pipeline.datasets.tubes import clip_boxes
from pipeline.errors import InputError
from pipeline.io.strict_json import read_json
from pipeline.records import MAX_COORDINATE
from pipeline.tracks import Tracks

BBOX_KEYS = ("xmin", "ymin", "xmax", "ymax")


class VidorFolder:
    """Where each video and each file of boxes lies under a root; either may be absent. `boxes`: paths by the video's id."""

    def __init__(self, root: Path) -> None:
        places = [
            root / "annotation" / part for part in ("training", "validation")
        ]  # the first file in the last of them counts
        self.box_files = {
            path.stem: place / path
            for place in places
            for path in reversed(list_files(place, (".json",)))
        }
        self._video_files = VideoFiles(root, "video")
        self._video_paths: dict[str, str] = {}

    def resolve_video_path(self, video: str, defects: DefectLog) -> str:
        """The video's path relative to the root: where it lies, else where it should; an odd place is noted once."""
        if video not in self._video_paths:
            group = f"{self.box_files[video].parent.name}/" if video in self.box_files else ""
            self._video_paths[video] = self._video_files.resolve_path(
                f"{video}.mp4", f"video/{group}{video}.mp4", defects
            )
        return self._video_paths[video]


def add_tracks(
    path: Path,
    video: str,
    target_ids: Iterable[int],
    size: tuple[int, int],
    tracks: Tracks,
    defects: DefectLog,
) -> bool:
    """Add the boxes of the `targets` (object ids) of one video to `tracks` as `<video>/<tid>`, in xyxy pixels.

    Boxes are clipped to the picture of `size` (width, height); those left without an area are dropped, both counted.
    False if the file cannot be read.
    """
    rows: dict[int, dict[int, list[float]]] = {tid: {} for tid in target_ids}
    try:
        content = read_json(path)
        frames = content["trajectories"]
        if not isinstance(frames, list):
            raise TypeError("trajectories is not a list")
    except (InputError, TypeError, KeyError) as error:
        defects.add(
            "unreadable box file",
            video,
            f"{path}: {error}; its queries keep their spans, without boxes",
        )
        return False
    malformed = _collect_boxes(frames, rows)
    if malformed:
        defects.add(
            "malformed box",
            video,
            f"{path}: {malformed} boxes are not as VidOR writes them; left out",
            count=malformed,
        )
    for tid, found in rows.items():
        if found:
            _add_track(f"{video}/{tid}", found, size, tracks, defects)
    return True


def _collect_boxes(frames: list[Any], rows: dict[int, dict[int, list[float]]]) -> int:
    """Fill `rows[tid][frame]` with the sides of the wanted objects' boxes (the first of a frame counts); the number of malformed ones."""
    malformed = 0
    for number, boxes in enumerate(frames):
        if not isinstance(boxes, list):
            malformed += 1
            continue
        for box in boxes:
            try:
                tid = box["tid"]
                if type(tid) is not int:
                    malformed += 1
                elif tid in rows and number not in rows[tid]:
                    rows[tid][number] = _parse_bbox(box["bbox"])
            except (TypeError, KeyError, ValueError, OverflowError):
                malformed += 1
    return malformed


def _parse_bbox(bbox: Any) -> list[float]:
    """A box as xyxy; a TypeError, KeyError, ValueError or OverflowError where it is none."""
    sides = [float(bbox[side]) for side in BBOX_KEYS]
    for side in sides:
        if not -MAX_COORDINATE <= side <= MAX_COORDINATE:  # which NaN is not
            raise ValueError(f"{side} is no place in a picture")
    return sides


def _add_track(
    key: str,
    found: dict[int, list[float]],
    size: tuple[int, int],
    tracks: Tracks,
    defects: DefectLog,
) -> None:
    frames, boxes = np.array(list(found), np.int32), np.array(list(found.values()), np.float64)
    frames, boxes = clip_boxes(key, frames, boxes, size, defects)
    if len(frames):
        tracks.add(key, frames, boxes)

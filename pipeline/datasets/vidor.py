"""VidOR's files: the folder of each video, and the boxes of its objects.

`annotation/{training,validation}/<group>/<vid>.json` holds the boxes: `trajectories[frame]` is a
list of `{tid, bbox: {xmin, ymin, xmax, ymax}}`. `video/<group>/<vid>.mp4` is the video. Each
folder is listed once. A video's id is only compared with the listed names.
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
VIDOR_PARTS = ("training", "validation")
RowsByObject = dict[int, dict[int, list[float]]]
"""Boxes by object id and frame index: xyxy in pixels."""


class VidorFolder:
    """Paths of VidOR's videos and box files below a root; both may be absent.

    Args:
        root: Root of the data set.

    Attributes:
        box_files: Path of each box file, by the video's id.
    """

    def __init__(self, root: Path) -> None:
        # Of several files for one video, the first file of the last part is used.
        self.box_files: dict[str, Path] = {}
        for part in VIDOR_PARTS:
            folder = root / "annotation" / part
            for path in reversed(list_files(folder, (".json",))):
                self.box_files[path.stem] = folder / path

        self._video_files = VideoFiles(root, "video")
        self._video_paths: dict[str, str] = {}

    def resolve_video_path(self, video: str, defects: DefectLog) -> str:
        """Return the path of a video: the path of its file, or the expected path without a file.

        Args:
            video: Id of the video.
            defects: Log; an unexpected file is logged once per video.

        Returns:
            The path relative to the root.
        """
        if video not in self._video_paths:
            # A video lies in the group of its box file.
            group = f"{self.box_files[video].parent.name}/" if video in self.box_files else ""
            default_path = f"video/{group}{video}.mp4"
            self._video_paths[video] = self._video_files.resolve_path(
                f"{video}.mp4", default_path, defects
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
    """Read the boxes of some objects of one video.

    Boxes are clipped to the picture, and boxes without an area are dropped. Both are counted.

    Args:
        path: Box file of the video.
        video: Id of the video.
        target_ids: Ids of the objects.
        size: (width, height) of the picture in pixels.
        tracks: Receives the boxes in xyxy pixels, under the key `<video>/<tid>`.
        defects: Log of defects.

    Returns:
        False if the file cannot be read.
    """
    try:
        content = read_json(path)
        frames = content["trajectories"]
        if not isinstance(frames, list):
            raise TypeError("trajectories is not a list")
    except (InputError, TypeError, KeyError) as error:
        detail = f"{path}: {error}; its queries keep their spans, without boxes"
        defects.add("unreadable box file", video, detail)
        return False

    rows: RowsByObject = {tid: {} for tid in target_ids}
    num_malformed = _collect_boxes(frames, rows)
    if num_malformed:
        detail = f"{path}: {num_malformed} boxes are not in VidOR's format; left out"
        defects.add("malformed box", video, detail, count=num_malformed)

    for tid, boxes_by_frame in rows.items():
        if boxes_by_frame:
            _add_track(f"{video}/{tid}", boxes_by_frame, size, tracks, defects)
    return True


def _collect_boxes(frames: list[Any], rows: RowsByObject) -> int:
    """Fill the rows of their objects, the first box per frame; return the number of malformed."""
    num_malformed = 0
    for frame_index, boxes in enumerate(frames):
        if not isinstance(boxes, list):
            num_malformed += 1
            continue

        for box in boxes:
            try:
                tid = box["tid"]
                if type(tid) is not int:
                    num_malformed += 1
                elif tid in rows and frame_index not in rows[tid]:
                    rows[tid][frame_index] = _parse_bbox(box["bbox"])
            except (TypeError, KeyError, ValueError, OverflowError):
                num_malformed += 1
    return num_malformed


def _parse_bbox(bbox: Any) -> list[float]:
    """Return a box as xyxy; TypeError, KeyError, ValueError or OverflowError if malformed."""
    coordinates = [float(bbox[key]) for key in BBOX_KEYS]
    for coordinate in coordinates:
        # Written so that NaN fails the comparison, too.
        if not -MAX_COORDINATE <= coordinate <= MAX_COORDINATE:
            raise ValueError(f"{coordinate} is not a coordinate in pixels")
    return coordinates


def _add_track(
    key: str,
    boxes_by_frame: dict[int, list[float]],
    size: tuple[int, int],
    tracks: Tracks,
    defects: DefectLog,
) -> None:
    """Clip the boxes of one object and store the remaining boxes."""
    frames = np.array(list(boxes_by_frame), np.int32)  # [n]
    boxes = np.array(list(boxes_by_frame.values()), np.float64)  # [n, 4]
    frames, boxes = clip_boxes(key, frames, boxes, size, defects)
    if len(frames):
        tracks.add(key, frames, boxes)

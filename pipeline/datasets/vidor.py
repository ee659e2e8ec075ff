"""VidOR as it lies on disk: which group a video is in, and the boxes of its objects.

`annotation/{training,validation}/<group>/<vid>.json`, `trajectories[frame]` = `[{tid, bbox: {xmin, ymin, xmax, ymax}}…]`;
`video/<group>/<vid>.mp4`. Folders are listed once; a video's id is only ever compared with the names found there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.parsed import Defects, read_json
from pipeline.errors import InputError
from pipeline.records import Tracks

SIDES = ("xmin", "ymin", "xmax", "ymax")


class VidorFolder:
    """Where each video and each file of boxes lies under a root; either may be absent."""

    def __init__(self, root: Path) -> None:
        self.boxes: dict[str, Path] = {}
        for part in ("training", "validation"):
            self.boxes |= _listed(root / "annotation" / part, ".json")
        self._videos = {name: path.relative_to(root).as_posix() for name, path in _listed(root / "video", ".mp4").items()}

    def video_path(self, video: str) -> str:
        """The video's path relative to the root: where it lies, else where it should."""
        if video in self._videos:
            return self._videos[video]
        group = f"{self.boxes[video].parent.name}/" if video in self.boxes else ""
        return f"video/{group}{video}.mp4"


def _listed(folder: Path, suffix: str) -> dict[str, Path]:
    """`<folder>/<group>/<name><suffix>` and `<folder>/<name><suffix>`, by name."""
    if not folder.is_dir():
        return {}
    groups = sorted(path for path in folder.iterdir() if path.is_dir())
    return {path.stem: path for place in (folder, *groups) for path in sorted(place.iterdir()) if path.suffix == suffix}


def add_tracks(path: Path, video: str, targets: Iterable[int], size: tuple[int, int], tracks: Tracks, defects: Defects) -> bool:
    """Add the boxes of the `targets` (object ids) of one video to `tracks` as `<video>/<tid>`, in xyxy pixels.

    Boxes are clipped to the picture of `size` (width, height); those left without an area are dropped, both counted.
    False if the file cannot be read.
    """
    rows: dict[int, dict[int, list[float]]] = {tid: {} for tid in targets}
    try:
        content = read_json(path)
        frames = content["trajectories"]
        if not isinstance(frames, list):
            raise TypeError("trajectories is not a list")
    except (InputError, TypeError, KeyError) as error:
        defects.add("unreadable box file", video, f"{path}: {error}; its queries keep their spans, without boxes")
        return False
    malformed = 0
    for number, boxes in enumerate(frames):
        if not isinstance(boxes, list):
            malformed += 1
            continue
        malformed += sum(not _take(box, rows, number) for box in boxes)
    if malformed:
        defects.add("malformed box", video, f"{path}: {malformed} boxes are not as VidOR writes them; left out", count=malformed)
    for tid, found in rows.items():
        if found:
            _add_track(f"{video}/{tid}", found, size, tracks, defects)
    return True


def _take(box: Any, rows: dict[int, dict[int, list[float]]], frame: int) -> bool:
    """Keep the box if its object is wanted (the first one of a frame counts); False for one that is malformed."""
    try:
        tid = box["tid"]
        if isinstance(tid, bool) or not isinstance(tid, int):
            return False
        if tid in rows:
            sides = [float(box["bbox"][side]) for side in SIDES]
            if not np.isfinite(sides).all():
                return False
            rows[tid].setdefault(frame, sides)
    except (TypeError, KeyError, ValueError):
        return False
    return True


def _add_track(key: str, found: dict[int, list[float]], size: tuple[int, int], tracks: Tracks, defects: Defects) -> None:
    frames, boxes = np.array(list(found), np.int32), np.array(list(found.values()), np.float64)
    frames, boxes = clip_boxes(key, frames, boxes, size, defects)
    if len(frames):
        tracks.add(key, frames, boxes)


def clip_boxes(entry: str, frames: np.ndarray, boxes: np.ndarray, size: tuple[int, int], defects: Defects) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `[n, 4]` xyxy clipped to the picture `(width, height)`, without those that keep no area; each kind counted."""
    clipped = np.clip(boxes, 0, np.array([*size, *size], np.float64))
    outside = (clipped != boxes).any(1)
    flat = (clipped[:, 2:] <= clipped[:, :2]).any(1)
    if outside.any():
        first = int(frames[outside.argmax()])
        detail = f"{int(outside.sum())} boxes, the first at frame {first}, clipped to {size[0]}x{size[1]}"
        defects.add("box outside picture", entry, detail, count=int(outside.sum()))
    if flat.any():
        first = int(frames[flat.argmax()])
        defects.add("box without area", entry, f"{int(flat.sum())} boxes, the first at frame {first}, dropped", count=int(flat.sum()))
    return frames[~flat], clipped[~flat]

"""A VidSTG tree small enough to write by hand: one entry of a 20-frame video of 100x50 pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def make_vidstg_entry() -> Callable[..., dict[str, Any]]:
    """A sound entry; keyword arguments replace its fields."""

    def make(**changes: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "vid": "101",
            "fps": 10,
            "frame_count": 20,
            "used_segment": {"begin_fid": 2, "end_fid": 13},
            "width": 100,
            "height": 50,
            "subject/objects": [{"tid": 0, "category": "dog"}, {"tid": 3, "category": "ball"}],
            "used_relation": {
                "subject_tid": 0,
                "object_tid": 3,
                "predicate": "chase",
                "begin_fid": 4,
                "end_fid": 14,
            },
            "temporal_gt": {"begin_fid": 4, "end_fid": 14},
            "captions": [{"description": "a dog chases a ball.", "type": "object", "target_id": 0}],
            "questions": [
                {"description": "what does the dog chase?", "type": "object", "target_id": 3}
            ],
        }

        return fields | changes

    return make


@pytest.fixture
def write_vidstg(tmp_path: Path) -> Callable[..., Path]:
    """Write `annotations/<split>_annotations.json` of each split given."""

    def write(**splits: Any) -> Path:
        for split, entries in splits.items():
            path = tmp_path / "annotations" / f"{split}_annotations.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(entries))
        return tmp_path

    return write


@pytest.fixture
def write_vidor(tmp_path: Path) -> Callable[..., None]:
    """Write VidOR's file of one video from `{frame: [(tid, xmin, ymin, xmax, ymax)]}` over 20
    frames.
    """

    def write(
        video: str,
        boxes: dict[int, list[tuple[float, ...]]],
        part: str = "training",
        group: str = "0007",
    ) -> None:
        frames = [
            [
                {"tid": row[0], "bbox": dict(zip(SIDES, row[1:], strict=True))}
                for row in boxes.get(n, [])
            ]
            for n in range(20)
        ]
        path = tmp_path / "annotation" / part / group / f"{video}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"video_path": "../../etc/passwd", "trajectories": frames}))

    return write


SIDES = ("xmin", "ymin", "xmax", "ymax")


@pytest.fixture
def make_hcstvg_entry() -> Callable[..., dict[str, Any]]:
    """A sound entry of HC-STVG v1 (its 480 frames at 24 fps, 100x50 pixels); keyword arguments
    replace its fields.
    """

    def make(**changes: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "bbox": [[1, 2, 30, 40], [2, 2, 30, 40], [3, 2, 30, 40]],
            "st_time": 6.5019,
            "ed_time": 6.62,
            "img_num": 480,
            "caption": "The man opens the bag.",
            "width": 100,
            "height": 50,
            "st_frame": 157,
        }

        return fields | changes

    return make


@pytest.fixture
def write_hcstvg(tmp_path: Path) -> Callable[..., Path]:
    """Write one of HC-STVG's files: `clips("annos/trainv2.json", {name: entry})`."""

    def write(place: str, entries: Any) -> Path:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries))
        return tmp_path

    return write

"""Write `shapes` to disk in VidSTG's layout: annotation lists, VidOR trajectory files and h264 videos.

`root/annotations/{split}_annotations.json`, `root/annotation/{training,validation}/<group>/<vid>.json`,
`root/video/<group>/<vid>.mp4`. As in VidSTG, train and val lie in VidOR's training part, test in its validation part.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import StrictModel
from pipeline.datasets.shapes import render
from pipeline.datasets.shapes.scene import Scene, make_scene
from pipeline.datasets.shapes.sentences import write_sentences
from pipeline.errors import InputError
from pipeline.io.atomic import atomic_write
from pipeline.io.jsonl import write_json

SPLITS = ("train", "val", "test")
VIDOR_PART = {"train": "training", "val": "training", "test": "validation"}


class ShapesConfig(StrictModel):
    """How much of `shapes` to make. Videos of one seed never appear in another split."""

    seed: int = 0
    train_videos: int = 320
    val_videos: int = 12
    test_videos: int = 60
    sentences_per_video: int = 8
    width: int = 160
    height: int = 96
    fps: int = 10
    seconds: tuple[float, float] = (5.0, 7.0)


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of a video's scene: different for every (seed, split, index), and for `pretrain`, which is no split."""
    part = (*SPLITS, "pretrain").index(split)
    return int(np.random.SeedSequence([seed, part, index]).generate_state(1, np.uint64)[0] >> 1)


def make_shapes(
    root: Path,
    config: ShapesConfig,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the whole data set under `root`; what is already there for the same settings is kept."""
    stamp, begun, settings = (
        root / "shapes.json",
        root / ".shapes-begun.json",
        config.model_dump(mode="json"),
    )
    if _has_settings(stamp, settings) and not begun.exists():
        progress(1, 1)
        return
    if root.exists() and any(root.iterdir()) and not (stamp.exists() or begun.exists()):
        raise InputError(
            f"{root} holds files that are not `shapes`: name an empty folder with --root"
        )
    if not _has_settings(begun, settings):
        for folder in ("video", "annotation", "annotations"):
            shutil.rmtree(root / folder, ignore_errors=True)
        write_json(begun, settings)
    stamp.unlink(missing_ok=True)
    counts = {"train": config.train_videos, "val": config.val_videos, "test": config.test_videos}
    jobs = [(root, config, split, index) for split in SPLITS for index in range(counts[split])]
    entries: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    with ProcessPoolExecutor(workers) as pool:
        for done, (split, made) in enumerate(pool.map(_make_video, jobs, chunksize=4), start=1):
            entries[split].extend(made)
            progress(done, len(jobs))
    for split in SPLITS:
        write_json(root / "annotations" / f"{split}_annotations.json", entries[split])
        write_json(
            root / "annotations" / f"{split}_files.json",
            [video_id(split, i) for i in range(counts[split])],
        )
    write_json(stamp, settings)
    begun.unlink()


def _has_settings(stamp: Path, settings: dict[str, Any]) -> bool:
    """Whether the data set there was made, or begun, with these settings."""
    return stamp.exists() and json.loads(stamp.read_text()) == settings


def video_id(split: str, index: int) -> str:
    """Ids are digits, as VidOR's are; the first says the split."""
    return f"{SPLITS.index(split) + 1}{index:06d}"


def _make_video(job: tuple[Path, ShapesConfig, str, int]) -> tuple[str, list[dict[str, Any]]]:
    root, config, split, index = job
    seed = scene_seed(config.seed, split, index)
    scene = make_scene(seed, (config.width, config.height), config.fps, config.seconds)
    vid, group = video_id(split, index), f"{index // 100:04d}"
    path = root / "video" / group / f"{vid}.mp4"
    if not path.exists():  # where it does, an interrupted run made it whole
        with atomic_write(path) as aside:
            write_video(aside, render.render_frames(scene), scene.fps)
    write_json(
        root / "annotation" / VIDOR_PART[split] / group / f"{vid}.json",
        build_trajectories(scene, vid, f"{group}/{vid}.mp4"),
    )
    return split, build_entries(scene, vid, config.sentences_per_video)


def build_entries(scene: Scene, vid: str, num_sentences: int) -> list[dict[str, Any]]:
    """VidSTG's annotation entries of one scene: one per sentence, its tags in an extra field."""
    rng = np.random.default_rng([scene.seed, 2])
    things = [{"tid": tid, "category": thing.shape} for tid, thing in enumerate(scene.objects)]
    entries = []
    for sentence in write_sentences(scene, num_sentences, rng):
        span = {"begin_fid": sentence.event.begin, "end_fid": sentence.event.end}
        said = {
            "description": sentence.text,
            "type": "shape",
            "target_id": sentence.object_index,
            "tags": list(sentence.tags),
        }
        relation = {
            "subject_tid": sentence.object_index,
            "object_tid": sentence.object_index,
            "predicate": sentence.event.motion,
        }
        entries.append(
            {
                "vid": vid,
                "fps": float(scene.fps),
                "frame_count": scene.frame_count,
                "width": scene.size[0],
                "height": scene.size[1],
                "used_segment": {"begin_fid": 0, "end_fid": scene.frame_count - 1},
                "subject/objects": things,
                "used_relation": {**relation, **span},
                "temporal_gt": span,
                "captions": [said] if sentence.form == "declarative" else [],
                "questions": [said] if sentence.form == "interrogative" else [],
            }
        )
    return entries


def build_trajectories(scene: Scene, vid: str, video_path: str) -> dict[str, Any]:
    """VidOR's annotation file of one scene: every object's box in every frame, whole pixels as VidOR has them."""
    tracks = [
        np.round(render.compute_boxes(scene, thing)).astype(int).tolist() for thing in scene.objects
    ]
    sides = ("xmin", "ymin", "xmax", "ymax")
    frames = [
        [
            {
                "tid": tid,
                "bbox": dict(zip(sides, track[frame], strict=True)),
                "generated": 0,
                "tracker": "none",
            }
            for tid, track in enumerate(tracks)
        ]
        for frame in range(scene.frame_count)
    ]
    return {
        "version": "VERSION 1.0",
        "video_id": vid,
        "video_path": video_path,
        "frame_count": scene.frame_count,
        "fps": float(scene.fps),
        "width": scene.size[0],
        "height": scene.size[1],
        "subject/objects": [
            {"tid": tid, "category": thing.shape} for tid, thing in enumerate(scene.objects)
        ],
        "trajectories": frames,
        "relation_instances": [
            {
                "subject_tid": tid,
                "object_tid": tid,
                "predicate": event.motion,
                "begin_fid": event.begin,
                "end_fid": event.end,
            }
            for tid, thing in enumerate(scene.objects)
            for event in thing.events
        ],
    }


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """Encode RGB frames as an h264 mp4 (yuv420p) that is the same bytes every time.

    One thread, and `cpu-independent`: x264's quicker routines decide otherwise from one state of the heap to the next.
    """
    import av

    options = {
        "crf": "18",
        "preset": "veryfast",
        "threads": "1",
        "x264-params": "cpu-independent=1",
    }
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(frames):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())

"""Generation of the `shapes` data set on disk, in VidSTG's layout.

- `root/annotations/{split}_annotations.json`: VidSTG's annotations.
- `root/annotation/{training,validation}/<group>/<vid>.json`: VidOR's boxes.
- `root/video/<group>/<vid>.mp4`: h264 videos.

As in VidSTG, the splits train and val lie in VidOR's training part, and test lies in its validation
part.
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
from pipeline.datasets.parsed import ignore_progress
from pipeline.datasets.shapes import render
from pipeline.datasets.shapes.scene import Scene, make_scene
from pipeline.datasets.shapes.sentences import Sentence, write_sentences
from pipeline.errors import InputError
from pipeline.io.atomic import atomic_write
from pipeline.io.jsonl import write_json

SPLITS = ("train", "val", "test")
VIDOR_PART = {"train": "training", "val": "training", "test": "validation"}


class ShapesConfig(StrictModel):
    """Size of the generated data set. Videos of one seed never appear in another split."""

    seed: int = 0
    """Seed of all scenes."""
    train_videos: int = 320
    """Videos of the split train."""
    val_videos: int = 12
    """Videos of the split val."""
    test_videos: int = 60
    """Videos of the split test."""
    sentences_per_video: int = 8
    """Maximum number of sentences about one video."""
    width: int = 160
    """Width of the picture in pixels."""
    height: int = 96
    """Height of the picture in pixels."""
    fps: int = 10
    """Frames per second."""
    seconds: tuple[float, float] = (5.0, 7.0)
    """Minimum and maximum duration of a video."""


def scene_seed(seed: int, split: str, index: int) -> int:
    """Return the seed of one video's scene, different for every (seed, split, index).

    Args:
        seed: Seed of the data set.
        split: One of `SPLITS`, or "pretrain" for scenes outside of the data set.
        index: Index of the video in its split.

    Returns:
        A seed of 63 bits.
    """
    split_index = (*SPLITS, "pretrain").index(split)
    sequence = np.random.SeedSequence([seed, split_index, index])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def make_shapes(
    root: Path,
    config: ShapesConfig,
    workers: int,
    progress: Callable[[int, int], None] = ignore_progress,
) -> None:
    """Generate the data set. Videos of an interrupted call with equal settings are reused.

    Args:
        root: Folder to write: new, empty, or of an earlier call.
        config: Size of the data set.
        workers: Number of processes.
        progress: Called as `progress(done, total)` after each video.

    Raises:
        InputError: The folder holds files that are not from an earlier call.
    """
    # One file marks a complete data set, the other an incomplete one; both hold the settings.
    complete_path = root / "shapes.json"
    incomplete_path = root / ".shapes-begun.json"
    settings = config.model_dump(mode="json")
    if _has_settings(complete_path, settings) and not incomplete_path.exists():
        progress(1, 1)
        return

    is_own_folder = complete_path.exists() or incomplete_path.exists()
    if root.exists() and any(root.iterdir()) and not is_own_folder:
        raise InputError(
            f"{root} holds files that are not `shapes`: give an empty folder with --root"
        )

    # Delete files of other settings before any new file is written.
    if not _has_settings(incomplete_path, settings):
        for folder in ("video", "annotation", "annotations"):
            shutil.rmtree(root / folder, ignore_errors=True)
        write_json(incomplete_path, settings)
    complete_path.unlink(missing_ok=True)

    _write_data(root, config, workers, progress)
    write_json(complete_path, settings)
    incomplete_path.unlink()


def _has_settings(path: Path, settings: dict[str, Any]) -> bool:
    """Return True if the file exists and holds these settings."""
    return path.exists() and json.loads(path.read_text()) == settings


def _write_data(
    root: Path, config: ShapesConfig, workers: int, progress: Callable[[int, int], None]
) -> None:
    """Write videos and boxes in several processes, then the annotations of each split."""
    video_counts = count_videos(config)
    jobs = []
    for split, video_count in video_counts.items():
        for index in range(video_count):
            jobs.append((root, config, split, index))

    entries: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    with ProcessPoolExecutor(workers) as pool:
        results = pool.map(_make_video, jobs, chunksize=4)
        for done, (split, video_entries) in enumerate(results, start=1):
            entries[split].extend(video_entries)
            progress(done, len(jobs))

    for split, video_count in video_counts.items():
        video_ids = [video_id(split, index) for index in range(video_count)]
        write_json(root / "annotations" / f"{split}_annotations.json", entries[split])
        write_json(root / "annotations" / f"{split}_files.json", video_ids)


def count_videos(config: ShapesConfig) -> dict[str, int]:
    """Return the number of videos of each split.

    Args:
        config: Size of the data set.

    Returns:
        The numbers, in the order of `SPLITS`.
    """
    return {"train": config.train_videos, "val": config.val_videos, "test": config.test_videos}


def video_id(split: str, index: int) -> str:
    """Return the id of a video: digits, as in VidOR; the first digit encodes the split.

    Args:
        split: One of `SPLITS`.
        index: Index of the video in its split.

    Returns:
        The id.
    """
    return f"{SPLITS.index(split) + 1}{index:06d}"


def _make_video(job: tuple[Path, ShapesConfig, str, int]) -> tuple[str, list[dict[str, Any]]]:
    """Write video and boxes of one scene; return its split and its annotation entries."""
    root, config, split, index = job
    seed = scene_seed(config.seed, split, index)
    scene = make_scene(seed, (config.width, config.height), config.fps, config.seconds)
    vid = video_id(split, index)
    group = f"{index // 100:04d}"

    # Videos are written atomically, so an existing one is complete.
    path = root / "video" / group / f"{vid}.mp4"
    if not path.exists():
        with atomic_write(path) as temporary_path:
            write_video(temporary_path, render.render_frames(scene), scene.fps)

    trajectories = build_trajectories(scene, vid, f"{group}/{vid}.mp4")
    write_json(root / "annotation" / VIDOR_PART[split] / group / f"{vid}.json", trajectories)
    return split, build_entries(scene, vid, config.sentences_per_video)


def build_entries(scene: Scene, vid: str, num_sentences: int) -> list[dict[str, Any]]:
    """Build VidSTG's annotation entries of one scene.

    Args:
        scene: The scene.
        vid: Id of its video.
        num_sentences: Maximum number of sentences.

    Returns:
        One entry per sentence, with the sentence's tags in an additional field.
    """
    rng = np.random.default_rng([scene.seed, 2])
    sentences = write_sentences(scene, num_sentences, rng)
    return [_build_entry(scene, vid, sentence) for sentence in sentences]


def _build_entry(scene: Scene, vid: str, sentence: Sentence) -> dict[str, Any]:
    """Build the annotation entry of one sentence."""
    span = {"begin_fid": sentence.event.begin, "end_fid": sentence.event.end}
    relation = {
        "subject_tid": sentence.object_index,
        "object_tid": sentence.object_index,
        "predicate": sentence.event.motion,
    }
    description = {
        "description": sentence.text,
        "type": "shape",
        "target_id": sentence.object_index,
        "tags": list(sentence.tags),
    }

    return {
        "vid": vid,
        "fps": float(scene.fps),
        "frame_count": scene.frame_count,
        "width": scene.size[0],
        "height": scene.size[1],
        "used_segment": {"begin_fid": 0, "end_fid": scene.frame_count - 1},
        "subject/objects": _list_objects(scene),
        "used_relation": {**relation, **span},
        "temporal_gt": span,
        "captions": [description] if sentence.form == "declarative" else [],
        "questions": [description] if sentence.form == "interrogative" else [],
    }


def _list_objects(scene: Scene) -> list[dict[str, Any]]:
    """List the objects of a scene with their ids and categories."""
    rows = []
    for tid, scene_object in enumerate(scene.objects):
        rows.append({"tid": tid, "category": scene_object.shape})
    return rows


def build_trajectories(scene: Scene, vid: str, video_path: str) -> dict[str, Any]:
    """Build VidOR's annotation file of one scene.

    Args:
        scene: The scene.
        vid: Id of its video.
        video_path: Path of the video, relative to the folder of all videos.

    Returns:
        The content of the file: boxes of all objects in all frames, in whole pixels.
    """
    boxes_by_object = []
    for scene_object in scene.objects:
        boxes = np.round(render.compute_boxes(scene, scene_object)).astype(int)  # [n, 4]
        boxes_by_object.append(boxes.tolist())

    trajectories = []
    for frame_index in range(scene.frame_count):
        rows = []
        for tid, boxes in enumerate(boxes_by_object):
            rows.append(_build_box(tid, boxes[frame_index]))
        trajectories.append(rows)

    return {
        "version": "VERSION 1.0",
        "video_id": vid,
        "video_path": video_path,
        "frame_count": scene.frame_count,
        "fps": float(scene.fps),
        "width": scene.size[0],
        "height": scene.size[1],
        "subject/objects": _list_objects(scene),
        "trajectories": trajectories,
        "relation_instances": _list_relations(scene),
    }


def _build_box(tid: int, box: list[int]) -> dict[str, Any]:
    """Build VidOR's record of one box."""
    x1, y1, x2, y2 = box
    return {
        "tid": tid,
        "bbox": {"xmin": x1, "ymin": y1, "xmax": x2, "ymax": y2},
        "generated": 0,
        "tracker": "none",
    }


def _list_relations(scene: Scene) -> list[dict[str, Any]]:
    """List all events as VidOR's relations of an object to itself."""
    rows = []
    for tid, scene_object in enumerate(scene.objects):
        for event in scene_object.events:
            rows.append(
                {
                    "subject_tid": tid,
                    "object_tid": tid,
                    "predicate": event.motion,
                    "begin_fid": event.begin,
                    "end_fid": event.end,
                }
            )
    return rows


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """Encode frames as an h264 mp4 (yuv420p); equal frames give equal bytes.

    Args:
        path: File to write.
        frames: RGB frames, uint8 `[height, width, 3]`, all of one size.
        fps: Frames per second.
    """
    import av

    # One thread and `cpu-independent`: decisions of x264's faster routines depend on the state of
    # the heap, so that the bytes would differ between runs.
    options = {
        "crf": "18",
        "preset": "veryfast",
        "threads": "1",
        "x264-params": "cpu-independent=1",
    }
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        for frame_index, picture in enumerate(frames):
            if frame_index == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))

        # Flush the encoder.
        container.mux(stream.encode())

"""Time and memory of `stvg-prepare` on a data set of VidSTG's size."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import Case, Comparison, LowerBound, Measurement
from benchmarks.timing import (
    count_folder_bytes,
    profile_python,
    read_process_memory,
    run_in_spawned_process,
)

VOCABULARY = [
    "the",
    "an",
    "adult",
    "child",
    "dog",
    "ball",
    "in",
    "red",
    "black",
    "clothes",
    "is",
    "behind",
    "next",
    "to",
    "holds",
    "what",
    "who",
]
CATEGORIES = ("adult", "child", "dog", "ball/sports_ball", "bicycle", "guitar", "car")


@dataclass
class Index(Case):
    """Index preparation at the size of VidSTG, in time and memory.

    `pipeline.datasets.prepare.prepare` on a training split drawn from a seed and written as
    VidSTG's files: as many videos and sentences as VidSTG's; then a share of them with VidOR's
    boxes of two to seven objects in each of 150 to 1,800 frames. No videos are there, so none is
    probed. First, `json.loads` of the same annotation files. Every index is checked: all sentences,
    each once, with a track or without. The floor is reading the files and writing the index. The
    start of Python is not counted; memory is the process's highest.
    """

    packages = ("pydantic", "numpy")
    num_videos: int = 5436
    num_sentences: int = 80684
    box_subset_divisor: int = 20
    """Number of videos per video with boxes. VidOR's files of all videos would take gigabytes."""
    rounds: int = 2

    def __enter__(self) -> Index:
        super().__enter__()
        num_subset_videos = self.num_videos // self.box_subset_divisor
        self.subsets = {
            "without": (self.num_videos, self.num_sentences),
            "with": (num_subset_videos, self.num_sentences * num_subset_videos // self.num_videos),
        }
        for name, (videos, sentences) in self.subsets.items():
            write_annotations(
                self.work_dir / name,
                np.random.default_rng(0),
                videos,
                sentences,
                with_boxes=name == "with",
            )
        return self

    def check_agreement(self) -> None:
        """Check that all variants agree."""
        for name, (videos, sentences) in self.subsets.items():
            run_in_spawned_process(run_prepare, self.work_dir / name)
            lines = [
                json.loads(line)
                for line in (self.work_dir / name / "index" / "index.jsonl")
                .read_text(encoding="utf-8")
                .splitlines()
            ]
            assert len(lines) == len({line["id"] for line in lines}) == sentences, (
                len(lines),
                sentences,
            )
            assert {line["video"] for line in lines} == {
                str(10**9 + number) for number in range(videos)
            }
            assert all((line["truth"]["track"] is not None) == (name == "with") for line in lines)

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        return [
            Comparison(
                f"{sentences:,} queries of {videos:,} videos, {name} boxes",
                self._build_measurements(self.work_dir / name),
            )
            for name, (videos, sentences) in self.subsets.items()
        ]

    def _build_measurements(self, root: Path) -> dict[str, Measurement]:
        """Measure parsing and preparation in fresh processes, in turns."""
        plain, whole = zip(
            *(
                (
                    run_in_spawned_process(read_plain, root),
                    run_in_spawned_process(run_prepare, root),
                )
                for _ in range(self.rounds)
            ),
            strict=True,
        )
        index = root / "index"
        read = count_folder_bytes(root / "annotations") + count_folder_bytes(root / "annotation")
        sizes = {"bytes_of_annotations": read, "bytes_of_index": count_folder_bytes(index)}
        return {
            "json.loads of the annotations": Measurement(
                [seconds for seconds, _ in plain], peak_bytes=max(peak for _, peak in plain)
            ),
            "prepare": Measurement(
                [seconds for seconds, _ in whole],
                LowerBound(bytes=read + count_folder_bytes(index)),
                max(peak for _, peak in whole),
                run_in_spawned_process(profile_prepare, root),
                sizes,
            ),
        }


def run_prepare(root: Path) -> tuple[float, int]:
    """Prepare the index.

    Args:
        root: Folder of the annotations.

    Returns:
        Seconds, and bytes of this process at the peak.
    """
    from pipeline.datasets.prepare import prepare

    start = time.perf_counter()
    prepare("vidstg", root, root / "index" / "index.jsonl")
    return time.perf_counter() - start, read_process_memory("VmHWM")


def profile_prepare(root: Path) -> list[tuple[str, float]]:
    """Profile the preparation of the index.

    Args:
        root: Folder of the annotations.

    Returns:
        Pairs (function, share of the time).
    """
    return profile_python(lambda: run_prepare(root))


def read_plain(root: Path) -> tuple[float, int]:
    """Parse all annotation files without validation.

    Args:
        root: Folder of the annotations.

    Returns:
        Seconds, and bytes of this process at the peak.
    """
    start = time.perf_counter()
    for folder in ("annotations", "annotation"):
        for path in (root / folder).rglob("*.json"):
            json.loads(path.read_bytes())
    return time.perf_counter() - start, read_process_memory("VmHWM")


def write_annotations(
    root: Path, rng: np.random.Generator, num_videos: int, num_sentences: int, with_boxes: bool
) -> None:
    """Write VidSTG's training file, and VidOR's files of the boxes.

    Every video has sentences. An entry has a caption and up to two questions.

    Args:
        root: Folder of the annotations.
        rng: Random generator.
        num_videos: Number of videos.
        num_sentences: Exact number of sentences.
        with_boxes: Write the boxes.
    """
    frames = rng.integers(150, 1800, num_videos)
    counts = rng.choice(
        (1, 2, 3), num_sentences, p=(0.05, 0.66, 0.29)
    )  # as in the real validation file
    counts = counts[: int(np.searchsorted(np.cumsum(counts), num_sentences)) + 1]
    counts[-1] -= counts.sum() - num_sentences
    owners = [*range(num_videos), *rng.integers(0, num_videos, len(counts) - num_videos).tolist()]
    entries = [
        build_entry(owner, int(frames[owner]), int(count), rng)
        for owner, count in zip(owners, counts, strict=True)
    ]
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "train_annotations.json").write_text(
        json.dumps(entries), encoding="utf-8"
    )
    for number in range(num_videos if with_boxes else 0):
        path = root / "annotation" / "training" / f"{number % 1000:04d}" / f"{10**9 + number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(build_trajectories(number, int(frames[number]), rng)), encoding="utf-8"
        )


def build_entry(
    video_index: int, frame_count: int, num_sentences: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Build an entry with the fields of the real file.

    Args:
        video_index: Index of the video.
        frame_count: Frames of the video.
        num_sentences: Sentences of the entry.
        rng: Random generator, for sentences, segment and ground truth.

    Returns:
        The entry.
    """
    objects = build_objects(video_index)
    begin, first, end, last = np.sort(rng.choice(frame_count - 1, 4, replace=False)).tolist()
    span = {"begin_fid": first, "end_fid": end}
    subject, target = rng.choice(len(objects), 2, replace=False).tolist()
    sentences = [
        {
            "description": " ".join(rng.choice(VOCABULARY, 9)) + ".",
            "type": "person",
            "target_id": subject if sentence_index < 2 else target,
        }
        for sentence_index in range(num_sentences)
    ]
    return {
        "vid": str(10**9 + video_index),
        "fps": 29.97002997002997,
        "frame_count": frame_count,
        "used_segment": {"begin_fid": begin, "end_fid": last},
        "width": 640,
        "height": 360,
        "subject/objects": objects,
        "used_relation": {
            "subject_tid": subject,
            "object_tid": target,
            "predicate": "watch",
            **span,
        },
        "temporal_gt": span,
        "captions": sentences[:1],
        "questions": sentences[1:],
    }


def build_objects(video_index: int) -> list[dict[str, Any]]:
    """Build two to seven objects, determined by the video's index.

    Args:
        video_index: Index of the video.

    Returns:
        Objects with track id and category.
    """
    return [
        {"tid": tid, "category": CATEGORIES[(video_index + tid) % len(CATEGORIES)]}
        for tid in range(2 + video_index % 6)
    ]


def build_trajectories(
    video_index: int, frame_count: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Build VidOR's file of one video, with a box of every object in every frame.

    Args:
        video_index: Index of the video.
        frame_count: Frames of the video.
        rng: Random generator.

    Returns:
        Content of the file.
    """
    objects = build_objects(video_index)
    corners = rng.integers(0, 160, (frame_count, len(objects), 2)).tolist()
    trajectories = [
        [
            {
                "tid": tid,
                "bbox": {"xmin": x, "ymin": y, "xmax": x + 120, "ymax": y + 90},
                "generated": 0,
                "tracker": "none",
            }
            for tid, (x, y) in enumerate(row)
        ]
        for row in corners
    ]
    return {
        "version": "VERSION 1.0",
        "video_id": str(10**9 + video_index),
        "frame_count": frame_count,
        "fps": 29.97002997002997,
        "width": 640,
        "height": 360,
        "subject/objects": objects,
        "trajectories": trajectories,
        "relation_instances": [],
    }

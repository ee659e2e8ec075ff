"""How long `stvg-prepare` takes for a data set of VidSTG's size, and how much memory."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import Case, Floor, Group, Way
from benchmarks.timing import apart, profile_python, resident, size_of

WORDS = "the an adult child dog ball in red black clothes is behind next to holds what who".split()  # noqa: SIM905
CATEGORIES = ("adult", "child", "dog", "ball/sports_ball", "bicycle", "guitar", "car")


@dataclass
class Index(Case):
    """`pipeline.datasets.prepare.prepare` on a training split drawn from a seed and written as VidSTG's files: as many videos and sentences
    as VidSTG's; then a share of them with VidOR's boxes of two to seven objects in each of 150 to 1,800 frames. No videos are
    there, so none is probed. First, `json.loads` of the same annotation files. Every index is checked: all sentences, each once,
    with a track or without. The floor is reading the files and writing the index. The start of Python is not counted; memory is the
    process's highest.
    """

    packages = ("pydantic", "numpy")
    videos: int = 5436
    sentences: int = 80684
    share_with_boxes: int = 20
    """One video in so many is indexed with boxes: VidOR's files of all of them would take gigabytes."""
    rounds: int = 2

    def __enter__(self) -> Index:
        super().__enter__()
        few = self.videos // self.share_with_boxes
        self.sets = {"without": (self.videos, self.sentences), "with": (few, self.sentences * few // self.videos)}
        for name, (videos, sentences) in self.sets.items():
            make(self.place / name, np.random.default_rng(0), videos, sentences, boxes=name == "with")
        return self

    def agree(self) -> None:
        for name, (videos, sentences) in self.sets.items():
            apart(prepared, self.place / name)
            lines = [json.loads(line) for line in (self.place / name / "index" / "index.jsonl").read_text(encoding="utf-8").splitlines()]
            assert len(lines) == len({line["id"] for line in lines}) == sentences, (len(lines), sentences)
            assert {line["video"] for line in lines} == {str(10**9 + number) for number in range(videos)}
            assert all((line["truth"]["track"] is not None) == (name == "with") for line in lines)

    def measure(self) -> list[Group]:
        return [
            Group(f"{sentences:,} queries of {videos:,} videos, {name} boxes", self._ways(self.place / name))
            for name, (videos, sentences) in self.sets.items()
        ]

    def _ways(self, root: Path) -> dict[str, Way]:
        plain, whole = zip(*((apart(read_plain, root), apart(prepared, root)) for _ in range(self.rounds)), strict=True)
        index = root / "index"
        read = size_of(root / "annotations") + size_of(root / "annotation")
        sizes = {"bytes_of_annotations": read, "bytes_of_index": size_of(index)}
        return {
            "json.loads of the annotations": Way([seconds for seconds, _ in plain], peak=max(peak for _, peak in plain)),
            "prepare": Way(
                [seconds for seconds, _ in whole],
                Floor(bytes=read + size_of(index)),
                max(peak for _, peak in whole),
                apart(profiled, root),
                sizes,
            ),
        }


def prepared(root: Path) -> tuple[float, int]:
    """Seconds, and bytes of the process at most."""
    from pipeline.datasets.prepare import prepare

    began = time.perf_counter()
    prepare("vidstg", root, root / "index" / "index.jsonl")
    return time.perf_counter() - began, resident("VmHWM")


def profiled(root: Path) -> list[tuple[str, float]]:
    return profile_python(lambda: prepared(root))


def read_plain(root: Path) -> tuple[float, int]:
    began = time.perf_counter()
    for folder in ("annotations", "annotation"):
        for path in (root / folder).rglob("*.json"):
            json.loads(path.read_bytes())
    return time.perf_counter() - began, resident("VmHWM")


def make(root: Path, rng: np.random.Generator, videos: int, sentences: int, boxes: bool) -> None:
    """VidSTG's training file of exactly so many sentences; every video has some, an entry a caption and up to two questions."""
    frames = rng.integers(150, 1800, videos)
    counts = rng.choice((1, 2, 3), sentences, p=(0.05, 0.66, 0.29))  # as in the real validation file
    counts = counts[: int(np.searchsorted(np.cumsum(counts), sentences)) + 1]
    counts[-1] -= counts.sum() - sentences
    owners = [*range(videos), *rng.integers(0, videos, len(counts) - videos).tolist()]
    entries = [entry_of(owner, int(frames[owner]), int(count), rng) for owner, count in zip(owners, counts, strict=True)]
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "train_annotations.json").write_text(json.dumps(entries), encoding="utf-8")
    for number in range(videos if boxes else 0):
        path = root / "annotation" / "training" / f"{number % 1000:04d}" / f"{10**9 + number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(trajectories(number, int(frames[number]), rng)), encoding="utf-8")


def entry_of(number: int, frames: int, said: int, rng: np.random.Generator) -> dict[str, Any]:
    """An entry with the fields of the real file and `said` sentences; segment and truth lie anywhere in the video."""
    objects = objects_of(number)
    begin, first, end, last = np.sort(rng.choice(frames - 1, 4, replace=False)).tolist()
    span = {"begin_fid": first, "end_fid": end}
    subject, target = rng.choice(len(objects), 2, replace=False).tolist()
    sentences = [
        {"description": " ".join(rng.choice(WORDS, 9)) + ".", "type": "person", "target_id": subject if place < 2 else target}
        for place in range(said)
    ]
    return {
        "vid": str(10**9 + number),
        "fps": 29.97002997002997,
        "frame_count": frames,
        "used_segment": {"begin_fid": begin, "end_fid": last},
        "width": 640,
        "height": 360,
        "subject/objects": objects,
        "used_relation": {"subject_tid": subject, "object_tid": target, "predicate": "watch", **span},
        "temporal_gt": span,
        "captions": sentences[:1],
        "questions": sentences[1:],
    }


def objects_of(number: int) -> list[dict[str, Any]]:
    """Two to seven objects, by the video's number."""
    return [{"tid": tid, "category": CATEGORIES[(number + tid) % len(CATEGORIES)]} for tid in range(2 + number % 6)]


def trajectories(number: int, frames: int, rng: np.random.Generator) -> dict[str, Any]:
    """VidOR's file of one video: every object has a box in every frame."""
    objects = objects_of(number)
    corners = rng.integers(0, 160, (frames, len(objects), 2)).tolist()
    sides = [
        [
            {"tid": tid, "bbox": {"xmin": x, "ymin": y, "xmax": x + 120, "ymax": y + 90}, "generated": 0, "tracker": "none"}
            for tid, (x, y) in enumerate(row)
        ]
        for row in corners
    ]
    return {
        "version": "VERSION 1.0",
        "video_id": str(10**9 + number),
        "frame_count": frames,
        "fps": 29.97002997002997,
        "width": 640,
        "height": 360,
        "subject/objects": objects,
        "trajectories": sides,
        "relation_instances": [],
    }

"""How long `stvg-prepare` takes for a data set of VidSTG's size, and how much memory.

    .venv/bin/python -m benchmarks.index        # half a minute; writes benchmarks/results/index.md

A training split with the real numbers of videos and sentences is drawn from a seed and written as VidSTG's files; then it is
indexed in a process of its own, without boxes, and once more, a tenth of it, with VidOR files of a realistic size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import where

VIDEOS, SENTENCES = 5436, 80684
SHARE_WITH_BOXES = 10
"""One video in so many is indexed with boxes: VidOR's files of all of them would take gigabytes."""
SEED = 0
WORDS = "the an adult child dog ball in red black clothes is behind next to holds what who".split()  # noqa: SIM905
CATEGORIES = ("adult", "child", "dog", "ball/sports_ball", "bicycle", "guitar", "car")
RESULT = Path(__file__).parent / "results" / "index.md"
CHILD = """
import json, resource, sys, time
from pathlib import Path
from pipeline.prepare import prepare
began = time.perf_counter()
report = prepare("vidstg", Path(sys.argv[1]), Path(sys.argv[2]))
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": seconds, "peak": peak, "queries": report.queries, "videos": report.videos, "left_out": report.left_out}))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        without = measure(Path(place) / "without", VIDEOS, SENTENCES, boxes=False)
        few = VIDEOS // SHARE_WITH_BOXES
        with_boxes = measure(Path(place) / "with", few, SENTENCES * few // VIDEOS, boxes=True)
    text = result([("all videos, without boxes", without), ("a tenth of the videos, with boxes", with_boxes)])
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def measure(root: Path, videos: int, sentences: int, boxes: bool) -> dict[str, Any]:
    """Make the data set, index it in a child process, and check the index before its time is believed."""
    rng = np.random.default_rng(SEED)
    make(root, rng, videos, sentences, boxes)
    index = root / "index" / "index.jsonl"
    done = subprocess.run([sys.executable, "-c", CHILD, str(root), str(index)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    lines = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len({line["id"] for line in lines}) == sentences, (len(lines), sentences)
    assert {line["video"] for line in lines} == {str(10**9 + number) for number in range(videos)}
    assert all((line["truth"]["track"] is not None) == boxes for line in lines)
    tracks = index.with_name("tracks.npz")
    sizes = {"annotations": size_of(root / "annotations"), "boxes": size_of(root / "annotation"), "index": index.stat().st_size}
    return found | sizes | {"tracks": tracks.stat().st_size}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


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


def result(measured: list[tuple[str, dict[str, Any]]]) -> str:
    rows = "\n".join(
        f"| {name} | {found['videos']:,} | {found['queries']:,} | {megabytes(found['annotations'])} | {megabytes(found['boxes'])} "
        f"| about {found['seconds']:.1f} s | {megabytes(found['peak'])} | {megabytes(found['index'])} | {megabytes(found['tracks'])} |"
        for name, found in measured
    )
    return f"""# Indexing a data set of VidSTG's size

`pipeline.prepare.prepare` on a training split drawn from seed {SEED}: as many videos and sentences as VidSTG's, the fields of its files,
sentences of nine words. No videos are there, so none is probed. With boxes, VidOR's files hold a box for two to seven objects in each
of 150 to 1,800 frames. Every index was checked before its time was believed: all sentences, each once, with a track or without.

| what | videos | queries | annotations | box files | time | peak resident memory | index | tracks |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

Times are rough, the machine does other things too; the start of Python is not in them. Memory is the process's highest.

**Where.** {where("pydantic", "numpy")}.

**Command**

```
.venv/bin/python -m benchmarks.index
```
"""


def megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


if __name__ == "__main__":
    main()

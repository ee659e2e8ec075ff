"""How fast each decoder gives frames, here and in a process of its own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Floor, Group, Way
from benchmarks.synthetic_data import make_video
from benchmarks.timing import in_turns, profile_python
from pipeline.video import DecodeChild, VideoFacts, open_frames, probe

WORK_SECONDS = 0.002
Read = Callable[[], Any]
"""Opens a stream of all frames of one video: a context manager, iterator of `(number, picture)`."""


@dataclass
class Decode(Case):
    """Reading whole videos in order, opening included, with PyAV and with decord (where it is trusted with the file), in the
    process that reads and in a child process that is reused, as extraction does; for a consumer that only takes the pictures, and
    for one that computes for 2 ms after each: the child decodes meanwhile. One thread a decoder. All give the same pictures, to the
    bit. The floor is writing the pictures; what the codec must compute is not in it. Where the time goes is said of the process that
    reads: of a child's it is what it waits.
    """

    packages = ("numpy", "av", "decord")
    rounds: int = 5
    videos: tuple[tuple[str, tuple[int, int], int], ...] = (
        ("small.mp4", (320, 240), 400),
        ("middle.mp4", (640, 360), 300),
        ("middle.avi", (640, 360), 200),
        ("large.mp4", (1280, 720), 150),
    )

    def __enter__(self) -> Decode:
        super().__enter__()
        self.child = DecodeChild().__enter__()
        self.paths = [make_video(self.place / name, size, frames) for name, size, frames in self.videos]
        return self

    def __exit__(self, *error: Any) -> None:
        self.child.__exit__(*error)
        super().__exit__(*error)

    def agree(self) -> None:
        for path in self.paths:
            digests = {name: digest(read) for name, read in ways_of(path, probe(path), self.child).items()}
            assert len(set(digests.values())) == 1, f"{path}: {digests}"

    def measure(self) -> list[Group]:
        return [group for path in self.paths for work in (0.0, WORK_SECONDS) for group in self._groups(path, work)]

    def _groups(self, path: Path, work: float) -> list[Group]:
        facts = probe(path)
        reads = {name: partial(consume, read, work, facts.frame_count) for name, read in ways_of(path, facts, self.child).items()}
        pixels = facts.frame_count * facts.size[0] * facts.size[1] * 3
        tops = {} if work else {name: profile_python(read) for name, read in reads.items()}
        found = {
            name: Way(own, Floor(bytes=pixels), top=tops.get(name, []), facts={"frames_per_second": facts.frame_count / min(own)})
            for name, own in in_turns(reads, self.rounds).items()
        }
        title = f"{path.name}, {facts.size[0]}×{facts.size[1]}, {facts.frame_count} frames"
        return [Group(f"{title}, {work * 1e3:.0f} ms of work each" if work else title, found)]


def ways_of(path: Path, facts: VideoFacts, child: DecodeChild) -> dict[str, Read]:
    """The decoder that is chosen for the file first, in this process; then in the child; then the other one."""
    wanted = range(facts.frame_count)
    with open_frames(path, facts, wanted) as frames:
        chosen = frames.decoder
    ways: dict[str, Read] = {chosen: lambda: open_frames(path, facts, wanted), f"child {chosen}": lambda: child.frames(path, facts, wanted)}
    return ways if chosen == "pyav" else ways | {"pyav": lambda: open_frames(path, facts, wanted, "pyav")}


def consume(read: Read, work: float, expected: int) -> None:
    """Read all frames, computing for `work` seconds after each."""
    count = 0
    with read() as frames:
        for _ in frames:
            count += 1
            end = time.perf_counter() + work
            while time.perf_counter() < end:
                pass
    assert count == expected, (count, expected)


def digest(read: Read) -> str:
    """SHA-256 of all numbers and pictures."""
    found = hashlib.sha256()
    with read() as frames:
        for number, picture in frames:
            found.update(number.to_bytes(8, "little") + picture.tobytes())
    return found.hexdigest()

"""How fast each decoder gives frames, here and in a process of its own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Comparison, LowerBound, Measurement
from benchmarks.synthetic_data import make_video
from benchmarks.timing import profile_python, time_interleaved
from pipeline.video import ProcessDecoder, VideoMetadata, open_frames, probe

WORK_SECONDS = 0.002
FrameOpener = Callable[[], Any]
"""Opens a stream of all frames of one video: a context manager, iterator of `(number, picture)`."""


@dataclass
class Decode(Case):
    """Decoding speed of each decoder, in the process and in a child process.

    Reading whole videos in order, opening included, with PyAV and with decord (where it is trusted
    with the file), in the process that reads and in a child process that is reused, as extraction
    does; for a consumer that only takes the pictures, and for one that computes for 2 ms after
    each: the child decodes meanwhile. One thread a decoder. All give the same pictures, to the bit.
    The floor is writing the pictures; what the codec must compute is not in it. Where the time goes
    is said of the process that reads: of a child's it is what it waits.
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
        self.process_decoder = ProcessDecoder().__enter__()
        self.paths = [
            make_video(self.work_dir / name, size, frames) for name, size, frames in self.videos
        ]
        return self

    def __exit__(self, *error: Any) -> None:
        self.process_decoder.__exit__(*error)
        super().__exit__(*error)

    def check_agreement(self) -> None:
        """Check that all variants agree."""
        for path in self.paths:
            digests = {
                name: compute_digest(read)
                for name, read in build_readers(path, probe(path), self.process_decoder).items()
            }
            assert len(set(digests.values())) == 1, f"{path}: {digests}"

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        return [
            group
            for path in self.paths
            for work in (0.0, WORK_SECONDS)
            for group in self._measure_video(path, work)
        ]

    def _measure_video(self, path: Path, work: float) -> list[Comparison]:
        facts = probe(path)
        reads = {
            name: partial(consume, read, work, facts.frame_count)
            for name, read in build_readers(path, facts, self.process_decoder).items()
        }
        pixels = facts.frame_count * facts.size[0] * facts.size[1] * 3
        tops = {} if work else {name: profile_python(read) for name, read in reads.items()}
        found = {
            name: Measurement(
                own,
                LowerBound(bytes=pixels),
                hotspots=tops.get(name, []),
                extra={"frames_per_second": facts.frame_count / min(own)},
            )
            for name, own in time_interleaved(reads, self.rounds).items()
        }
        title = f"{path.name}, {facts.size[0]}×{facts.size[1]}, {facts.frame_count} frames"
        return [Comparison(f"{title}, {work * 1e3:.0f} ms of work each" if work else title, found)]


def build_readers(
    path: Path, metadata: VideoMetadata, process_decoder: ProcessDecoder
) -> dict[str, FrameOpener]:
    """The decoder that is chosen for the file first, in this process; then in the child; then the
    other one.
    """
    wanted = range(metadata.frame_count)
    with open_frames(path, metadata, wanted) as frames:
        chosen = frames.decoder
    ways: dict[str, FrameOpener] = {
        chosen: lambda: open_frames(path, metadata, wanted),
        f"child {chosen}": lambda: process_decoder.frames(path, metadata, wanted),
    }
    return (
        ways
        if chosen == "pyav"
        else ways | {"pyav": lambda: open_frames(path, metadata, wanted, "pyav")}
    )


def consume(read: FrameOpener, work_seconds: float, expected: int) -> None:
    """Read all frames, computing for `work` seconds after each."""
    count = 0
    with read() as frames:
        for _ in frames:
            count += 1
            end = time.perf_counter() + work_seconds
            while time.perf_counter() < end:
                pass
    assert count == expected, (count, expected)


def compute_digest(read: FrameOpener) -> str:
    """SHA-256 of all numbers and pictures."""
    found = hashlib.sha256()
    with read() as frames:
        for number, picture in frames:
            found.update(number.to_bytes(8, "little") + picture.tobytes())
    return found.hexdigest()

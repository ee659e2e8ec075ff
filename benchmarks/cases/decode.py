"""Decoding speed of each decoder, in the process and in a child process."""

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
"""Opens all frames of one video: a context manager that iterates over (index, frame)."""


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

    def _measure_video(self, path: Path, work_seconds: float) -> list[Comparison]:
        """Measure all decoders of one video, with a consumer that works after each frame."""
        metadata = probe(path)
        width, height = metadata.size
        num_frames = metadata.frame_count

        readers = {}
        for name, opener in build_readers(path, metadata, self.process_decoder).items():
            readers[name] = partial(consume, opener, work_seconds, num_frames)

        hotspots = {}
        if not work_seconds:
            hotspots = {name: profile_python(reader) for name, reader in readers.items()}

        lower_bound = LowerBound(bytes=num_frames * width * height * 3)
        measurements = {}
        for name, seconds in time_interleaved(readers, self.rounds).items():
            measurements[name] = Measurement(
                seconds,
                lower_bound,
                hotspots=hotspots.get(name, []),
                extra={"frames_per_second": num_frames / min(seconds)},
            )

        title = f"{path.name}, {width}×{height}, {num_frames} frames"
        if work_seconds:
            title += f", {work_seconds * 1e3:.0f} ms of work each"
        return [Comparison(title, measurements)]


def build_readers(
    path: Path, metadata: VideoMetadata, process_decoder: ProcessDecoder
) -> dict[str, FrameOpener]:
    """Return the decoders of a video.

    Args:
        path: Path of the video.
        metadata: The video's metadata.
        process_decoder: Decoder in a child process.

    Returns:
        Openers by name: the default decoder of the file in this process, the same in the child
        process, and PyAV if it is not the default.
    """
    frame_indices = range(metadata.frame_count)
    with open_frames(path, metadata, frame_indices) as frames:
        chosen = frames.decoder

    openers: dict[str, FrameOpener] = {
        chosen: lambda: open_frames(path, metadata, frame_indices),
        f"child {chosen}": lambda: process_decoder.frames(path, metadata, frame_indices),
    }
    if chosen != "pyav":
        openers["pyav"] = lambda: open_frames(path, metadata, frame_indices, "pyav")

    return openers


def consume(read: FrameOpener, work_seconds: float, expected: int) -> None:
    """Read all frames, and stay busy for a while after each.

    Args:
        read: Opener of the frames.
        work_seconds: Busy time after each frame.
        expected: Expected number of frames.
    """
    count = 0
    with read() as frames:
        for _ in frames:
            count += 1
            end = time.perf_counter() + work_seconds
            while time.perf_counter() < end:
                pass
    assert count == expected, (count, expected)


def compute_digest(read: FrameOpener) -> str:
    """Compute the SHA-256 digest of all frames and their indices.

    Args:
        read: Opener of the frames.

    Returns:
        The digest in hexadecimal.
    """
    digest = hashlib.sha256()
    with read() as frames:
        for frame_index, frame in frames:
            digest.update(frame_index.to_bytes(8, "little") + frame.tobytes())

    return digest.hexdigest()

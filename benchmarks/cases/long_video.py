"""Time and memory of grounding in a long video, window by window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.case import ONE_THREAD, Case, Comparison, LowerBound, Measurement
from benchmarks.flops import count_flops
from benchmarks.machine import time_call
from benchmarks.synthetic_data import FPS, TEXT, build_grounder, make_queries, make_video
from benchmarks.timing import (
    count_folder_bytes,
    profile_torch,
    read_process_memory,
    run_in_spawned_process,
)
from pipeline.video import probe

SENTENCES = [TEXT, "another one does not"]
WorkFactory = Callable[[Path, Path, Path], Callable[[], object]]
"""Prepares a run, a video and a folder of its features, and returns the function to time."""


@dataclass
class LongVideo(Case):
    """Time and memory of grounding in short and long videos.

    Seconds per minute of video, and the peak memory of the whole process, libraries and networks
    included, for a short and a long video: asked about as it is decoded, its features dropped
    window by window (streamed); looked at once and kept on disk; and one more sentence about what
    is kept. A run of one step (CSDVL, preset `shapes`, tiny backbones, N_short 96) answers in
    windows of `window` seconds. Wanted of the long one: at most 1.05 times the short one's memory,
    and at most 1.25 its time per minute. Streamed and kept answers about the short one are checked
    to be the same first. The floor is the networks' operations on the short one, and writing the
    pictures; for what is kept, reading the features instead.
    """

    packages = ("torch", "numpy", "av", "decord")
    environment = ONE_THREAD
    minutes: tuple[float, float] = (2, 20)
    window_seconds: float = 7
    size: tuple[int, int] = (160, 96)

    def __enter__(self) -> LongVideo:
        super().__enter__()
        frames = round(self.window_seconds * FPS)
        make_video(self.work_dir / "videos" / "v0.mp4", self.size, frames)
        build_grounder(
            self.work_dir, make_queries(["v0"], frames, self.size)[0], "tiny", 96, "shapes", "cpu"
        )
        self.videos = {
            count: make_video(self.work_dir / f"{count}.mp4", self.size, round(60 * count) * FPS)
            for count in self.minutes
        }
        return self

    def check_agreement(self) -> None:
        """Check that all variants agree."""
        from grounding.predictor.grounder import Grounder

        grounder, path = Grounder(self.work_dir / "run", device="cpu"), self.videos[self.minutes[0]]
        assert probe(path).frame_count == round(60 * self.minutes[0]) * FPS
        assert grounder.ground_encoded(
            grounder.encode_video(path, self.work_dir / "agreed"), SENTENCES
        ) == grounder.ground(path, SENTENCES)

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        return [
            Comparison(title, self._build_measurements(work, title == CACHED_QUERY))
            for title, work in VARIANTS.items()
        ]

    def _build_measurements(self, work: WorkFactory, later: bool) -> dict[str, Measurement]:
        """Measure each length in a fresh process, then profile the short video in this process."""
        short = self.minutes[0]
        cache_dir = self.work_dir / f"kept-{short:g}"
        measurements = {
            f"{count:g} min": self._measure_length(work, count) for count in self.minutes
        }
        folders = [cache_dir if later else self.work_dir / name for name in ("counted", "profiled")]
        counted, profiled = (
            work(self.work_dir / "run", self.videos[short], folder) for folder in folders
        )
        moved = (
            count_folder_bytes(cache_dir) / short
            if later
            else FPS * 60 * self.size[0] * self.size[1] * 3
        )
        floor = LowerBound(count_flops(counted) / short, moved)
        for measurement in measurements.values():
            measurement.lower_bound = floor
        measurements[f"{short:g} min"].hotspots = profile_torch(profiled, "cpu")
        return measurements

    def _measure_length(self, work: WorkFactory, minutes: float) -> Measurement:
        """Measure one length in a fresh process, in seconds per minute of video."""
        seconds, peak = run_in_spawned_process(
            measure_work,
            work,
            self.work_dir / "run",
            self.videos[minutes],
            self.work_dir / f"kept-{minutes:g}",
        )
        return Measurement([seconds / minutes], peak_bytes=peak)


def measure_work(factory: WorkFactory, run: Path, video: Path, folder: Path) -> tuple[float, int]:
    """Time a prepared function in this process.

    Args:
        factory: Preparation.
        run: Run directory.
        video: Path of the video.
        folder: Folder of the features.

    Returns:
        Seconds, and bytes of this process at the peak.
    """
    return time_call(factory(run, video, folder)), read_process_memory("VmHWM")


def prepare_streaming(run: Path, video: Path, folder: Path) -> Callable[[], object]:
    """Prepare one sentence on a video that is decoded; features are discarded.

    Args:
        run: Run directory.
        video: Path of the video.
        folder: Folder of the features.

    Returns:
        The function to time.
    """
    from grounding.predictor.grounder import Grounder

    grounder = Grounder(run, device="cpu")
    return lambda: grounder.ground(video, SENTENCES[:1])


def prepare_caching(run: Path, video: Path, folder: Path) -> Callable[[], object]:
    """Prepare the encoding of a video into a cache.

    Args:
        run: Run directory.
        video: Path of the video.
        folder: Folder of the features.

    Returns:
        The function to time.
    """
    from grounding.predictor.grounder import Grounder

    grounder = Grounder(run, device="cpu")
    return lambda: grounder.encode_video(video, folder)


def prepare_cached_query(run: Path, video: Path, folder: Path) -> Callable[[], object]:
    """Prepare one more sentence on cached features.

    Args:
        run: Run directory.
        video: Path of the video.
        folder: Folder of the features.

    Returns:
        The function to time.
    """
    from grounding.predictor.grounder import Grounder

    grounder = Grounder(run, device="cpu")
    features = grounder.encode_video(video, folder)  # reads the cache
    return lambda: grounder.ground_encoded(features, SENTENCES[1:])


CACHED_QUERY = "one more sentence about what is kept"
VARIANTS = {
    "streamed, one sentence": prepare_streaming,
    "kept": prepare_caching,
    CACHED_QUERY: prepare_cached_query,
}

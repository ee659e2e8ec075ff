"""What an answer about a long video costs, window by window: it grows with the video in time alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.case import ONE_THREAD, Case, Floor, Group, Way
from benchmarks.flops import operations_of
from benchmarks.machine import timed
from benchmarks.synthetic_data import FPS, TEXT, asked_run, make_queries, make_video
from benchmarks.timing import apart, profile_torch, resident, size_of
from pipeline.video import probe

SENTENCES = [TEXT, "another one does not"]
Work = Callable[[Path, Path, Path], Callable[[], object]]
"""Of a run, a video and a folder for its features: all that comes before the clock, and gives what is timed."""


@dataclass
class LongVideo(Case):
    """Seconds per minute of video, and the peak memory of the whole process, libraries and networks included, for a short and a long
    video: asked about as it is decoded, its features dropped window by window (streamed); looked at once and kept on disk; and one more
    sentence about what is kept. A run of one step (CSDVL, preset `shapes`, tiny backbones, N_short 96) answers in windows of
    `window` seconds. Wanted of the long one: at most 1.05 times the short one's memory, and at most 1.25 its time per minute.
    Streamed and kept answers about the short one are checked to be the same first. The floor is the networks' operations on the short
    one, and writing the pictures; for what is kept, reading the features instead.
    """

    packages = ("torch", "numpy", "av", "decord")
    environment = ONE_THREAD
    minutes: tuple[float, float] = (2, 20)
    window: float = 7
    size: tuple[int, int] = (160, 96)

    def __enter__(self) -> LongVideo:
        super().__enter__()
        frames = round(self.window * FPS)
        make_video(self.place / "videos" / "v0.mp4", self.size, frames)
        asked_run(self.place, make_queries(["v0"], frames, self.size)[0], "tiny", 96, "shapes", "cpu")
        self.videos = {count: make_video(self.place / f"{count}.mp4", self.size, round(60 * count) * FPS) for count in self.minutes}
        return self

    def agree(self) -> None:
        from grounding.predictor.grounder import Grounder

        grounder, path = Grounder(self.place / "run", device="cpu"), self.videos[self.minutes[0]]
        assert probe(path).frame_count == round(60 * self.minutes[0]) * FPS
        assert grounder.answer(grounder.look(path, self.place / "agreed"), SENTENCES) == grounder.ask(path, SENTENCES)

    def measure(self) -> list[Group]:
        return [Group(title, self._ways(work, title == LATER)) for title, work in WAYS.items()]

    def _ways(self, work: Work, later: bool) -> dict[str, Way]:
        """By length of the video; where the time goes with the short one is found when all times are, in this process."""
        short, there = self.minutes[0], self.place / f"kept-{self.minutes[0]:g}"
        found = {f"{count:g} min": self._way(work, count) for count in self.minutes}
        folders = [there if later else self.place / name for name in ("counted", "profiled")]
        counted, profiled = (work(self.place / "run", self.videos[short], folder) for folder in folders)
        moved = size_of(there) / short if later else FPS * 60 * self.size[0] * self.size[1] * 3
        floor = Floor(operations_of(counted) / short, moved)
        for way in found.values():
            way.floor = floor
        found[f"{short:g} min"].top = profile_torch(profiled, "cpu")
        return found

    def _way(self, work: Work, minutes: float) -> Way:
        seconds, peak = apart(measured, work, self.place / "run", self.videos[minutes], self.place / f"kept-{minutes:g}")
        return Way([seconds / minutes], peak=peak)


def measured(work: Work, run: Path, video: Path, folder: Path) -> tuple[float, int]:
    """Seconds, and the process' peak."""
    return timed(work(run, video, folder)), resident("VmHWM")


def streamed(run: Path, video: Path, folder: Path) -> Callable[[], object]:
    from grounding.predictor.grounder import Grounder

    grounder = Grounder(run, device="cpu")
    return lambda: grounder.ask(video, SENTENCES[:1])


def kept(run: Path, video: Path, folder: Path) -> Callable[[], object]:
    from grounding.predictor.grounder import Grounder

    grounder = Grounder(run, device="cpu")
    return lambda: grounder.look(video, folder)


def kept_and_asked(run: Path, video: Path, folder: Path) -> Callable[[], object]:
    from grounding.predictor.grounder import Grounder

    grounder = Grounder(run, device="cpu")
    seen = grounder.look(video, folder)  # found there
    return lambda: grounder.answer(seen, SENTENCES[1:])


LATER = "one more sentence about what is kept"
WAYS = {"streamed, one sentence": streamed, "kept": kept, LATER: kept_and_asked}

"""What an answer about a long video costs, window by window: it grows with the video in time alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.case import ONE_THREAD, Case, Group, Way
from benchmarks.machine import timed
from benchmarks.made import FPS, TEXT, asked_run, make_queries, make_video
from benchmarks.measuring import apart, resident
from pipeline.decode import probe

SENTENCES = [TEXT, "another one does not"]


@dataclass
class LongVideo(Case):
    """Seconds per minute of video, and the peak memory of the whole process, libraries and networks included, for a short and a long
    video: asked about as it is decoded, its features dropped window by window (streamed); looked at once and kept on disk; and one more
    sentence about what is kept. A run of one step (CSDVL, preset `shapes`, tiny backbones, N_short 96) answers in windows of
    `window` seconds. Wanted of the long one: at most 1.05 times the short one's memory, and at most 1.25 its time per minute.
    Streamed and kept answers about the short one are checked to be the same first.
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
        from grounding.ask import Grounder

        grounder, path = Grounder(self.place / "run", device="cpu"), self.videos[self.minutes[0]]
        assert probe(path).frame_count == round(60 * self.minutes[0]) * FPS
        assert grounder.answer(grounder.look(path, self.place / "agreed"), SENTENCES) == grounder.ask(path, SENTENCES)

    def measure(self) -> list[Group]:
        ways = {"streamed, one sentence": streamed, "kept": kept, "one more sentence about what is kept": kept_and_asked}
        return [Group(title, {f"{count:g} min": self._way(work, count) for count in self.minutes}) for title, work in ways.items()]

    def _way(self, work: Callable[[Path, Path, Path], tuple[float, int]], minutes: float) -> Way:
        seconds, peak = apart(work, self.place / "run", self.videos[minutes], self.place / f"kept-{minutes:g}")
        return Way([seconds / minutes], peak=peak)


def streamed(run: Path, video: Path, folder: Path) -> tuple[float, int]:
    """Seconds, and the process' peak."""
    from grounding.ask import Grounder

    grounder = Grounder(run, device="cpu")
    return timed(lambda: grounder.ask(video, SENTENCES[:1])), resident("VmHWM")


def kept(run: Path, video: Path, folder: Path) -> tuple[float, int]:
    from grounding.ask import Grounder

    grounder = Grounder(run, device="cpu")
    return timed(lambda: grounder.look(video, folder)), resident("VmHWM")


def kept_and_asked(run: Path, video: Path, folder: Path) -> tuple[float, int]:
    from grounding.ask import Grounder

    grounder = Grounder(run, device="cpu")
    seen = grounder.look(video, folder)  # found there
    return timed(lambda: grounder.answer(seen, SENTENCES[1:])), resident("VmHWM")

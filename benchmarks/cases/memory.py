"""What memory decoding and extraction take as videos grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import ONE_THREAD, Case, Floor, Group, Way
from benchmarks.machine import timed
from benchmarks.synthetic_data import FPS, make_video
from benchmarks.timing import apart, profile_torch, resident

PAUSE_SECONDS = 0.01
PRODUCTS = ("appearance", "motion")


@dataclass
class Memory(Case):
    """Peak memory of a whole process that streams a video's features (tiny backbones), and its time for a second of video, networks at
    hand, for videos of growing length, against the shortest: neither must grow with the video. The floor is the networks' operations on
    the shortest, and writing the pictures. And the memory of the process that decodes a 720p video for a consumer that pauses 10 ms
    after each picture, by decoder; the child is stopped while its ring is full. Frames and rows are counted first.
    """

    packages = ("torch", "av", "decord")
    environment = ONE_THREAD
    seconds: tuple[int, ...] = (10, 60, 300)
    size: tuple[int, int] = (320, 240)
    slow: tuple[tuple[int, int], int] = ((1280, 720), 250)

    def __enter__(self) -> Memory:
        super().__enter__()
        self.videos = {length: make_video(self.place / f"{length}.mp4", self.size, length * FPS) for length in self.seconds}
        self.slow_video = make_video(self.place / "slow.mp4", *self.slow)
        return self

    def agree(self) -> None:
        """The shortest one's features are those that are made whole."""
        from pipeline.features.config import SamplingConfig
        from pipeline.features.stream import extract_video

        whole = extract_video(self.videos[self.seconds[0]], SamplingConfig(short=96), backbones()).products
        for product, rows in streamed(self.videos[self.seconds[0]]).items():
            np.testing.assert_array_equal(rows, whole[product][0])

    def measure(self) -> list[Group]:
        from benchmarks.flops import operations_of  # takes torch, which the processes that decode are to be without

        shortest, each_second = partial(stream, self.videos[self.seconds[0]]), FPS * self.size[0] * self.size[1] * 3
        floor = Floor(operations_of(shortest) / self.seconds[0], each_second)
        grows = {f"{length} s": self._streaming(length, floor) for length in self.seconds}
        grows[f"{self.seconds[0]} s"].top = profile_torch(shortest, "cpu")
        by = {
            "the child that decord runs in, stopped while its ring is full": Way(peak=apart(peak_of_child, self.slow_video)),
            **{
                f"{decoder}, in the consumer's process": Way(peak=apart(peak_of_decoder, self.slow_video, decoder))
                for decoder in ("pyav", "decord")
            },
        }
        (width, height), frames = self.slow
        slow = Group(f"{frames} frames of {width}×{height}, a slow consumer", by)
        return [Group("features of a video, streamed, by its second", grows), slow]

    def _streaming(self, length: int, floor: Floor) -> Way:
        seconds, peak = apart(streaming, self.videos[length])
        return Way([seconds / length], floor, peak)


def backbones() -> dict[str, Any]:
    from pipeline.encoders.optimize import frozen
    from pipeline.weights.load import load_backbone

    return {product: frozen(load_backbone(product, "tiny", "random:0").encoder) for product in PRODUCTS}


def drop(product: str, rows: np.ndarray) -> None: ...


def stream(path: Path, take: Callable[[str, np.ndarray], None] = drop, encoders: dict[str, Any] | None = None) -> None:
    """Hand on each block of rows as it is made, decoded in a child as extraction does."""
    from pipeline.features.config import SamplingConfig
    from pipeline.features.stream import FeatureStream
    from pipeline.video import DecodeChild

    with DecodeChild() as child:
        for product, rows in FeatureStream(path, SamplingConfig(short=96), encoders or backbones(), decoder=child):
            take(product, rows)


def streamed(path: Path) -> dict[str, np.ndarray]:
    """All rows of each product."""
    blocks: dict[str, list[np.ndarray]] = {product: [] for product in PRODUCTS}
    stream(path, lambda product, rows: blocks[product].append(rows))
    return {product: np.concatenate(rows) for product, rows in blocks.items()}


def streaming(path: Path) -> tuple[float, int]:
    """Seconds, and the process' peak."""
    encoders = backbones()
    return timed(lambda: stream(path, drop, encoders)), resident("VmHWM")


def peak_of_decoder(path: Path, decoder: Any) -> int:
    from pipeline.video import open_frames, probe

    facts = probe(path)
    assert read_slowly(open_frames(path, facts, range(facts.frame_count), decoder)) == facts.frame_count
    return resident("VmHWM")


def peak_of_child(path: Path) -> int:
    from pipeline.video import DecodeChild

    with DecodeChild() as child:
        facts = child.probe(path)
        assert read_slowly(child.frames(path, facts, range(facts.frame_count))) == facts.frame_count
        return resident("VmHWM", child.pid or "self")


def read_slowly(frames: Any) -> int:
    count = 0
    with frames:
        for _ in frames:
            count += 1
            time.sleep(PAUSE_SECONDS)
    return count

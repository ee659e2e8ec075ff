"""Peak memory of decoding and extraction, by length of the video."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import ONE_THREAD, Case, Comparison, LowerBound, Measurement
from benchmarks.machine import time_call
from benchmarks.synthetic_data import FPS, make_video
from benchmarks.timing import profile_torch, read_process_memory, run_in_spawned_process

PAUSE_SECONDS = 0.01
PRODUCTS = ("appearance", "motion")


@dataclass
class Memory(Case):
    """Peak memory of decoding and extraction, by length of the video.

    Peak memory of a whole process that streams a video's features (tiny backbones), and its time
    for a second of video, networks at hand, for videos of growing length, against the shortest:
    neither must grow with the video. The floor is the networks' operations on the shortest, and
    writing the pictures. And the memory of the process that decodes a 720p video for a consumer
    that pauses 10 ms after each picture, by decoder; the child is stopped while its ring is full.
    Frames and rows are counted first.
    """

    packages = ("torch", "av", "decord")
    environment = ONE_THREAD
    video_seconds: tuple[int, ...] = (10, 60, 300)
    size: tuple[int, int] = (320, 240)
    slow_video_spec: tuple[tuple[int, int], int] = ((1280, 720), 250)

    def __enter__(self) -> Memory:
        super().__enter__()
        self.videos = {
            length: make_video(self.work_dir / f"{length}.mp4", self.size, length * FPS)
            for length in self.video_seconds
        }
        self.slow_video = make_video(self.work_dir / "slow.mp4", *self.slow_video_spec)
        return self

    def check_agreement(self) -> None:
        """Check that streamed features equal those of a whole extraction, on the shortest video."""
        from pipeline.features.config import SamplingConfig
        from pipeline.features.stream import extract_video

        expected = extract_video(
            self.videos[self.video_seconds[0]], SamplingConfig(short_side=96), load_backbones()
        ).products
        for product, rows in collect_features(self.videos[self.video_seconds[0]]).items():
            np.testing.assert_array_equal(rows, expected[product][0])

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        # Imports torch, which the decoding processes must not.
        from benchmarks.flops import count_flops

        shortest = partial(stream_features, self.videos[self.video_seconds[0]])
        bytes_per_second = FPS * self.size[0] * self.size[1] * 3
        floor = LowerBound(count_flops(shortest) / self.video_seconds[0], bytes_per_second)
        by_length = {
            f"{length} s": self._measure_length(length, floor) for length in self.video_seconds
        }
        by_length[f"{self.video_seconds[0]} s"].hotspots = profile_torch(shortest, "cpu")

        by_decoder = {
            "the child that decord runs in, stopped while its ring is full": Measurement(
                peak_bytes=run_in_spawned_process(measure_child_peak, self.slow_video)
            ),
            **{
                f"{decoder}, in the consumer's process": Measurement(
                    peak_bytes=run_in_spawned_process(
                        measure_decoder_peak, self.slow_video, decoder
                    )
                )
                for decoder in ("pyav", "decord")
            },
        }
        (width, height), frames = self.slow_video_spec
        slow = Comparison(f"{frames} frames of {width}×{height}, a slow consumer", by_decoder)
        return [Comparison("features of a video, streamed, by its second", by_length), slow]

    def _measure_length(self, length: int, floor: LowerBound) -> Measurement:
        """Measure one video in a fresh process, in seconds per second of video."""
        seconds, peak = run_in_spawned_process(measure_streaming, self.videos[length])
        return Measurement([seconds / length], floor, peak)


def load_backbones() -> dict[str, Any]:
    """Load the tiny backbones, optimized for inference, by product."""
    from pipeline.encoders.optimize import optimize_for_inference
    from pipeline.weights.load import load_backbone

    return {
        product: optimize_for_inference(load_backbone(product, "tiny", "random:0").encoder)
        for product in PRODUCTS
    }


def discard_rows(product: str, rows: np.ndarray) -> None:
    """Discard a block of rows.

    Args:
        product: Name of the product.
        rows: The block.
    """


def stream_features(
    path: Path,
    on_rows: Callable[[str, np.ndarray], None] = discard_rows,
    encoders: dict[str, Any] | None = None,
) -> None:
    """Stream the features of a video, decoded in a child process as in extraction.

    Args:
        path: Path of the video.
        on_rows: Receives each block: product and rows.
        encoders: Encoders by product; by default loaded.
    """
    from pipeline.features.config import SamplingConfig
    from pipeline.features.stream import FeatureStream
    from pipeline.video import ProcessDecoder

    with ProcessDecoder() as decoder:
        for product, rows in FeatureStream(
            path, SamplingConfig(short_side=96), encoders or load_backbones(), decoder=decoder
        ):
            on_rows(product, rows)


def collect_features(path: Path) -> dict[str, np.ndarray]:
    """Stream the features of a video and collect them.

    Args:
        path: Path of the video.

    Returns:
        All rows by product.
    """
    blocks: dict[str, list[np.ndarray]] = {product: [] for product in PRODUCTS}
    stream_features(path, lambda product, rows: blocks[product].append(rows))
    return {product: np.concatenate(rows) for product, rows in blocks.items()}


def measure_streaming(path: Path) -> tuple[float, int]:
    """Time the streaming of a video's features.

    Args:
        path: Path of the video.

    Returns:
        Seconds, and bytes of this process at the peak.
    """
    encoders = load_backbones()
    return time_call(lambda: stream_features(path, discard_rows, encoders)), read_process_memory(
        "VmHWM"
    )


def measure_decoder_peak(path: Path, decoder: Any) -> int:
    """Decode a video slowly in this process.

    Args:
        path: Path of the video.
        decoder: Name of the decoder.

    Returns:
        Bytes of this process at the peak.
    """
    from pipeline.video import open_frames, probe

    metadata = probe(path)
    assert (
        read_slowly(open_frames(path, metadata, range(metadata.frame_count), decoder))
        == metadata.frame_count
    )
    return read_process_memory("VmHWM")


def measure_child_peak(path: Path) -> int:
    """Decode a video in a child process for a slow consumer.

    Args:
        path: Path of the video.

    Returns:
        Bytes of the child process at the peak.
    """
    from pipeline.video import ProcessDecoder

    with ProcessDecoder() as decoder:
        metadata = decoder.probe(path)
        assert (
            read_slowly(decoder.frames(path, metadata, range(metadata.frame_count)))
            == metadata.frame_count
        )
        return read_process_memory("VmHWM", decoder.pid or "self")


def read_slowly(frames: Any) -> int:
    """Read all frames with a pause after each.

    Args:
        frames: Context manager of the frames.

    Returns:
        Number of frames.
    """
    count = 0
    with frames:
        for _ in frames:
            count += 1
            time.sleep(PAUSE_SECONDS)
    return count

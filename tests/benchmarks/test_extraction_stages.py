"""Stages of extraction: shape-only encoders count the operations of the real encoders."""

from __future__ import annotations

from pathlib import Path

from benchmarks.extraction_stages import ExtractionWorkload, count_video_flops, run_encoders
from benchmarks.flops import count_flops
from benchmarks.synthetic_data import FPS, make_video


def test_operations_are_counted_on_shapes_as_on_numbers(tmp_path: Path) -> None:
    workload = ExtractionWorkload("tiny", 1, 1, (64, 48), 32)
    video = make_video(tmp_path / "video.mp4", workload.size, FPS * workload.seconds)
    assert (
        count_video_flops(video, workload)
        == count_flops(lambda: run_encoders([video], workload))
        > 0
    )

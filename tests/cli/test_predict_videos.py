"""`stvg-predict` on real videos of many kinds, and on a long one: the box is drawn where the JSON
says, as long as the source lasts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import cli.predict
from grounding.visualization.tube_video import Canvas
from pipeline.datasets.shapes.joined import concatenate_videos
from pipeline.video import open_frames, probe
from tests.assets.clips import WHOLE, clips_and_shared

QUICK = (
    "av1_video.mkv",
    "discard_first_keyframe.mp4",
    "test_non_zero_start.mp4",
    "testsrc2_mpeg4.mp4",
    "testsrc2_odd_height_and_width_vp9.mp4",
    "unordered.mov",
    "video_90.mov",
)
LONGER = [
    pytest.param(name, marks=pytest.mark.soak)
    for name in (
        "02_cups.mp4",
        "demo.mp4",
        "editlist_cups.mp4",
        "flipping_a_pancake.mkv",
        "nasa_13013.mp4",
        "sine_stereo_mp2.mpg",
    )
]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.predict.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one's own: the command logs there."""
    return shutil.copytree(tiny_run.run, tmp_path_factory.mktemp("own") / "run")


def is_yellow(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = (pixels[..., channel].astype(int) for channel in range(3))
    return (red > 160) & (green > 130) & (blue < 130)


def assert_drawn(video: Path, out: Path, query: dict[str, Any]) -> None:
    """The drawn video is as long as the source, and on frames of the span yellow lies where the
    box's sides are.
    """
    source, drawing, canvas = (
        probe(video),
        probe(out),
        Canvas.from_video_size(probe(video).size, query["text"]),
    )
    assert drawing.frame_count == source.frame_count
    assert drawing.duration == pytest.approx(source.duration, abs=2e-3)
    assert (drawing.codec, drawing.size) == ("h264", canvas.size)
    assert out.read_bytes().index(b"moov") < out.read_bytes().index(b"mdat")
    sampled = {row[0]: row[1:] for row in query["boxes"][:: max(1, len(query["boxes"]) // 4)]}
    with open_frames(out, drawing, sorted(sampled)) as frames:
        for number, picture in frames:
            x1, y1, x2, y2 = (round(side * canvas.scale) for side in sampled[number])
            line = canvas.line_width
            top = picture[min(y1, canvas.image_size[1] - line) : y1 + line, x1 : max(x2, x1 + line)]
            left = picture[
                y1 : max(y2, y1 + line), min(x1, canvas.image_size[0] - line) : x1 + line
            ]
            assert is_yellow(top).mean() > 0.6, (number, "top")
            assert is_yellow(left).mean() > 0.6, (number, "left")


@pytest.mark.parametrize("video", clips_and_shared(WHOLE, [*QUICK, *LONGER]))
def test_a_real_video_is_answered_about_and_drawn(video: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    output = ("--json", out, "--video", tmp_path / "out.mp4")
    result = call(video, "a cup moves.", "--run", run, *output)
    assert result.exit_code == 0, result.stderr
    (query,) = json.loads(out.read_text())["queries"]
    assert_drawn(video, tmp_path / "out.mp4", query)


@pytest.mark.parametrize("video", clips_and_shared(["cut_short.mp4"], ["corrupted.mp4"]))
def test_a_damaged_video_is_refused(video: Path, run: Path, tmp_path: Path) -> None:
    result = call(video, "a cup moves.", "--run", run, "--json", tmp_path / "out.json")
    assert result.exit_code == 2
    assert video.name in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.json").exists()


def test_a_long_video_is_answered_about_and_kept(run: Path, tiny_run: Any, tmp_path: Path) -> None:
    """15 seconds by a run of 5-second segments; the second time nothing is decoded."""
    long = tmp_path / "long.mp4"
    concatenate_videos(long, sorted((tiny_run.root / "video").rglob("*.mp4")))
    plain = call(
        long,
        "what falls?",
        "--run",
        run,
        "--top",
        2,
        "--json",
        tmp_path / "plain.json",
        "--video",
        tmp_path / "out.mp4",
    )
    assert plain.exit_code == 0, plain.stderr
    predictions = json.loads((tmp_path / "plain.json").read_text())
    assert len(predictions["queries"][0]["others"]) == 1
    assert_drawn(long, tmp_path / "out.mp4", predictions["queries"][0])
    kept = ["--keep", tmp_path / "kept", "--top", 2]
    first = call(long, "what spins?", "--run", run, *kept)
    assert "decoding: 150/150 frames" in first.stderr
    second = call(long, "what falls?", "--run", run, *kept, "--json", tmp_path / "kept.json")
    assert second.exit_code == 0, second.stderr
    assert "decoding" not in second.stderr
    assert "predicting: 5/5 windows" in second.stderr
    assert json.loads((tmp_path / "kept.json").read_text()) == predictions
    item = call(long, "what falls?", "--run", run, "--keep", tmp_path / "kept", "--window", 20)
    assert "predicting: 1/1 windows" in item.stderr

"""A team's own video and sentences, through every command, with the full-size backbones (weights by
seed).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from cli import extract, predict, prepare, train
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query
from pipeline.store import Store
from pipeline.tracks import Tracks
from tests.assets.clips import clips_and_shared

FRAMES = 30
# of each source: its size, and how many maps `FRAMES` of its 28 or 30 frames a second are worth
SOURCES = {"demo.mp4": ((340, 256), 6), "sound.mp4": ((320, 240), 5)}
SMALL_MODEL = [
    f"model.{key}"
    for key in (
        "layers=1",
        "frames=4",
        "clips=4",
        "proposal_map_layers=1",
        "proposal_map_kernel=3",
        "d=32",
        "num_heads=2",
        "ffn_dim=64",
    )
]
pytestmark = pytest.mark.soak  # two minutes each: the full-size backbones are made and run twice


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def shorten(source: Path, target: Path, count: int) -> Path:
    """The first pictures of a video, decoded and encoded again."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream(
            "libx264", rate=round(stream.average_rate or 25), options={"preset": "ultrafast"}
        )
        copy.width, copy.height, copy.pix_fmt = stream.width, stream.height, "yuv420p"
        for number, frame in enumerate(old.decode(stream)):
            if number == count:
                break
            new.mux(
                copy.encode(
                    av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
                )
            )
        new.mux(copy.encode(None))
    return target


def run(app: typer.Typer, *arguments: Any) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("source", clips_and_shared(["sound.mp4"], ["demo.mp4"]))
def test_own_data_from_video_to_tube(source: Path, tmp_path: Path) -> None:
    size, maps = SOURCES[source.name]
    (tmp_path / "own").mkdir()
    shorten(source, tmp_path / "own" / "hall.mp4", FRAMES)
    boxes = [[40 + n, 30, 140 + n, 240] for n in range(20)]
    rows = [
        {
            "video": "hall.mp4",
            "text": "the man walks to the left",
            "tube": {"begin": 5, "boxes": boxes},
            "split": "train",
        },
        {"video": "hall.mp4", "text": "who stands still?", "split": "train"},
    ]
    own = tmp_path / "own" / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--dataset", "jsonl", "--root", own, "--index", tmp_path / "index" / "index.jsonl"]

    run(prepare.app, *data)
    queries = list(read_jsonl(tmp_path / "index" / "index.jsonl", Query))
    result = [(query.video, query.frame_count, query.size, query.split) for query in queries]
    assert result == [("hall.mp4", FRAMES, size, "train")] * 2
    assert queries[0].truth is not None
    assert queries[0].truth.span == (5, 25)
    assert Tracks.load(tmp_path / "index" / "tracks.npz")["1"][1].tolist() == boxes

    store = tmp_path / "store"
    run(
        extract.app,
        *data,
        "--store",
        store,
        "--backbones",
        "full",
        "--weights",
        "random:0",
        "--workers",
        0,
    )
    output = Store(store)
    assert output.verify() == []
    shapes = {name: output.open(name).shape("hall.mp4") for name in ("appearance", "motion")}
    assert shapes == {"appearance": (maps, 10, 14, 2048), "motion": (3, 16, 16, 2304)}
    assert output.open("text").shape("1")[1:] == (768,)
    assert all(np.isfinite(output.open(name).read("hall.mp4")).all() for name in shapes)

    settings = [
        f"--set={text}"
        for text in ("max_steps=2", "batch=1", "log_every=1", "device=cpu", *SMALL_MODEL)
    ]
    run(
        train.app,
        "--features",
        store,
        "--run",
        tmp_path / "run",
        "--preset",
        "hcstvg-v1",
        *settings,
    )
    assert (tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["finished"] == 2

    video, prediction = tmp_path / "own" / "hall.mp4", tmp_path / "tube.json"
    run(
        predict.app,
        video,
        "the man walks to the left",
        "who stands still?",
        "--run",
        tmp_path / "run",
        "--json",
        prediction,
    )
    tubes = json.loads(prediction.read_text())
    assert tubes["video"]["size"] == list(size)
    assert [query["text"] for query in tubes["queries"]] == [
        "the man walks to the left",
        "who stands still?",
    ]
    for query in tubes["queries"]:
        begin, end = query["span_frames"]
        assert 0 <= begin < end <= FRAMES
        assert [box[0] for box in query["boxes"]] == list(range(begin, end))

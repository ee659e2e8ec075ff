"""An hour of video takes no more memory than five minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.io.jsonl import write_jsonl
from pipeline.records import Query
from pipeline.store import Store
from pipeline.tracks import Tracks

Extractions = Callable[..., Any]
RATE, SIZE = 10, (64, 48)
TRIES = 3
SAMPLING = {"fps": 1.0, "short_side": 32, "clip_stride_seconds": 4.0, "clip_seconds": 2.0}


def write_minutes(path: Path, minutes: int) -> None:
    """One encoded minute of noise that moves, over and over."""
    import av

    pictures = np.random.default_rng(0).integers(
        0, 256, (RATE * 60, SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=RATE, options={"bf": "0", "g": "50", "preset": "ultrafast"}
        )
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        frames = [
            av.VideoFrame.from_ndarray(picture.repeat(8, 0).repeat(8, 1), format="rgb24")
            for picture in pictures
        ]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        step = packets[1].pts - packets[0].pts
        again = [
            (bytes(packet), packet.pts, packet.is_keyframe, packet.time_base) for packet in packets
        ]
        for minute in range(minutes):
            for content, pts, key, base in again:
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = stream, base, key
                packet.pts = packet.dts = pts + minute * len(packets) * step
                packet.duration = step
                container.mux(packet)


def peak(process: psutil.Process) -> int:
    """The most bytes a process has held; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


def peaks(extraction: Extractions, folder: Path, minutes: int) -> tuple[int, int]:
    """The peaks in bytes of the process that encodes and of the one that decodes a video of so many
    minutes.
    """
    data = folder / f"{minutes} minutes"
    data.mkdir(parents=True)
    write_minutes(data / "v.mp4", minutes)
    common = {
        "fps": RATE,
        "frame_count": 60 * RATE * minutes,
        "size": SIZE,
        "segment": (0, 30),
        "split": "test",
        "text": "what is there?",
    }
    write_jsonl(data / "index.jsonl", [Query(id="v-0", video="v", path="v.mp4", **common)])
    Tracks().save(data / "tracks.npz")
    item = extraction(
        str(data / "store"), data, sampling=SAMPLING, products=("appearance", "motion", "frames")
    )
    began = time.monotonic()
    process = item.start()
    main, decoder = 0, 0
    while process.is_alive():
        main = max(main, peak(process))
        decoder = max([decoder, *map(peak, item.decoders())])
        process.join(0.02)
    assert process.exitcode == 0, item.said.read_text()
    assert Store(item.store).open("appearance").shape("v")[0] == 60 * minutes
    print(
        f"{minutes} minutes: encoder {main / 2**20:.1f} MiB, decoder {decoder / 2**20:.1f} "
        f"MiB, {time.monotonic() - began:.1f} s"
    )
    return main, decoder


@pytest.mark.parametrize(("short", "long"), [(2, 10), pytest.param(5, 60, marks=pytest.mark.soak)])
def test_memory_does_not_grow_with_the_video(
    make_extraction: Extractions, tmp_path: Path, short: int, long: int
) -> None:
    """What grows with the video grows every time. decord also decodes ahead while its reader has to
    wait for a core: the best of a few tries counts.
    """
    few = peaks(make_extraction, tmp_path, short)
    for again in range(TRIES):
        many = peaks(make_extraction, tmp_path / str(again), long)
        if sum(many) <= 1.05 * sum(few) and many[0] <= 1.05 * few[0]:
            return
    pytest.fail(f"encoder and decoder held {few} bytes for {short} minutes, {many} for {long}")

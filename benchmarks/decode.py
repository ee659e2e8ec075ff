"""How many frames per second each decoder gives, here and in a process of its own, and what memory that takes.

    .venv/bin/python -m benchmarks.decode [VIDEO …]     # about two minutes; writes benchmarks/results/decode.md

Without videos some are made. All ways of reading give the same pictures before any time is believed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import where
from pipeline.decode import DecodeChild, VideoFacts, open_frames, probe

MADE = {"small.mp4": ((320, 240), 500), "middle.mp4": ((640, 360), 500), "middle.avi": ((640, 360), 300), "large.mp4": ((1280, 720), 250)}
SLOW = ((1280, 720), 380)
"""About the longest 720p video decord may read: 1 GiB of pictures."""
PAUSE_SECONDS = 0.02
WORK_SECONDS = (0.0, 0.002)
ROUNDS = 9
SEED = 0
RESULT = Path(__file__).parent / "results" / "decode.md"
Read = Callable[[], Any]
"""Opens a stream of all frames of one video: a context manager, iterator of `(number, picture)`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="*", help="default: made ones")
    videos = parser.parse_args().videos
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        made = [make(Path(place) / name, *what) for name, what in MADE.items()] if not videos else []
        with DecodeChild() as child:
            rows = [row for path in videos or made for row in measure(path, child)]
        slow = make(Path(place) / "slow.mp4", *SLOW)
        memory = [f"| {name} | {peak} MiB |" for name, peak in peaks(slow).items()]
    text = result(rows, memory, videos, load)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def make(path: Path, size: tuple[int, int], count: int) -> Path:
    """A texture that moves, as h264 with B-frames and a key frame every two seconds."""
    import av

    (width, height), random = size, np.random.default_rng(SEED)
    texture = random.integers(0, 256, (height // 8 + 64, width // 8 + 64, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(count):
            place = abs(number * 3 % 800 - 400)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(texture[place : place + height, place : place + width]), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def measure(path: Path, child: DecodeChild) -> list[str]:
    """Table rows of one video: each decoder that reads it here, and the child, which chooses by itself."""
    facts = probe(path)
    ways = ways_of(path, facts, child)
    digests = {name: digest(read) for name, read in ways.items()}
    assert len(set(digests.values())) == 1, f"{path}: {digests}"
    rates = {name: dict.fromkeys(WORK_SECONDS, 0.0) for name in ways}
    for turn in range(ROUNDS):
        for name in np.roll(np.array([*ways], object), turn).tolist():
            for work in WORK_SECONDS:
                began = time.perf_counter()
                assert consume(ways[name], work) == facts.frame_count
                rates[name][work] = max(rates[name][work], facts.frame_count / (time.perf_counter() - began))
    rows = []
    for name, found in rates.items():
        row = f"| {path.name}, {facts.size[0]}×{facts.size[1]}, {facts.frame_count} frames | {name} |"
        for work, rate in found.items():
            ratio = f"{rate / rates[name.split()[1]][work]:.2f}" if name.startswith("child") else "–"
            row += f" {rate:,.0f} | {ratio} |"
        rows.append(row)
    return rows


def consume(read: Read, work: float) -> int:
    """Read all frames, computing for `work` seconds after each; how many there were."""
    count = 0
    with read() as frames:
        for _ in frames:
            count += 1
            end = time.perf_counter() + work
            while time.perf_counter() < end:
                pass
    return count


def ways_of(path: Path, facts: VideoFacts, child: DecodeChild) -> dict[str, Read]:
    wanted = range(facts.frame_count)
    with open_frames(path, facts, wanted) as frames:
        chosen = frames.decoder
    ways: dict[str, Read] = {"decord": lambda: open_frames(path, facts, wanted, "decord")} if chosen == "decord" else {}
    ways["pyav"] = lambda: open_frames(path, facts, wanted, "pyav")
    ways[f"child {chosen}"] = lambda: child.frames(path, facts, wanted)
    return ways


def digest(read: Read) -> str:
    """SHA-256 of all numbers and pictures."""
    found = hashlib.sha256()
    with read() as frames:
        for number, picture in frames:
            found.update(number.to_bytes(8, "little") + picture.tobytes())
    return found.hexdigest()


def peaks(path: Path) -> dict[str, int]:
    """The most memory the process that decodes has had, with a consumer that pauses after each picture."""
    program = (
        "import sys; from pathlib import Path; from benchmarks.decode import peak_mib, read_slowly\n"
        "from pipeline.decode import open_frames, probe\n"
        "path = Path(sys.argv[1]); facts = probe(path)\n"
        "read_slowly(open_frames(path, facts, range(facts.frame_count), sys.argv[2])); print(peak_mib('self'))"
    )
    found = {}
    for decoder in ("decord", "pyav"):
        run = subprocess.run([sys.executable, "-c", program, str(path), decoder], capture_output=True, text=True, check=True)
        found[f"{decoder}, in the consumer's process"] = int(run.stdout)
    with DecodeChild() as child:
        facts = child.probe(path)
        stream = child.frames(path, facts, range(facts.frame_count))
        read_slowly(stream)
        found[f"child {stream.decoder}, stopped while its ring is full"] = peak_mib(str(child.pid))
    return found


def read_slowly(frames: Any) -> None:
    with frames:
        for _ in frames:
            time.sleep(PAUSE_SECONDS)


def peak_mib(process: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


def result(rows: list[str], memory: list[str], videos: list[Path], load: float) -> str:
    (width, height), count = SLOW
    return f"""# Decoding

Frames per second of reading whole videos in order, opening included; the best of {ROUNDS} rounds in which the ways take turns. All
ways gave the same pictures before they were timed. Each decoder has one thread. The child is a process of its own that is
reused (its start, once per worker, is not counted); its ratio is to the same decoder in the consumer's process. A consumer that
computes does so beside the child's decoding (decord decodes beside it anyway).

| video | read by | frames/s, idle consumer | ÷ in process | frames/s, {WORK_SECONDS[1] * 1000:.0f} ms of work per picture | ÷ in process |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

## Memory

Peak resident memory of the process that decodes {count} frames of {width}×{height} ({count * width * height * 3 >> 20} MiB of
pictures) for a consumer that pauses {PAUSE_SECONDS * 1000:.0f} ms after each; the child's counts its part of the ring.

| decoder | peak |
| --- | --- |
{chr(10).join(memory)}

**Where.** {where("numpy", "av", "decord")}. Load by other work before: {load:.1f}. {time.strftime("%Y-%m-%d")}.

**Command**

```
.venv/bin/python -m benchmarks.decode{" …" if videos else ""}
```
"""


if __name__ == "__main__":
    main()

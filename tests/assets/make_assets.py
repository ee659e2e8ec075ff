"""Draw the clips and write down what is in them: `python -m tests.assets.make_assets`.

`facts.json` is written from the numbers handed to the encoders: no decoder is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.assets.clips import FOLDER, HEIGHT, WIDTH, picture_of

RATE = 48000
CUT = 0.6
"""Share of its bytes that the cut clip keeps."""
NO_SHIFT = {"avoid_negative_ts": "disabled"}


@dataclass(frozen=True)
class Plan:
    """How a clip is made: `times` `[n]` in units of `base`, handed to the encoder one per picture.

    `size` is (width, height) as shown; the pictures are stored turned back by `rotation` degrees.
    """

    name: str
    codec: str
    times: list[int]
    base: Fraction
    settings: dict[str, str]
    called: str = ""
    size: tuple[int, int] = (WIDTH, HEIGHT)
    rotation: int = 0
    sound: str = ""
    container: dict[str, str] = field(default_factory=dict)
    added: Fraction = Fraction(0)
    """What comes on top of all times. AVI keeps those of decoding: B-frames are shown one later."""
    even: bool = True
    refused: tuple[str, str] = ("", "")

    def facts(self) -> dict[str, Any]:
        """What a reader must find."""
        if any(self.refused):
            return {"refused": self.refused}
        displayed = [float(time * self.base + self.added) for time in self.times if time >= 0]
        return {
            "codec": self.called,
            "size": self.size,
            "rotation": self.rotation,
            "first": len(self.times) - len(displayed),
            "has_edit_list": len(displayed) < len(self.times),
            "duration": round(len(displayed) * (displayed[1] - displayed[0]), 6)
            if self.even
            else 0.0,
            "seconds": [round(second, 6) for second in displayed],
        }


def plans() -> list[Plan]:
    """The ten clips."""
    groups = "keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"
    h264 = {"x264-params": f"{groups}:b-pyramid=normal:open-gop=1", "crf": "23"}
    h265 = {"x265-params": f"log-level=none:{groups}:open-gop=1:info=0", "crf": "26"}
    plain = Fraction(1, 25)
    return [
        Plan(
            name="sound.mp4",
            codec="libx264",
            called="h264",
            times=list(range(45)),
            base=Fraction(1001, 30000),
            settings=h264,
            size=(320, 240),
            sound="aac",
            container={"movflags": "faststart"},
        ),
        Plan(
            name="edit_list.mp4",
            codec="libx264",
            called="h264",
            times=[number - 7 for number in range(40)],
            base=plain,
            settings=h264,
            container=NO_SHIFT | {"use_editlist": "1"},
        ),
        Plan(
            name="uneven.mp4",
            codec="libx265",
            called="hevc",
            times=np.cumsum([0, *[20, 40, 100, 33] * 9])[:36].tolist(),
            base=Fraction(1, 1000),
            settings=h265,
            even=False,
        ),
        Plan(
            name="turned.mov",
            codec="libx264",
            called="h264",
            times=list(range(30)),
            base=Fraction(1, 24),
            settings=h264,
            rotation=270,
        ),
        Plan(
            name="av1.mkv",
            codec="libsvtav1",
            called="av1",
            times=list(range(32)),
            base=plain,
            settings={"g": "16", "preset": "8", "crf": "35"},
            sound="libopus",
        ),
        Plan(
            name="odd_size.webm",
            codec="libvpx-vp9",
            called="vp9",
            times=list(range(37)),
            base=plain,
            settings={"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16", "crf": "32", "b": "0"},
            size=(WIDTH + 1, HEIGHT - 5),
        ),
        Plan(
            name="program.mpg",
            codec="mpeg2video",
            called="mpeg2video",
            times=[25 + number for number in range(34)],
            base=plain,
            settings={"g": "12", "bf": "2", "qmin": "4", "qmax": "8"},
            sound="mp2",
            container=NO_SHIFT,
        ),
        Plan(
            name="late_start.ts",
            codec="libx264",
            called="h264",
            times=[250 + number for number in range(39)],
            base=plain,
            settings=h264,
            container=NO_SHIFT | {"mpegts_copyts": "1"},
        ),
        Plan(
            name="part2.avi",
            codec="mpeg4",
            called="mpeg4",
            times=list(range(28)),
            base=plain,
            settings={"g": "12", "bf": "2", "qmin": "4", "qmax": "8"},
            added=plain,
        ),
        Plan(
            name="cut_short.mp4",
            codec="libx264",
            times=list(range(100)),
            base=plain,
            settings=h264,
            container={"movflags": "faststart"},
            refused=("truncated", "open"),
        ),
    ]


def write_clip(plan: Plan, path: Path) -> None:
    """Encode the pictures and, where there is one, the sound: a quiet tone as long as they are."""
    options = {"fflags": "+bitexact"} | plan.container
    with av.open(str(path), "w", options=options) as container:
        step = plan.base if plan.even else plan.base * 40
        video = container.add_stream(plan.codec, rate=1 / step, options=plan.settings)
        video.width, video.height = plan.size[::-1] if plan.rotation % 180 else plan.size
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.time_base = video.codec_context.time_base = plan.base
        if plan.rotation:
            video.set_display_rotation(plan.rotation)
        sound = container.add_stream(plan.sound, rate=RATE, layout="mono") if plan.sound else None
        tones = tone(float(len(plan.times) * plan.base))
        for number, time in enumerate(plan.times):
            stored = np.rot90(picture_of(number, plan.size), -plan.rotation // 90)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")
            frame.pts, frame.time_base = time, plan.base
            container.mux(video.encode(frame))
            while sound is not None and (attention := next(tones, None)) is not None:
                container.mux(sound.encode(attention))
                if attention.time > time * plan.base:
                    break
        container.mux(video.encode(None))
        if sound is not None:
            container.mux(sound.encode(None))


def tone(seconds: float) -> Iterator[av.AudioFrame]:
    """440 Hz, in frames of 20 ms."""
    each = RATE // 50
    for begin in range(0, int(seconds * RATE), each):
        wave = np.sin(2 * np.pi * 440 / RATE * (begin + np.arange(each))) * 2000
        frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, begin, Fraction(1, RATE)
        yield frame


def main() -> None:
    """Write all clips and their facts beside this file."""
    facts = {}
    for plan in plans():
        path = FOLDER / plan.name
        write_clip(plan, path)
        if any(plan.refused):
            path.write_bytes(path.read_bytes()[: int(path.stat().st_size * CUT)])
        facts[plan.name] = plan.facts()
    lines = ",\n".join(f" {json.dumps(name)}: {rows(row)}" for name, row in facts.items())
    (FOLDER / "facts.json").write_text(f"{{\n{lines}\n}}\n", "utf-8")


def rows(row: dict[str, Any]) -> str:
    """JSON with each fact on a line."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in row.items())
    return f"{{\n{lines}\n }}"


if __name__ == "__main__":
    main()
